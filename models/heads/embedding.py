"""From hidden states to one unit vector."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ..layers import init_weights


class EmbeddingHead(nn.Module):
    """Attention pooling over the valid positions, a projection, and unit length.

    Args:
        width: of the hidden states.
        embed_dim: of the embedding.
    """

    def __init__(self, width: int, embed_dim: int) -> None:
        super().__init__()
        self.score = nn.Linear(width, 1)
        self.projection = nn.Linear(width, embed_dim)
        self.apply(init_weights)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Embed hidden (B, N, D), read only where mask (B, N) is True, as unit vectors (B, E).

        A row without a valid position gets a vector that means nothing, the same for all such rows.
        """
        hidden = hidden.masked_fill(~mask.unsqueeze(-1), 0)
        weights = self.scores(hidden, mask).softmax(dim=-1)
        pooled = (weights.unsqueeze(1) @ hidden).squeeze(1)
        return F.normalize(self.projection(pooled), dim=-1)

    def scores(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """How much each position (B, N) counts, before the softmax; -inf where mask (B, N) is False."""
        # no softmax over nothing: such a row is left unmasked, and all its positions are 0
        ignored = ~mask & mask.any(dim=1, keepdim=True)
        scores = self.score(hidden.masked_fill(~mask.unsqueeze(-1), 0)).squeeze(-1)
        return scores.masked_fill(ignored, float("-inf"))
