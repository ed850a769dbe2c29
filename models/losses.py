"""How far a prediction is from its target, row by row: a batch's loss is a sum over rows on any worker.

Shape letters: B batch, T tokens, V vocabulary, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORED = -100


def promoted(x: Tensor) -> Tensor:
    """In single precision at least: what half precision is too coarse for."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def next_token_nll(logits: Tensor, tokens: Tensor, token_mask: Tensor) -> Tensor:
    """Negative log-likelihood of position t+1's token by position t's logits, where both are in the text.

    Args:
        logits: (B, T, V).
        tokens: (B, T) int64.
        token_mask: (B, T) bool.

    Returns:
        Sums over each row (B,), nats.
    """
    counted = token_mask[:, 1:] & token_mask[:, :-1]
    targets = tokens[:, 1:].masked_fill(~counted, IGNORED)
    rows = promoted(logits[:, :-1].flatten(0, 1))
    nll = F.cross_entropy(rows, targets.flatten(), ignore_index=IGNORED, reduction="none")
    return nll.unflatten(0, targets.shape).sum(dim=1)


def classification_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood (B,), nats, of labels (B,) by logits (B, K); 0 where the label is -1."""
    return F.cross_entropy(promoted(logits), labels, ignore_index=-1, reduction="none")
