"""The loss, defined over the whole global batch whatever the mesh and the microbatches.

InfoNCE does not decompose over rows: each row is told from every other. So the embeddings of the whole
global batch stand in a *bank*, detached. Where earlier batches are negatives too, those of the bank and of
the past are of a model that follows the trained one slowly, and a microbatch's rows are told from them: the
loss is a sum over rows. Else a microbatch puts its own, live rows in their places, and the gradient that
reaches those is that of the global loss. In both, gradients of all microbatches and data-parallel workers
add up: nothing is averaged. The past stands in the order of training, so it is the same on every mesh.
All other terms are sums over rows, divided by what the global batch has of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch import distributed as dist

from ...models.alignment import Rows, contrastive_loss, info_nce
from ...models.heads.transcription import fits
from ...models.losses import promoted
from ...models.multimodal import MultimodalModel, described, documented, spoken, transcribed
from ...models.spec import EMBEDDED, MODALITIES
from .spec import ObjectiveSpec


@dataclass(frozen=True)
class Bank:
    """The global batch as the contrastive loss sees it.

    Attributes:
        rows: of all data-parallel workers in the order of training, detached, and after them those that are
            none; its embeddings are the model's outputs of that kind.
        own: places of this worker's rows.
        size: rows that are some, scalar; not asked for before it is needed.
    """

    rows: Rows
    own: Tensor
    size: Tensor


class Objective:
    """Loss of a microbatch, as a share of the global batch's.

    Args:
        spec: weights of the terms.
        model: this worker's part of it.
        data_group: the data-parallel process group.
        num_microbatches: that a worker's rows of one shape are computed in.
        device: of the model.
        dtype: of the losses.

    Attributes:
        model: see above.
        past: embeddings of earlier batches, by the model that follows slowly.
    """

    def __init__(
        self,
        spec: ObjectiveSpec,
        model: MultimodalModel,
        data_group: dist.ProcessGroup,
        num_microbatches: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.spec = spec
        self.group = data_group
        self._microbatches_each = num_microbatches
        self.model = model
        self._names = model.output_names
        self._embedded = [name for name in self._names if name in MODALITIES or name.startswith("found.")]
        self._pairs = [name.partition(".")[2] for name in self._names if name.startswith("found.")]
        # the divergence is a part of the alignment, with a weight of its own
        self._weights = {term: spec.weight_of(term) for term in spec.terms}
        self.past = Rows.empty(
            spec.negatives if self.spec.is_slow else 0,
            {name: model.spec.embed_dim for name in self._embedded if name in MODALITIES},
            device,
            dtype,
        )
        self._batches: Sequence[Mapping[str, Tensor]] = ()
        self._scale = 1.0
        self._bank: Bank | None = None
        self._counts: dict[str, float] = {}
        self._terms: dict[int, dict[str, float]] = {}

    @property
    def num_microbatches(self) -> int:
        """Microbatches of this worker in the step."""
        return self._microbatches_each * len(self._batches)

    @property
    def looks_ahead(self) -> bool:
        """Whether `fill_bank` must be called before the loss."""
        return self.spec.uses_bank and (self.spec.is_slow or self.num_microbatches > 1)

    def start_step(self, batches: Sequence[Mapping[str, Tensor]], scale: float = 1.0) -> None:
        """Take this worker's rows of the next step; the bank is empty until `fill_bank`.

        Args:
            batches: the rows, by shape; they are numbered through.
            scale: what the loss is multiplied by, and so its gradient; the terms are reported without.
        """
        self._batches, self._scale = batches, scale
        self._bank = None
        self._terms = {}
        self._counts = {}
        each = [self._count(batch) for batch in batches]
        if counts := each[0]:
            sums = torch.stack([torch.stack([found[name] for found in each]).sum() for name in counts])
            sums = sums.double()
            dist.all_reduce(sums, group=self.group)
            self._counts = {name: max(n, 1.0) for name, n in zip(counts, sums.tolist(), strict=True)}

    def fill_bank(self, outputs: tuple[Tensor, ...]) -> None:
        """Gather the embeddings of all workers' rows, from the outputs for all this worker's rows."""
        named = self._named(outputs)
        positions = self._gather(self._column("position"))
        is_some = positions >= 0
        order = positions.where(is_some, positions.max() + 1).argsort(stable=True)
        rows = Rows(
            {name: self._gather(promoted(named[name].detach()))[order] for name in self._embedded},
            self._gather(self._compared().to(torch.int64)).bool()[order],
            self._gather(self._column("group"))[order],
        )
        own = order.argsort().chunk(dist.get_world_size(self.group))[dist.get_rank(self.group)]
        self._bank = Bank(rows, own, is_some.sum())

    def __call__(self, outputs: tuple[Tensor, ...], rows: Tensor) -> Tensor:
        """Loss of the worker's rows `rows` (b,) given the outputs for them; scalar, to be summed."""
        if self.spec.uses_bank and not self.looks_ahead:  # its rows are all of this worker's
            self.fill_bank(outputs)
        out = self._named(outputs)
        terms: dict[str, Tensor] = {}
        if self.spec.uses_bank:
            terms |= self._aligned(out, rows)
        for task in self._weights:
            if task in out:
                terms[task] = promoted(out[task]).sum() / self._counts[task]
        # by microbatch, since a schedule's first step calls this once more, to learn shapes
        self._terms[int(rows[0])] = {
            name: float(term.detach()) / (self._shares if name in EMBEDDED else 1)
            for name, term in terms.items()
        }
        total = torch.stack([self._weights[name] * term for name, term in terms.items()]).sum()
        return total * self._scale

    def end_step(self) -> None:
        """Keep the step's embeddings as negatives of the steps that follow."""
        if self._bank is not None and self.spec.is_slow:
            seen = self._bank.rows.first(int(self._bank.size))
            self.past = self.past.followed_by(seen).last(len(self.past.groups))

    def sum_terms(self, counts: bool) -> dict[str, float]:
        """The step's loss and its terms over all workers, which call this together.

        Args:
            counts: whether this worker's terms do: those of one of the workers that computed them.
        """
        mine = [
            sum(terms[name] for terms in self._terms.values()) if counts else 0.0 for name in self._weights
        ]
        sums = torch.tensor(mine, dtype=torch.float64)
        dist.all_reduce(sums)
        terms = dict(zip(self._weights, sums.tolist(), strict=True))
        return {"loss": sum(self._weights[name] * term for name, term in terms.items()), **terms}

    def _column(self, name: str) -> Tensor:
        """Of all this worker's rows."""
        return torch.cat([batch[name] for batch in self._batches])

    def _compared(self) -> Tensor:
        """Which modalities (B, M) of all this worker's rows are told from those of others."""
        present = self._column("present").clone()
        place = MODALITIES.index("text")
        present[:, place] &= torch.cat([described(batch).any(dim=1) for batch in self._batches])
        return present

    def _named(self, outputs: tuple[Tensor, ...] | Tensor) -> dict[str, Tensor]:
        # a pipeline's stage hands on a single output as it is
        several = outputs if isinstance(outputs, tuple) else (outputs,)
        return dict(zip(self._names, several, strict=True))

    def _count(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """How many this worker's rows have of what each term is a mean over."""
        counts: dict[str, Tensor] = {}
        text = described(batch)
        for task, mask in (
            ("caption", batch["token_mask"]),
            ("answer", batch.get("answer_mask")),
            ("language", text),
        ):
            if task in self._weights and mask is not None:
                counts[task] = (mask[:, 1:] & mask[:, :-1]).sum()
        if "transcription" in self._weights:
            said, valid = spoken(batch["tokens"], transcribed(batch))
            fit = fits(self.model.speech_mask(batch["mel_mask"]), said, valid)
            counts["transcription"] = (valid & fit[:, None]).sum()
        if "classification" in self._weights:
            counts["classification"] = (batch["label"] >= 0).sum()
        if "document" in self._weights:
            counts["document"] = (documented(batch) >= 0).sum()
        if "segmentation" in self._weights:
            counts["segmentation"] = (batch["marks"].flatten(1)[:, 0] >= 0).sum()
        return counts

    @property
    def _shares(self) -> int:
        """How many microbatches, of all workers, compute the same embedded terms."""
        return 1 if self.spec.is_slow else self.num_microbatches * dist.get_world_size(self.group)

    def _aligned(self, out: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
        """The terms that need the whole batch."""
        if self._bank is None:
            raise RuntimeError("fill_bank comes before the loss")
        batch, own = self._bank.rows, self._bank.own[rows]
        live = {name: promoted(out[name]) for name in self._embedded}
        if self.spec.is_slow:
            queries = Rows(live, batch.present[own], batch.groups[own])
        else:
            placed = {name: batch.embeddings[name].index_copy(0, own, live[name]) for name in live}
            queries = batch = Rows(placed, batch.present, batch.groups)
            own = torch.arange(len(batch.groups), device=own.device)
        scale = promoted(out["scale"][0])
        # where every microbatch computes the whole term, the temperature takes its share of each
        scale = scale.detach() + (scale - scale.detach()) / self._shares
        terms: dict[str, Tensor] = {}
        if "contrastive" in self._weights:
            terms["contrastive"] = contrastive_loss(queries, batch, scale, own, self.past)
        if "alignment" in self._weights:
            terms |= self._alignment(out, queries, batch, scale, own)
        return terms

    def _alignment(
        self, out: Mapping[str, Tensor], queries: Rows, batch: Rows, scale: Tensor, own: Tensor
    ) -> dict[str, Tensor]:
        """What each modality found in each other, told from what it found in other rows, and how far apart
        their views are.
        """
        matching, drawn, num_pairs = scale.new_zeros(()), scale.new_zeros(()), 0
        others = queries.groups[:, None] != batch.groups[None, :]
        for pair in self._pairs:
            names = (f"found.{pair}", pair.partition("-")[0])
            has_both = batch.present[:, [MODALITIES.index(m) for m in pair.split("-")]].all(dim=1)
            count = has_both.sum()
            if not count:
                continue
            num_pairs += 1
            for ours, theirs in (names, names[::-1]):
                mine, keys = queries.embeddings[ours], batch.embeddings[theirs]
                found = info_nce(mine, keys, own, scale, has_both[own], others & has_both)
                matching = matching + found.sum() / (2 * count)
            drawn = drawn + promoted(out[f"divergence.{pair}"]).sum() / count
        return {"alignment": matching / max(1, num_pairs), "divergence": drawn / max(1, num_pairs)}

    def _gather(self, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size(self.group))]
        dist.all_gather(parts, rows.contiguous(), group=self.group)
        return torch.cat(parts)
