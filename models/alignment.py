"""Drawing modalities together: InfoNCE against many negatives, and cross attention that agrees.

Shape letters: N rows, E embedding, K past rows, M modalities; B batch, Q positions of the one that asks,
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
class Past:
    """Embeddings of earlier batches, as negatives (momentum contrast's queue, arXiv 1911.05722, 3.2).

    Attributes:
        embeddings: modality → (K, E), without gradient.
        present: (K, M) bool; a row that never was has none.
        groups: (K,) int64.
    """

    embeddings: Mapping[str, Tensor]
    present: Tensor
    groups: Tensor

    @classmethod
    def empty(cls, size: int, widths: Mapping[str, int], device: torch.device) -> Past:
        """No rows yet, and room for `size`."""
        return cls(
            {m: torch.zeros(size, width, device=device) for m, width in widths.items()},
            torch.zeros(size, len(MODALITIES), dtype=torch.bool, device=device),
            torch.full((size,), -1, dtype=torch.int64, device=device),
        )

    def followed_by(self, embeddings: Mapping[str, Tensor], present: Tensor, groups: Tensor) -> Past:
        """The last K of these rows and N new ones: (N, E), (N, M), (N,)."""

        def push(old: Tensor, new: Tensor) -> Tensor:
            return torch.cat((old, new.detach().to(old.dtype)))[-len(old) :]

        if not len(self.groups):
            return self
        return Past(
            {m: push(rows, embeddings[m]) for m, rows in self.embeddings.items()},
            push(self.present, present),
            push(self.groups, groups),
        )


def info_nce(
    a: Tensor,
    b: Tensor,
    scale: Tensor,
    valid: Tensor,
    same: Tensor | None = None,
    past: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
) -> Tensor:
    """Symmetric InfoNCE: row i of `a` belongs to row i of `b` (arXiv 1807.03748; 2103.00020, figure 3).

    Args:
        a: (N, E) unit vectors.
        b: (N, E) unit vectors.
        scale: inverse temperature, scalar.
        valid: (N,) bool; other rows are neither queries nor negatives, and are never read.
        same: (N, N) bool; [i, j] says that row j is a right answer for row i too, so no negative.
        past: more negatives for the rows of `a`, and for those of `b`: (K, E) unit vectors each, and (N, K)
            bool, which of them are one to a row.

    Returns:
        Mean over the valid rows and both directions; 0 if there are none.
    """
    a, b = (x.masked_fill(~valid.unsqueeze(-1), 0) for x in (a, b))
    logits = scale * a @ b.T
    excluded = ~valid.expand(len(a), -1)
    if same is not None:
        excluded = excluded | same
    excluded = excluded & ~torch.eye(len(a), dtype=torch.bool, device=a.device)
    target = torch.arange(len(a), device=a.device)
    total = logits.new_zeros(len(a))
    for i, (queries, scores) in enumerate(((a, logits), (b, logits.T))):
        scores = scores.masked_fill(excluded, float("-inf"))
        if past is not None:
            vectors, counts = past[i]
            more = scale * queries @ vectors.to(queries.dtype).T
            scores = torch.cat((scores, more.masked_fill(~counts, float("-inf"))), dim=1)
        total = total + F.cross_entropy(scores, target, reduction="none")
    return (total / 2).masked_fill(~valid, 0).sum() / valid.sum().clamp(min=1)


def contrastive_loss(
    embeddings: Mapping[str, Tensor],
    present: Tensor,
    scale: Tensor,
    groups: Tensor | None = None,
    past: Past | None = None,
) -> Tensor:
    """Mean InfoNCE over every two modalities that at least one row has both of.

    Args:
        embeddings: modality → (N, E) unit vectors.
        present: (N, M) bool, in the order of `MODALITIES`.
        scale: inverse temperature, scalar.
        groups: (N,) int64; rows of a group share a caption, and are no negatives of each other.
        past: more negatives; rows of the same group are none. Needs `groups`.
    """
    same = None if groups is None else groups[:, None] == groups[None, :]
    total, num_pairs = scale.new_zeros(()), scale.new_zeros(())
    for first, second in combinations([m for m in MODALITIES if m in embeddings], 2):
        ours = [MODALITIES.index(first), MODALITIES.index(second)]
        valid = present[:, ours].all(dim=1)
        more = None
        if past is not None and groups is not None:
            other = groups[:, None] != past.groups[None, :]
            more = (
                (past.embeddings[second], other & past.present[:, ours[1]]),
                (past.embeddings[first], other & past.present[:, ours[0]]),
            )
        total = total + info_nce(embeddings[first], embeddings[second], scale, valid, same, more)
        num_pairs = num_pairs + valid.any()
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
