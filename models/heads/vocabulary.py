"""Logits of every token of a vocabulary, and how far they are from the one that comes."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ..losses import IGNORED, promoted


class Vocabulary(nn.Linear):
    """Logits (..., V) of every token after hidden states (..., D).

    On one worker of several it has a part of the tokens, and another `nll`: see `actors.training.vocabulary`.
    """

    def nll(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Negative log-likelihoods (...), nats, of targets (...) after hidden (..., D); 0 where `IGNORED`."""
        logits = promoted(self(hidden)).flatten(0, -2)
        nll = F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORED, reduction="none")
        return nll.unflatten(0, targets.shape)

    def next_token_nll(self, hidden: Tensor, tokens: Tensor, token_mask: Tensor) -> Tensor:
        """Negative log-likelihood of position t+1's token after position t's, where both are in the text.

        Args:
            hidden: (B, T, D).
            tokens: (B, T) int64.
            token_mask: (B, T) bool.

        Returns:
            Sums over each row (B,), nats.
        """
        counted = token_mask[:, 1:] & token_mask[:, :-1]
        return self.nll(hidden[:, :-1], tokens[:, 1:].masked_fill(~counted, IGNORED)).sum(dim=1)
