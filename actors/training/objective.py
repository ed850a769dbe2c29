"""The loss, defined over the whole global batch whatever the mesh and the microbatches.

InfoNCE does not decompose over rows: each row's loss needs every other row's embedding. So the
embeddings of the whole global batch stand in a *bank*, detached, and a microbatch puts its own,
live rows in their places. The gradient that reaches those rows is that of the global loss, and
gradients of all microbatches and data-parallel workers add up to it: nothing is averaged. Embeddings of
earlier batches are further negatives; they stand in the order of training, so they too are the same on
every mesh. All other terms are sums over rows, divided by what the global batch has of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch import distributed as dist

from ...models.alignment import Past, contrastive_loss, info_nce
from ...models.multimodal import spoken
from ...models.spec import EMBEDDED, MODALITIES
from .spec import ObjectiveSpec


@dataclass
class Bank:
    """The global batch as the contrastive loss sees it.

    Attributes:
        embeddings: output → (N, E), detached; N rows of all data-parallel workers.
        present: (N, M) bool.
        group: (N,) int64, equal where rows share a caption.
        start: this worker's first row.
    """

    embeddings: dict[str, Tensor]
    present: Tensor
    group: Tensor
    start: int


class Objective:
    """Loss of a microbatch, as a share of the global batch's.

    Args:
        spec: weights of the terms.
        output_names: of what the model's last layer gives.
        embed_dim: of the embeddings.
        data_group: the data-parallel process group.
        num_microbatches: per worker and step.
        device: of the model.

    Attributes:
        past: embeddings of earlier batches.
    """

    def __init__(
        self,
        spec: ObjectiveSpec,
        output_names: Sequence[str],
        embed_dim: int,
        data_group: dist.ProcessGroup,
        num_microbatches: int,
        device: torch.device,
    ) -> None:
        self.spec = spec
        self.group = data_group
        self.num_microbatches = num_microbatches
        self._names = tuple(output_names)
        self._embedded = [name for name in self._names if name in MODALITIES or name.startswith("found.")]
        self._pairs = [name.partition(".")[2] for name in self._names if name.startswith("found.")]
        # the divergence is a part of the alignment, with a weight of its own
        self._weights = {term: spec.weight_of(term) for term in spec.terms}
        self.past = Past.empty(
            spec.negatives if self.uses_bank else 0,
            {name: embed_dim for name in self._embedded if name in MODALITIES},
            device,
        )
        self._batch: Mapping[str, Tensor] = {}
        self._bank: Bank | None = None
        self._counts: dict[str, float] = {}
        self._terms: dict[int, dict[str, float]] = {}

    @property
    def uses_bank(self) -> bool:
        """Whether a row's loss depends on other rows."""
        return bool(EMBEDDED & self.spec.tasks)

    def start_step(self, batch: Mapping[str, Tensor]) -> None:
        """Take this worker's rows of the next step; the bank is empty until `fill_bank`."""
        self._batch = batch
        self._bank = None
        self._terms = {}
        self._counts = {}
        if counts := self._count(batch):
            sums = torch.stack([count.double() for count in counts.values()])
            dist.all_reduce(sums, group=self.group)
            self._counts = {name: max(n, 1.0) for name, n in zip(counts, sums.tolist(), strict=True)}

    def fill_bank(self, outputs: tuple[Tensor, ...]) -> None:
        """Gather the embeddings of all workers' rows, from the outputs for all this worker's rows."""
        named = self._named(outputs)
        self._bank = Bank(
            embeddings={name: self._gather(named[name].detach().float()) for name in self._embedded},
            present=self._gather(self._batch["present"].to(torch.int64)).bool(),
            group=self._gather(self._batch["group"]),
            start=dist.get_rank(self.group) * self._batch["group"].shape[0],
        )

    def __call__(self, outputs: tuple[Tensor, ...], rows: Tensor) -> Tensor:
        """Loss of the worker's rows `rows` (b,) given the outputs for them; scalar, to be summed."""
        if self.num_microbatches == 1 and self.uses_bank:  # its rows are all of this worker's
            self.fill_bank(outputs)
        out = self._named(outputs)
        terms: dict[str, Tensor] = {}
        if self.uses_bank:
            terms |= self._aligned(out, rows)
        for task in self._weights:
            if task in out:
                terms[task] = out[task].float().sum() / self._counts[task]
        shares = self.num_microbatches * dist.get_world_size(self.group)
        # by microbatch, since a schedule's first step calls this once more, to learn shapes
        self._terms[int(rows[0])] = {
            name: float(term.detach()) / (shares if name in EMBEDDED else 1) for name, term in terms.items()
        }
        return torch.stack([self._weights[name] * term for name, term in terms.items()]).sum()

    def end_step(self) -> None:
        """Keep the step's embeddings as negatives of the steps that follow."""
        if self._bank is not None:
            self.past = self.past.followed_by(self._bank.embeddings, self._bank.present, self._bank.group)

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

    def _named(self, outputs: tuple[Tensor, ...] | Tensor) -> dict[str, Tensor]:
        # a pipeline's stage hands on a single output as it is
        several = outputs if isinstance(outputs, tuple) else (outputs,)
        return dict(zip(self._names, several, strict=True))

    def _count(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """How many this worker's rows have of what each term is a mean over."""
        counts: dict[str, Tensor] = {}
        for task, mask in (("caption", "token_mask"), ("answer", "answer_mask"), ("language", "token_mask")):
            if task in self._weights:
                counts[task] = (batch[mask][:, 1:] & batch[mask][:, :-1]).sum()
        has = {m: batch["present"][:, i] for i, m in enumerate(MODALITIES)}
        if "transcription" in self._weights:
            _, valid = spoken(batch["tokens"], batch["token_mask"])
            counts["transcription"] = (valid & has["speech"][:, None]).sum()
        if "classification" in self._weights:
            counts["classification"] = (batch["label"] >= 0).sum()
        for pair in self._pairs:
            a, b = pair.split("-")
            counts[pair] = (has[a] & has[b]).sum()
        return counts

    def _aligned(self, out: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
        """The terms that need the whole batch; each microbatch sees all of them."""
        bank = self._bank
        if bank is None:
            raise RuntimeError("fill_bank comes before the loss")
        places = rows + bank.start
        live = {n: bank.embeddings[n].index_copy(0, places, out[n].float()) for n in self._embedded}
        shares = self.num_microbatches * dist.get_world_size(self.group)
        scale = out["scale"][0].float()
        # every microbatch on every worker sees the whole loss: the temperature takes its share of each
        scale = scale.detach() + (scale - scale.detach()) / shares
        terms: dict[str, Tensor] = {}
        if "contrastive" in self._weights:
            whole = {m: live[m] for m in live if m in MODALITIES}
            terms["contrastive"] = contrastive_loss(whole, bank.present, scale, bank.group, self.past)
        if "alignment" in self._weights:
            matching, drawn, num_pairs = scale.new_zeros(()), scale.new_zeros(()), 0
            same = bank.group[:, None] == bank.group[None, :]
            for pair in self._pairs:
                a, b = pair.split("-")
                valid = bank.present[:, MODALITIES.index(a)] & bank.present[:, MODALITIES.index(b)]
                if valid.any():
                    num_pairs += 1
                    matching = matching + info_nce(live[f"found.{pair}"], live[a], scale, valid, same)
                    drawn = drawn + out[f"divergence.{pair}"].float().sum() / self._counts[pair]
            terms["alignment"] = matching / max(1, num_pairs)
            terms["divergence"] = drawn / max(1, num_pairs)
        return terms

    def _gather(self, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size(self.group))]
        dist.all_gather(parts, rows.contiguous(), group=self.group)
        return torch.cat(parts)
