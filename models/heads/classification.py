"""From an embedding to the logits of categories."""

from __future__ import annotations

from torch import Tensor, nn

from ..layers import init_weights


class ClassificationHead(nn.Module):
    """One linear layer.

    Args:
        embed_dim: of the embedding.
        num_classes: how many categories.
    """

    def __init__(self, embed_dim: int, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(embed_dim, num_classes)
        self.apply(init_weights)

    def forward(self, embedding: Tensor) -> Tensor:
        """Logits (B, K) of embeddings (B, E)."""
        return self.linear(embedding)
