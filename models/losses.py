"""What the model is trained for.

Shape letters: N rows, E embedding, B batch, T tokens, V vocabulary, M modalities.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional as F

from .spec import MODALITIES

IGNORED = -100


def info_nce(a: Tensor, b: Tensor, scale: Tensor, valid: Tensor, same: Tensor | None = None) -> Tensor:
    """Symmetric InfoNCE: row i of `a` belongs to row i of `b` (arXiv 1807.03748; 2103.00020, figure 3).

    Args:
        a: (N, E) unit vectors.
        b: (N, E) unit vectors.
        scale: inverse temperature, scalar.
        valid: (N,) bool; other rows are neither queries nor negatives, and are never read.
        same: (N, N) bool; [i, j] says that row j is a right answer for row i too, so no negative.

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
    directions = [
        F.cross_entropy(scores.masked_fill(excluded, float("-inf")), target, reduction="none")
        for scores in (logits, logits.T)
    ]
    nll = (directions[0] + directions[1]) / 2
    return nll.masked_fill(~valid, 0).sum() / valid.sum().clamp(min=1)


def contrastive_loss(
    embeddings: Mapping[str, Tensor], present: Tensor, scale: Tensor, groups: Tensor | None = None
) -> Tensor:
    """Mean InfoNCE over every two modalities that at least one row has both of.

    Args:
        embeddings: modality → (N, E) unit vectors.
        present: (N, M) bool, in the order of `MODALITIES`.
        scale: inverse temperature, scalar.
        groups: (N,) int64; rows of a group share a caption, and are no negatives of each other.
    """
    same = None if groups is None else groups[:, None] == groups[None, :]
    total, num_pairs = scale.new_zeros(()), scale.new_zeros(())
    for first, second in combinations([m for m in MODALITIES if m in embeddings], 2):
        valid = present[:, MODALITIES.index(first)] & present[:, MODALITIES.index(second)]
        total = total + info_nce(embeddings[first], embeddings[second], scale, valid, same)
        num_pairs = num_pairs + valid.any()
    return total / num_pairs.clamp(min=1)


def caption_loss(logits: Tensor, tokens: Tensor, token_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Next-token loss: position t's logits against token t+1, where both are in the text.

    Args:
        logits: (B, T, V).
        tokens: (B, T) int64.
        token_mask: (B, T) bool.

    Returns:
        Sum of the negative log-likelihoods, nats, and how many tokens it is over.
    """
    counted = token_mask[:, 1:] & token_mask[:, :-1]
    targets = tokens[:, 1:].masked_fill(~counted, IGNORED)
    rows = logits[:, :-1].flatten(0, 1)
    nll = F.cross_entropy(rows, targets.flatten(), ignore_index=IGNORED, reduction="sum")
    return nll, counted.sum()
