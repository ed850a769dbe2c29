"""How far a prediction is from its target, row by row: a batch's loss is a sum over rows on any worker.

Shape letters: B batch, T tokens, V vocabulary, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

SMOOTH = 1e-5
"""Keeps the Dice loss a number where nothing is marked and nothing found."""
IGNORED = -100
"""A target that doesn't count."""


def promoted(x: Tensor) -> Tensor:
    """In single precision at least: what half precision is too coarse for."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def dice_focal(logits: Tensor, marks: Tensor, gamma: float = 2.0, focal_weight: float = 1.0) -> Tensor:
    """Soft Dice (arXiv 1606.04797) plus focal loss (arXiv 1708.02002) of each row (B,), both of sigmoids.

    Dice is the mean over those findings that the row has: where a finding is rare, nothing everywhere would
    else be nearly right. Of what isn't there the focal loss tells.

    Args:
        logits: (B, K, H, W).
        marks: (B, H, W) int64: 0 nothing, k the finding k - 1; a row of -1 is not known, and counts 0.
        gamma: how much less what is told already counts.
        focal_weight: of the focal loss beside Dice.
    """
    logits = promoted(logits)
    kinds = torch.arange(1, logits.shape[1] + 1, device=marks.device)
    target = (marks.unsqueeze(1) == kinds[:, None, None]).to(logits.dtype)
    likely = logits.sigmoid()
    both = (likely * target).sum(dim=(2, 3))
    each = (likely + target).sum(dim=(2, 3))
    there = target.amax(dim=(2, 3))
    dice = there * (1 - (2 * both + SMOOTH) / (each + SMOOTH))
    dice = dice.sum(dim=1) / there.sum(dim=1).clamp(min=1)
    nll = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    # the probability of what isn't so, in logarithms: where it is tiny, its power must not lose it
    missed = F.logsigmoid(-logits * (2 * target - 1))
    focal = ((gamma * missed).exp() * nll).mean(dim=(1, 2, 3))
    return (dice + focal_weight * focal).masked_fill(marks.flatten(1)[:, 0] < 0, 0)


def classification_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood (B,), nats, of labels (B,) by logits (B, K); 0 where the label is -1."""
    return F.cross_entropy(promoted(logits), labels, ignore_index=-1, reduction="none")
