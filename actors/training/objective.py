"""The loss, defined over the whole global batch whatever the mesh and the microbatches.

InfoNCE does not decompose over rows: each row's loss needs every other row's embedding. So the
embeddings of the whole global batch stand in a *bank*, detached, and a microbatch puts its own,
live rows in their places. The gradient that reaches those rows is that of the global loss, and
gradients of all microbatches and data-parallel workers add up to it: nothing is averaged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn import functional as F

from ...models.alignment import contrastive_loss
from ...models.losses import caption_loss
from ...models.multimodal import Outputs
from ...models.spec import MODALITIES
from .spec import ObjectiveSpec

TERMS = ("loss", "contrastive", "caption", "classification")


@dataclass
class Bank:
    """The global batch as the contrastive loss sees it.

    Attributes:
        embeddings: modality → (N, E), detached; N rows of all data-parallel workers.
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
        data_group: the data-parallel process group.
        num_microbatches: per worker and step.
    """

    def __init__(self, spec: ObjectiveSpec, data_group: dist.ProcessGroup, num_microbatches: int) -> None:
        self.spec = spec
        self.group = data_group
        self.num_microbatches = num_microbatches
        self._batch: Mapping[str, Tensor] = {}
        self._bank: Bank | None = None
        self._tokens = 1.0
        self._terms: dict[int, dict[str, float]] = {}

    def start_step(self, batch: Mapping[str, Tensor]) -> None:
        """Take this worker's rows of the next step; the bank is empty until `fill_bank`."""
        self._batch = batch
        self._bank = None
        self._terms = {}
        captioned = batch["token_mask"][:, 1:] & batch["token_mask"][:, :-1]
        tokens = captioned.sum().float()
        dist.all_reduce(tokens, group=self.group)
        self._tokens = max(float(tokens), 1.0)

    def fill_bank(self, outputs: tuple[Tensor, ...]) -> None:
        """Gather the embeddings of all workers' rows, from `Outputs` of all this worker's rows."""
        named = Outputs(*outputs)._asdict()
        self._bank = Bank(
            embeddings={m: self._gather(named[m].detach()) for m in MODALITIES},
            present=self._gather(self._batch["present"].to(torch.int64)).bool(),
            group=self._gather(self._batch["group"]),
            start=dist.get_rank(self.group) * self._batch["group"].shape[0],
        )

    def __call__(self, outputs: tuple[Tensor, ...], rows: Tensor) -> Tensor:
        """Loss of the worker's rows `rows` (b,) given their `Outputs`; scalar, to be summed."""
        if self.num_microbatches == 1:  # its rows are all of this worker's
            self.fill_bank(outputs)
        out = Outputs(*outputs)
        tokens, mask = self._batch["tokens"][rows], self._batch["token_mask"][rows]
        contrastive = self._contrastive(out, rows)
        nll, _ = caption_loss(out.caption_logits.float(), tokens, mask)
        caption = nll / self._tokens
        num_rows = dist.get_world_size(self.group) * self._batch["label"].shape[0]
        labels = self._batch["label"][rows]
        logits = out.class_logits.float()
        # a record without a category has the label -1
        classification = F.cross_entropy(logits, labels, reduction="sum", ignore_index=-1) / num_rows
        weights = self.spec
        loss = (
            weights.contrastive * contrastive
            + weights.caption * caption
            + weights.classification * classification
        )
        shares = self.num_microbatches * dist.get_world_size(self.group)
        # by microbatch, since a schedule's first step calls this once more, to learn shapes
        self._terms[int(rows[0])] = {
            "contrastive": float(contrastive.detach()) / shares,
            "caption": float(caption.detach()),
            "classification": float(classification.detach()),
        }
        return loss

    def sum_terms(self, counts: bool) -> dict[str, float]:
        """The step's loss and its terms over all workers, which call this together.

        Args:
            counts: whether this worker's terms do: those of one of the workers that computed them.
        """
        names = TERMS[1:]
        mine = [sum(terms[name] for terms in self._terms.values()) if counts else 0.0 for name in names]
        sums = torch.tensor(mine, dtype=torch.float64)
        dist.all_reduce(sums)
        terms = dict(zip(names, sums.tolist(), strict=True))
        weights = self.spec.model_dump()
        return {"loss": sum(weights[name] * terms[name] for name in names), **terms}

    def _contrastive(self, out: Outputs, rows: Tensor) -> Tensor:
        bank = self._bank
        if bank is None:
            raise RuntimeError("fill_bank comes before the loss")
        places = rows + bank.start
        live = {
            m: bank.embeddings[m].float().index_copy(0, places, getattr(out, m).float()) for m in MODALITIES
        }
        shares = self.num_microbatches * dist.get_world_size(self.group)
        scale = out.scale[0].float()
        # every microbatch on every worker sees the whole loss: the temperature takes its share of each
        scale = scale.detach() + (scale - scale.detach()) / shares
        return contrastive_loss(live, bank.present, scale, bank.group)

    def _gather(self, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size(self.group))]
        dist.all_gather(parts, rows.contiguous(), group=self.group)
        return torch.cat(parts)
