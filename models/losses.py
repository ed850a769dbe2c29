"""How far a prediction is from its target, row by row: a batch's loss is a sum over rows on any worker.

Shape letters: B batch, T tokens, V vocabulary, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

KIND_WEIGHT = 0.2
"""Of what a marked pixel is, beside whether anything is there."""
SMOOTH = 1e-5
"""Keeps the Dice loss a number where nothing is marked and nothing found."""
IGNORED = -100
"""A target that doesn't count."""


def promoted(x: Tensor) -> Tensor:
    """In single precision at least: what half precision is too coarse for."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def marks_loss(logits: Tensor, marks: Tensor, focal_weight: float = 1.0) -> Tensor:
    """How far what is told of each pixel is from what is marked there, of each row (B,).

    Args:
        logits: (B, 1 + K, H, W) of anything, and of its being each of K kinds; (B, 1, H, W) for one kind.
        marks: (B, H, W) int64: 0 nothing, k the finding k - 1; a row of -1 is not known, and counts 0.
        focal_weight: see `dice_focal`.
    """
    logits = promoted(logits)
    marked = marks > 0
    found = dice_focal(logits[:, 0], marked, focal_weight=focal_weight)
    if logits.shape[1] > 1:
        nll = F.cross_entropy(logits[:, 1:], (marks - 1).clamp(min=0), reduction="none")
        each = marked.sum(dim=(1, 2)).clamp(min=1)
        found = found + KIND_WEIGHT * nll.masked_fill(~marked, 0).sum(dim=(1, 2)) / each
    return found.masked_fill(marks.flatten(1)[:, 0] < 0, 0)


def dice_focal(logits: Tensor, marked: Tensor, gamma: float = 2.0, focal_weight: float = 1.0) -> Tensor:
    """Soft Dice (arXiv 1606.04797) plus focal loss (arXiv 1708.02002) of each row (B,).

    Dice counts where anything is marked: elsewhere nothing can be overlapped, and the focal loss tells of it.

    Args:
        logits: (B, H, W).
        marked: (B, H, W) bool.
        gamma: how much less what is told already counts.
        focal_weight: of the focal loss beside Dice.
    """
    target = marked.to(logits.dtype)
    likely = logits.sigmoid()
    both, each = (likely * target).sum(dim=(1, 2)), (likely + target).sum(dim=(1, 2))
    dice = target.amax(dim=(1, 2)) * (1 - (2 * both + SMOOTH) / (each + SMOOTH))
    nll = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    # the probability of what isn't so, in logarithms: where it is tiny, its power must not lose it
    missed = F.logsigmoid(-logits * (2 * target - 1))
    return dice + focal_weight * ((gamma * missed).exp() * nll).mean(dim=(1, 2))


def classification_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood (B,), nats, of labels (B,) by logits (B, K); 0 where the label is -1."""
    return F.cross_entropy(promoted(logits), labels, ignore_index=-1, reduction="none")
