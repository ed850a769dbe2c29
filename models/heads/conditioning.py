"""Feature-wise modulation of a picture's features by a text that stands beside it (FiLM, arXiv 1709.07871).

Shape letters: B rows, T tokens, D width of the text's encoder, C channels.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..layers import init_weights


class TextModulation(nn.Module):
    """From a text's hidden states to a scale and a shift of each channel (section 2.1).

    What it gives is counted from the identity, so that no text is a vector of zeros.

    Args:
        width: of the text's encoder.
        channels: of the features that are modulated.
    """

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 2 * channels)
        self.apply(init_weights)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Scales less 1, then shifts (B, 2*C), by the mean of hidden states (B, T, D) where mask (B, T)
        is True. Zeros in a row without a token.
        """
        mask = mask.unsqueeze(-1)
        pooled = hidden.masked_fill(~mask, 0).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
        return self.linear(pooled).masked_fill(~mask.any(dim=1), 0)


def modulated(features: Tensor, modulation: Tensor) -> Tensor:
    """Features (B, C, H, W) scaled and shifted by a modulation (B, 2*C); as they are where it is zero."""
    scale, shift = modulation[:, :, None, None].chunk(2, dim=1)
    return features * (1 + scale) + shift
