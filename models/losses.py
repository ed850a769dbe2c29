"""How far a prediction is from its target, row by row: a batch's loss is a sum over rows on any worker.

Shape letters: B batch, T tokens, V vocabulary, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORED = -100
"""A target that doesn't count."""


def promoted(x: Tensor) -> Tensor:
    """In single precision at least: what half precision is too coarse for."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def classification_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood (B,), nats, of labels (B,) by logits (B, K); 0 where the label is -1."""
    return F.cross_entropy(promoted(logits), labels, ignore_index=-1, reduction="none")
