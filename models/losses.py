"""What the model is trained for, but for alignment.

Shape letters: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

IGNORED = -100


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
