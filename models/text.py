"""Transformer-XL (arXiv 1901.02860): causal attention by relative position, with segment memory.

No matrix of all queries against all keys is ever made: queries are taken in blocks of so many that a block's
scores fit in `SCORES`, and keys that none of a block sees aren't read. In training a block is computed again
in the backward pass. So memory grows with the segment and with what it remembers, each for itself.

Shape letters: B batch, T tokens of a segment, M remembered positions, L = M + T, H heads,
K head width, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .layers import (
    MLP,
    HeadParameter,
    KeyValues,
    RowDropout,
    attend,
    init_weights,
    merge_heads,
    split_heads,
)
from .spec import TextSpec

SCORES = 2**19
"""Scores of a row's head that are held at once."""
QUERIES = 32
"""A block's queries are a multiple of this: a fused kernel's remainder of one to three rows adds up 16K keys
in an order whose error is seven times as large (measured: 2.6e-6 against 3.6e-7)."""
WHOLE = 2**31
"""A segment that no text is longer than."""


class BlockCache(NamedTuple):
    """What a block keeps between tokens that are generated one after the other.

    Attributes:
        past: of the positions so far; None before the first.
        relative: (H, K, capacity) projected distances, greatest first.
    """

    past: KeyValues | None
    relative: Tensor


class RelativeAttention(nn.Module):
    """Causal attention whose scores know only how far apart query and key are (section 3.3).

    A score is (q + u)·k + (q + v)·r, with r the projected sinusoid of the distance and u, v one
    vector per head.

    Args:
        width: even.
        num_heads: divides `width`.
        window: positions that a query sees, itself included; 0 is all.
    """

    def __init__(self, width: int, num_heads: int, window: int = 0) -> None:
        super().__init__()
        self.width = width
        self.head_dim = width // num_heads
        self.window = window
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.per_head = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.content_bias = HeadParameter(torch.zeros(num_heads, 1, self.head_dim))
        self.distance_bias = HeadParameter(torch.zeros(num_heads, 1, self.head_dim))

    def forward(
        self, x: Tensor, known: Tensor | None = None, segment: int = WHOLE, memory: int = 0
    ) -> Tensor:
        """Attend within x (B, T, D), segment after segment, and to what came before.

        A segment attends to itself and to the `memory` positions before it. Everything is projected once,
        whatever the memory.

        Args:
            x: (B, T, D).
            known: (B, M+T, D) what segments remember: the positions before x, and those of x; None if x is
                one segment and nothing was before it.
            segment: positions of a segment; the last may be shorter.
            memory: positions.
        """
        num_new = x.shape[1]
        num_past = 0 if known is None else known.shape[1] - num_new
        reach = min(num_past + num_new, memory + min(segment, num_new))
        relative, live = self.distances(reach, x), self.project(x)
        remembered = None if known is None else self.project(known)
        query = self._queries(x)
        parts: list[Tensor] = []
        for start in range(0, num_new, segment):
            stop = min(start + segment, num_new)
            seen = live.part(start, stop)
            if remembered is not None:
                last = num_past + start
                seen = remembered.part(max(0, last - memory), last).followed_by(seen)
            parts.append(self._attend(query[:, :, start:stop], seen, relative))
        return self.output(merge_heads(parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)))

    def step(self, x: Tensor, cache: BlockCache, lengths: Tensor | None = None) -> tuple[Tensor, BlockCache]:
        """Attend from x (B, T, D) to what the cache holds and to itself.

        Args:
            x: (B, T, D).
            cache: of what came before.
            lengths: (B,) int64, how many of a row's last positions are some, x's included; None is all.

        Returns:
            The same as `forward` (B, T, D), and the cache with x in it, cut to its capacity.
        """
        new = self.project(x) if cache.past is None else cache.past.followed_by(self.project(x))
        new = new.last(cache.relative.shape[2])
        seen = None
        if lengths is not None:
            num_known = new.key.shape[2]
            seen = torch.arange(num_known, 0, -1, device=x.device) <= lengths[:, None]
        mixed = self._attend(self._queries(x), new, cache.relative, seen)
        return self.output(merge_heads(mixed)), BlockCache(new, cache.relative)

    def project(self, context: Tensor) -> KeyValues:
        """Keys and values of context (B, L, D)."""
        return KeyValues(
            split_heads(self.key(context), self.head_dim), split_heads(self.value(context), self.head_dim)
        )

    def distances(self, length: int, like: Tensor) -> Tensor:
        """Projected sinusoids of the distances length-1 … 0 (H, K, length), of `like`'s type and place."""
        distances = torch.arange(length - 1, -1, -1, device=like.device)
        relative = self.per_head(sinusoid(distances, self.width).to(like.dtype))
        return relative.unflatten(-1, (-1, self.head_dim)).permute(1, 2, 0)

    def _queries(self, x: Tensor) -> Tensor:
        return split_heads(self.query(x), self.head_dim) * self.head_dim**-0.5

    def _attend(
        self, query: Tensor, context: KeyValues, relative: Tensor, some: Tensor | None = None
    ) -> Tensor:
        """From queries (B, H, T, K) to the L positions that end with theirs, where some (B, L) is True.

        relative (H, K, L or more).
        """
        scale = self.head_dim**-0.5
        by_content = query + self.content_bias() * scale
        by_distance = query + self.distance_bias() * scale
        num_queries, length = query.shape[2], context.key.shape[2]
        block = max(QUERIES, SCORES // length // QUERIES * QUERIES)
        parts: list[Tensor] = []
        for start in range(0, num_queries, block):
            stop = min(start + block, num_queries)
            last = length - num_queries + stop
            first = max(0, last - (stop - start) - self.window + 1) if self.window else 0
            seen = (
                by_content[:, :, start:stop],
                by_distance[:, :, start:stop],
                context.key[:, :, first:last],
                context.value[:, :, first:last],
                relative[:, :, relative.shape[2] - (last - first) :],
                None if some is None else some[:, first:last],
            )
            if torch.is_grad_enabled() and num_queries > block:
                parts.append(checkpoint(self._block, *seen, use_reentrant=False, preserve_rng_state=False))
            else:
                parts.append(self._block(*seen))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)

    def _block(
        self,
        by_content: Tensor,
        by_distance: Tensor,
        key: Tensor,
        value: Tensor,
        relative: Tensor,
        some: Tensor | None,
    ) -> Tensor:
        """From queries (B, H, T, K) to keys (B, H, L, K), the last T of which are their own."""
        bias = align_distances(by_distance @ relative)
        num_queries, length = bias.shape[-2:]
        everything = torch.ones(num_queries, length, dtype=torch.bool, device=bias.device)
        hidden = everything.triu(length - num_queries + 1)
        if self.window:
            hidden = hidden | everything.tril(length - num_queries - self.window)
        if some is not None:
            hidden = hidden | ~some[:, None, None, :]
        # added: ONNX Runtime chooses between two tensors five times as slowly
        unseen = bias.new_zeros(hidden.shape).masked_fill(hidden, float("-inf"))
        return attend(by_content, key, value, bias + unseen)


