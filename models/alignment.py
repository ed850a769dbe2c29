"""Drawing modalities together: InfoNCE against many negatives, and cross attention that agrees.

Shape letters: N rows, K keys, E embedding, M modalities; B batch, Q positions of the one that asks,
P of the one that is asked, H heads, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import init_weights, key_bias, merge_heads, split_heads
from .spec import MODALITIES


@dataclass(frozen=True)
class Rows:
    """Embeddings of the rows of a batch, or of several batches.

    Attributes:
        embeddings: modality → (N, E) unit vectors.
        present: (N, M) bool, in the order of `MODALITIES`; a row without any is none.
        groups: (N,) int64; rows of a group share a caption, and are no negatives of each other.
    """

    embeddings: Mapping[str, Tensor]
    present: Tensor
    groups: Tensor

    @classmethod
    def empty(
        cls, size: int, widths: Mapping[str, int], device: torch.device, dtype: torch.dtype = torch.float32
    ) -> Rows:
        """Room for `size` rows, none of which is there yet."""
        return cls(
            {m: torch.zeros(size, width, device=device, dtype=dtype) for m, width in widths.items()},
            torch.zeros(size, len(MODALITIES), dtype=torch.bool, device=device),
            torch.full((size,), -1, dtype=torch.int64, device=device),
        )

    def followed_by(self, other: Rows) -> Rows:
        """These rows, then those of another, in the modalities that both have."""
        return Rows(
            {
                m: torch.cat((rows, other.embeddings[m].to(rows.dtype)))
                for m, rows in self.embeddings.items()
                if m in other.embeddings
            },
            torch.cat((self.present, other.present)),
            torch.cat((self.groups, other.groups)),
        )

    def first(self, size: int) -> Rows:
        """The first `size` rows."""
        return self._part(slice(size))

    def last(self, size: int) -> Rows:
        """The last `size` rows."""
        return self._part(slice(max(0, len(self.groups) - size), None))

    def _part(self, some: slice) -> Rows:
        return Rows(
            {m: rows[some] for m, rows in self.embeddings.items()}, self.present[some], self.groups[some]
        )


def info_nce(
    queries: Tensor, keys: Tensor, own: Tensor, scale: Tensor, valid: Tensor, negatives: Tensor
) -> Tensor:
    """InfoNCE of each row: how surprising its own key is among that and its negatives (arXiv 1807.03748).

    Args:
        queries: (N, E) unit vectors.
        keys: (K, E) unit vectors.
        own: (N,) int64, which key is a row's own.
        scale: inverse temperature, scalar.
        valid: (N,) bool; other rows are never read, and their loss is 0.
        negatives: (N, K) bool, which keys a row is told from; others are never read.

    Returns:
        (N,), nats.
    """
    counted = negatives | F.one_hot(own, len(keys)).bool()
    read = (counted & valid[:, None]).any(dim=0)
    queries = queries.masked_fill(~valid[:, None], 0)
    keys = keys.masked_fill(~read[:, None], 0).to(queries.dtype)
    logits = (scale * queries @ keys.T).masked_fill(~counted, float("-inf"))
    return F.cross_entropy(logits, own, reduction="none").masked_fill(~valid, 0)


def contrastive_loss(
    queries: Rows, batch: Rows, scale: Tensor, own: Tensor | None = None, past: Rows | None = None
) -> Tensor:
    """InfoNCE both ways between every two modalities (CLIP, arXiv 2103.00020, figure 3).

    A row is told from every other row that has the modality it is compared with. The loss is the mean over
    the rows of the batch that have both, then over the pairs of modalities that any row has. It is a sum over
    queries, so that of parts of the batch adds up to that of the whole.

    Args:
        queries: all rows of the batch, or some; only they get the gradient of a query.
        batch: the keys of all rows. Those may be other embeddings than the queries': with those of an
            encoder that moves slowly, the past's are of the same kind (arXiv 1911.05722, 3.2).
        scale: inverse temperature, scalar.
        own: (N,) int64, place of each query in the batch; by default, queries are all of it.
        past: of earlier batches, as negatives only.
    """
    if own is None:
        own = torch.arange(len(queries.groups), device=queries.groups.device)
    keys = batch if past is None else batch.followed_by(past)
    others = queries.groups[:, None] != keys.groups[None, :]
    total, num_pairs = scale.new_zeros(()), scale.new_zeros(())
    for pair in combinations([m for m in MODALITIES if m in queries.embeddings], 2):
        places = [MODALITIES.index(m) for m in pair]
        valid = queries.present[:, places].all(dim=1)
        count = batch.present[:, places].all(dim=1).sum()
        for (ours, theirs), place in zip((pair, pair[::-1]), reversed(places), strict=True):
            negatives = others & keys.present[:, place]
            rows = info_nce(queries.embeddings[ours], keys.embeddings[theirs], own, scale, valid, negatives)
            total = total + rows.sum() / (2 * count.clamp(min=1))
        num_pairs = num_pairs + (count > 0)
    return total / num_pairs.clamp(min=1)


class CrossModalAttention(nn.Module):
    """Cross attention whose distribution is drawn to the one that the other modality has of itself.

    A position of the first modality attends to the second's with p = softmax(q·k). The second has its own
    view of which of its positions matter, t = softmax(scores), by which its embedding is pooled. Added to a
    loss, KL(p ‖ t) draws the first's view to the second's; t itself gets no gradient from it.

    Its layers don't have the names of those that tensor parallelism splits: the mean is over all heads.

    Args:
        width: of the first modality.
        other_width: of the second.
        num_heads: divides `width`.
    """

    def __init__(self, width: int, other_width: int, num_heads: int) -> None:
        super().__init__()
        self.head_dim = width // num_heads
        self.to_query = nn.Linear(width, width)
        self.to_key = nn.Linear(other_width, width)
        self.to_value = nn.Linear(other_width, width)
        self.to_output = nn.Linear(width, width)
        self.apply(init_weights)

    def forward(
        self, x: Tensor, mask: Tensor, other: Tensor, other_mask: Tensor, scores: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Attend from one modality to the other.

        Args:
            x: (B, Q, D) of the first.
            mask: (B, Q) bool, its valid positions.
            other: (B, P, W) of the second.
            other_mask: (B, P) bool, its valid positions.
            scores: (B, P) of the second's own attention, before its softmax.

        Returns:
            What was found (B, Q, D), and the KL divergence of each row (B,), nats: the mean over valid
            positions and heads; 0 where a row lacks either modality.
        """
        other = other.masked_fill(~other_mask.unsqueeze(-1), 0)
        query = split_heads(self.to_query(x), self.head_dim) * self.head_dim**-0.5
        key = split_heads(self.to_key(other), self.head_dim)
        value = split_heads(self.to_value(other), self.head_dim)
        bias = key_bias(other_mask, torch.float32)
        log_p = (query @ key.transpose(-2, -1) + bias).log_softmax(dim=-1)  # B, H, Q, P
        log_t = (scores.detach()[:, None, None, :] + bias).log_softmax(dim=-1)
        # where both are log 0, nothing is drawn anywhere: 0 * (-inf - -inf) is to be 0
        apart = (log_p - log_t).masked_fill(~other_mask[:, None, None, :], 0)
        p = log_p.exp()
        divergence = (p * apart).sum(dim=-1).mean(dim=1)  # B, Q
        counted = mask & other_mask.any(dim=1, keepdim=True)
        kl = divergence.masked_fill(~counted, 0).sum(dim=1) / counted.sum(dim=1).clamp(min=1)
        return self.to_output(merge_heads(p.to(value.dtype) @ value)), kl
