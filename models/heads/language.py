"""From a hidden state to the next token."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..layers import init_weights
from .vocabulary import Vocabulary


class LanguageHead(nn.Module):
    """Log-probabilities of the next token: a softmax, or an adaptive one (arXiv 1609.04309).

    The adaptive one saves most where a few tokens make up most of the text, and expects them to have the
    smallest numbers, as a byte-pair tokenizer's first merges do.

    Args:
        width: of the hidden states.
        vocab_size: of the tokenizer.
        cutoffs: see `TextSpec.adaptive_cutoffs`.
    """

    def __init__(self, width: int, vocab_size: int, cutoffs: Sequence[int] = ()) -> None:
        super().__init__()
        inside = [cutoff for cutoff in cutoffs if cutoff < vocab_size]
        self.linear = None if inside else Vocabulary(width, vocab_size)
        self.adaptive = nn.AdaptiveLogSoftmaxWithLoss(width, vocab_size, inside) if inside else None
        self.apply(init_weights)

    def forward(self, hidden: Tensor) -> Tensor:
        """Log-probabilities (..., V) after hidden (..., D)."""
        if self.linear is not None:
            return self.linear(hidden).log_softmax(dim=-1)
        assert self.adaptive is not None
        return self.adaptive.log_prob(hidden.flatten(0, -2)).unflatten(0, hidden.shape[:-1])

    def nll(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Negative log-likelihoods, nats, of targets (...) after hidden (..., D)."""
        if self.linear is not None:
            return self.linear.nll(hidden, targets)
        assert self.adaptive is not None
        return -self.adaptive(hidden.flatten(0, -2), targets.flatten()).output.unflatten(0, targets.shape)