class TextBlock(nn.Module):
    """Relative attention and an MLP, each on a normalised input.

    Args:
        width: even.
        num_heads: divides `width`.
        mlp_ratio: hidden width of the MLP over `width`.
        window: see `RelativeAttention`.
        segment: positions of a segment.
        dropout: share of each branch that is dropped in training.

    Attributes:
        memory: positions before it that a segment attends to.
        parts: of the positions, all as long, of which it is given one.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        mlp_ratio: float,
        window: int = 0,
        segment: int = WHOLE,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.segment, self.memory, self.parts = segment, 0, 1
        self.norm_attention = nn.LayerNorm(width)
        self.attention = RelativeAttention(width, num_heads, window)
        self.drop_attention = RowDropout(dropout)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = MLP(width, mlp_ratio)
        self.drop_mlp = RowDropout(dropout)

    def forward(self, hidden: Tensor, past: Tensor | None = None, seeds: Tensor | None = None) -> Tensor:
        """Transform hidden (B, T, D); past (B, M, D) is this block's input for what came before.

        With seeds (B,) in training.
        Of more than one segment, only the input is kept for the backward pass: the rest is computed again.
        """
        if self._is_long(hidden) and torch.is_grad_enabled():
            args = hidden, past, seeds
            return checkpoint(self._transform, *args, use_reentrant=False, preserve_rng_state=False)
        return self._transform(hidden, past, seeds)

    def step(self, hidden: Tensor, cache: BlockCache) -> tuple[Tensor, BlockCache]:
        """Transform hidden (B, T, D), which follows on what the cache holds."""
        mixed, cache = self.attention.step(self.norm_attention(hidden), cache)
        hidden = hidden + mixed
        return hidden + self.mlp(self.norm_mlp(hidden)), cache

    def _is_long(self, hidden: Tensor) -> bool:
        return hidden.shape[1] * self.parts > self.segment

    def _transform(self, hidden: Tensor, past: Tensor | None, seeds: Tensor | None) -> Tensor:
        known = None
        if past is not None or self._is_long(hidden):
            # no gradient flows into what a segment remembers, but it does into the weights that read it
            seen = hidden if past is None else torch.cat((past, hidden), dim=1)
            known = self.norm_attention(seen.detach())
        mixed = self.attention(self.norm_attention(hidden), known, self.segment, self.memory)
        hidden = hidden + self.drop_attention(mixed, seeds)
        return hidden + self.drop_mlp(self.mlp(self.norm_mlp(hidden)), seeds)


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
        self.window, self.tied = spec.window, spec.tied
        self.width = spec.d_model
        self.embed = nn.Embedding(vocab_size, spec.d_model)
        self.blocks = nn.ModuleList(
            TextBlock(
                spec.d_model,
                spec.num_heads,
                spec.mlp_ratio,
                spec.window,
                spec.max_tokens,
                spec.dropout,
            )
            for _ in range(spec.num_layers)
        )
        self.remember(spec.memory_length)
        self.norm = nn.LayerNorm(spec.d_model)
        self.apply(init_weights)

    def forward(
        self, tokens: Tensor, memory: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Encode tokens (B, T), given what an earlier call remembered.

        A text of more than `max_tokens` is taken segment after segment, as by a call for each.

        Returns:
            The hidden states (B, T, width), and each block's memory (B, up to memory_length, width)
            for what follows. Gradients never flow into a memory.
        """
        hidden = self.embed(tokens)
        remembered: list[Tensor] = []
        for block, past in zip(self.blocks, memory or [None] * len(self.blocks), strict=True):
            remembered.append(self._remember(past, hidden))
            hidden = block(hidden, past)
        return self.norm(hidden), tuple(remembered)

    def remember(self, length: int) -> None:
        """Let a segment attend to so many positions before it; what a window hides needs no remembering."""
        self.memory_length = min(length, self.window - 1) if self.window else length
        for block in self._blocks:
            block.memory = self.memory_length

    def start(self, capacity: int) -> tuple[BlockCache, ...]:
        """Empty caches for `step`, of so many positions; to be used without gradients.

        A token sees as many, itself included, as in a segment of which memory and segment have that many.
        """
        like = self.embed.weight
        return tuple(BlockCache(None, block.attention.distances(capacity, like)) for block in self._blocks)

    def step(self, tokens: Tensor, caches: Sequence[BlockCache]) -> tuple[Tensor, tuple[BlockCache, ...]]:
        """Encode tokens (B, T) that follow on those the caches hold.

        Returns:
            The hidden states (B, T, width) and the caches with these tokens in them.
        """
        hidden, kept = self.embed(tokens), []
        for block, cache in zip(self._blocks, caches, strict=True):
            hidden, cache = block.step(hidden, cache)
            kept.append(cache)
        return self.norm(hidden), tuple(kept)

    @property
    def _blocks(self) -> list[TextBlock]:
        return [block for block in self.blocks if isinstance(block, TextBlock)]

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
