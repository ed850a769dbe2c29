"""Transformer-XL (arXiv 1901.02860): causal attention by relative position, with segment memory.

Shape letters: B batch, T tokens of a segment, M remembered positions, L = M + T, H heads,
K head width, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import MLP, HeadParameter, attend, init_weights, merge_heads, split_heads
from .spec import TextSpec


class RelativeAttention(nn.Module):
    """Causal attention whose scores know only how far apart query and key are (section 3.3).

    A score is (q + u)·k + (q + v)·r, with r the projected sinusoid of the distance and u, v one
    vector per head.

    Args:
        width: even.
        num_heads: divides `width`.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.width = width
        self.head_dim = width // num_heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.per_head = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.content_bias = HeadParameter(torch.zeros(num_heads, 1, self.head_dim))
        self.distance_bias = HeadParameter(torch.zeros(num_heads, 1, self.head_dim))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Attend from x (B, T, D) to context (B, L, D), whose last T positions are those of x."""
        length, past = context.shape[1], context.shape[1] - x.shape[1]
        query = split_heads(self.query(x), self.head_dim)
        key = split_heads(self.key(context), self.head_dim)
        value = split_heads(self.value(context), self.head_dim)
        distances = torch.arange(length - 1, -1, -1, device=x.device)
        relative = self.per_head(sinusoid(distances, self.width).to(x.dtype))
        relative = relative.unflatten(-1, (-1, self.head_dim)).permute(1, 2, 0)
        scale = self.head_dim**-0.5
        bias = align_distances((query + self.distance_bias()) * scale @ relative)
        future = torch.ones(x.shape[1], length, dtype=torch.bool, device=x.device).triu(past + 1)
        bias = bias.masked_fill(future, float("-inf"))
        return self.output(merge_heads(attend((query + self.content_bias()) * scale, key, value, bias)))


class TextBlock(nn.Module):
    """Relative attention and an MLP, each on a normalised input.

    Args:
        width: even.
        num_heads: divides `width`.
        mlp_ratio: hidden width of the MLP over `width`.
    """

    def __init__(self, width: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(width)
        self.attention = RelativeAttention(width, num_heads)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = MLP(width, mlp_ratio)

    def forward(self, hidden: Tensor, memory: Tensor | None = None) -> Tensor:
        """Transform hidden (B, T, D); memory (B, M, D) is this block's input for earlier segments."""
        context = hidden if memory is None else torch.cat((memory.detach(), hidden), dim=1)
        context = self.norm_attention(context)
        hidden = hidden + self.attention(context[:, -hidden.shape[1] :], context)
        return hidden + self.mlp(self.norm_mlp(hidden))


class TextEncoder(nn.Module):
    """Transformer-XL without a head.

    Args:
        spec: sizes.
        vocab_size: of the tokenizer.

    Attributes:
        width: of the output.
    """

    def __init__(self, spec: TextSpec, vocab_size: int) -> None:
        super().__init__()
        self.max_tokens = spec.max_tokens
        self.memory_length = spec.memory_length
        self.width = spec.d_model
        self.embed = nn.Embedding(vocab_size, spec.d_model)
        self.blocks = nn.ModuleList(
            TextBlock(spec.d_model, spec.num_heads, spec.mlp_ratio) for _ in range(spec.num_layers)
        )
        self.norm = nn.LayerNorm(spec.d_model)
        self.apply(init_weights)

    def forward(
        self, tokens: Tensor, memory: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Encode a segment of tokens (B, T), given what an earlier call remembered.

        Returns:
            The hidden states (B, T, width), and each block's memory (B, up to memory_length, width)
            for the segment that follows. Gradients never flow into a memory.
        """
        if tokens.shape[1] > self.max_tokens:
            raise ValueError(f"a segment of {tokens.shape[1]} tokens, max_tokens is {self.max_tokens}")
        hidden = self.embed(tokens)
        remembered: list[Tensor] = []
        for block, past in zip(self.blocks, memory or [None] * len(self.blocks), strict=True):
            remembered.append(self._remember(past, hidden))
            hidden = block(hidden, past)
        return self.norm(hidden), tuple(remembered)

    def _remember(self, past: Tensor | None, hidden: Tensor) -> Tensor:
        known = hidden if past is None else torch.cat((past, hidden), dim=1)
        return known[:, max(0, known.shape[1] - self.memory_length) :].detach()


def sinusoid(positions: Tensor, width: int) -> Tensor:
    """Sines, then cosines, of positions (L,) at geometric wavelengths: (L, width) (arXiv 1706.03762, 3.5)."""
    steps = torch.arange(0, width, 2, device=positions.device, dtype=torch.float32)
    angles = positions[:, None].float() * torch.exp(steps * (-9.210340371976184 / width))  # log 10,000
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


def align_distances(scores: Tensor) -> Tensor:
    """Turn scores by distance into scores by key (appendix B).

    Args:
        scores: (B, H, T, L); column c is for distance L-1-c.

    Returns:
        (B, H, T, L); column j is for key j. What lies in a query's future means nothing.
    """
    num_queries, length = scores.shape[-2:]
    padded = F.pad(scores, (1, 0)).flatten(2)  # each row one place later than the row before
    return padded[:, :, num_queries:].unflatten(2, (num_queries, length))
