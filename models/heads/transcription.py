"""From an audio encoder's states to text, without knowing which state belongs to which token."""

from __future__ import annotations

from itertools import groupby

from torch import Tensor, nn
from torch.nn import functional as F

from ..layers import init_weights

BLANK = 0
"""The token that says nothing: the tokenizer's padding, which no text has."""


class TranscriptionHead(nn.Module):
    """Log-probabilities of a token, or none, at each position (CTC, Graves et al., ICML 2006).

    Args:
        width: of the hidden states.
        vocab_size: of the tokenizer.
    """

    def __init__(self, width: int, vocab_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, vocab_size)
        self.apply(init_weights)

    def forward(self, hidden: Tensor) -> Tensor:
        """Log-probabilities (B, T, V) of hidden (B, T, D)."""
        return self.linear(hidden).log_softmax(dim=-1)


def fits(mask: Tensor, tokens: Tensor, token_mask: Tensor) -> Tensor:
    """Whether each row has a token, and a position for each, and for the blank between two that are the same.

    Args:
        mask: (B, T) bool, the valid positions.
        tokens: (B, L) int64.
        token_mask: (B, L) bool; tokens come first.

    Returns:
        (B,) bool.
    """
    repeats = (tokens[:, 1:] == tokens[:, :-1]) & token_mask[:, 1:]
    lengths = token_mask.sum(dim=1)
    return (lengths > 0) & (mask.sum(dim=1) >= lengths + repeats.sum(dim=1))


def ctc_nll(log_probs: Tensor, mask: Tensor, tokens: Tensor, token_mask: Tensor) -> Tensor:
    """Negative log-likelihood, nats, of each row's text over all alignments (B,).

    A row whose text doesn't fit, as `fits` says, counts as 0.

    Args:
        log_probs: (B, T, V).
        mask: (B, T) bool, the valid positions; they come first.
        tokens: (B, L) int64, without BOS and EOS.
        token_mask: (B, L) bool; tokens come first.
    """
    positions, lengths = mask.sum(dim=1), token_mask.sum(dim=1)
    nll = F.ctc_loss(
        log_probs.transpose(0, 1), tokens, positions, lengths, BLANK, reduction="none", zero_infinity=True
    )
    return nll.masked_fill(~fits(mask, tokens, token_mask), 0)


def greedy(log_probs: Tensor, mask: Tensor) -> list[list[int]]:
    """The likeliest token of each position, repetitions joined and blanks dropped, for each row.

    Args:
        log_probs: (B, T, V).
        mask: (B, T) bool, the valid positions; they come first.
    """
    best, lengths = log_probs.argmax(dim=-1).tolist(), mask.sum(dim=1).tolist()
    return [
        [token for token, _ in groupby(row[:length]) if token != BLANK]
        for row, length in zip(best, lengths, strict=True)
    ]


def beam_search(log_probs: Tensor, mask: Tensor, beams: int) -> list[tuple[list[int], float]]:
    """The likeliest text of each row and its log-probability, over all alignments that stay in the beam.

    Args:
        log_probs: (B, T, V).
        mask: (B, T) bool, the valid positions; they come first.
        beams: texts kept at each position.
    """
    from flashlight.lib.text.decoder import (
        CriterionType,
        LexiconFreeDecoder,
        LexiconFreeDecoderOptions,
        ZeroLM,
    )

    vocab_size = log_probs.shape[2]
    options = LexiconFreeDecoderOptions(
        beam_size=beams,
        beam_size_token=vocab_size,
        beam_threshold=1e9,
        lm_weight=0.0,
        sil_score=0.0,
        log_add=True,
        criterion_type=CriterionType.CTC,
    )
    decoder = LexiconFreeDecoder(options, ZeroLM(), -1, BLANK, [])
    found: list[tuple[list[int], float]] = []
    for row, length in zip(log_probs.detach().float().cpu(), mask.sum(dim=1).tolist(), strict=True):
        scores = row[:length].contiguous()
        best = decoder.decode(scores.data_ptr(), length, vocab_size)[0]
        path = [int(token) for token in best.tokens]
        found.append(([token for token, _ in groupby(path) if token not in (BLANK, -1)], float(best.score)))
    return found
