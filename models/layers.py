"""Layers that several encoders share.

Tensor parallelism splits a model by the names of its layers (see `actors.training.tensor`): a block's
branches have linear layers that are split by columns or by rows, and a `HeadParameter` is split by heads. So
the number of heads is always read off a tensor: on one worker of many it is a part of them. All that stands
between branches is computed position by position, and a worker may have a part of those.

Shape letters: B batch, N positions, M memory positions, H heads, K head width, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

SHORT = 128
"""Up to this many keys, it is faster without a fused kernel; see `attend`."""


BRANCHES = frozenset({"attention", "time", "frequency", "cross", "mlp"})
"""What a block adds to the states that go through it: their positions meet nowhere else."""
COLUMN = frozenset({"query", "key", "value", "up", "per_head"})
"""Linear layers that are split by columns of their output."""
ROW = frozenset({"output", "down"})
"""Linear layers that are split by columns of their input."""
MASK = 2**32 - 1
HALF = frozenset({torch.float16, torch.bfloat16})


class KeyValues(NamedTuple):
    """What attention reads of the past, projected.

    Attributes:
        key, value: (B, H, M, K).
    """

    key: Tensor
    value: Tensor

    def part(self, first: int, last: int) -> KeyValues:
        """Positions `first` to `last`."""
        return KeyValues(self.key[:, :, first:last], self.value[:, :, first:last])

    def followed_by(self, more: KeyValues) -> KeyValues:
        """These positions, then more."""
        return KeyValues(torch.cat((self.key, more.key), dim=2), torch.cat((self.value, more.value), dim=2))

    def last(self, count: int) -> KeyValues:
        """The last `count` positions, or all if there are fewer."""
        length = self.key.shape[2]
        return self.part(max(0, length - count), length)


class HeadParameter(nn.Module):
    """A parameter with one slice per attention head.

    Args:
        value: initial weight; its first dimension counts the heads.
    """

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(value)

    def forward(self) -> Tensor:
        """The weight of the heads that live here."""
        return self.weight


class MLP(nn.Module):
    """Two linear layers with GELU between.

    Args:
        width: of input and output.
        ratio: hidden width over `width`.
    """

    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        self.up = nn.Linear(width, int(width * ratio))
        self.down = nn.Linear(int(width * ratio), width)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each position of x (..., D)."""
        return self.down(F.gelu(self.up(x)))


class RowDropout(nn.Module):
    """Dropout whose mask is a function of a row's seed, the layer and the position, and of nothing else.

    A random generator would draw another mask on every mesh, for every microbatch, and when a layer is
    computed again in the backward pass. This drops the same of a row wherever it is computed.

    Args:
        rate: share that is dropped (arXiv 1207.0580); what stays is scaled up, so that the mean is the same.
        whole: drop all of a row or nothing (stochastic depth, arXiv 1603.09382).

    Attributes:
        salt: what tells this layer's masks from another's; `MultimodalModel` sets it.
        part: which of several parts of the positions, all as long, it is given.
    """

    def __init__(self, rate: float, *, whole: bool = False) -> None:
        super().__init__()
        self.rate, self.whole, self.salt, self.part = rate, whole, 0, 0

    def forward(self, x: Tensor, seeds: Tensor | None) -> Tensor:
        """Drop of x (B, ...) by seeds (B,) int64 of its rows; without seeds, nothing."""
        if seeds is None or not self.rate:
            return x
        inner = tuple(1 for _ in x.shape[1:]) if self.whole else x.shape[1:]
        row = scramble(scramble((seeds & MASK) ^ self.salt) ^ (seeds >> 32 & MASK))
        count = math.prod(inner)
        first = 0 if self.whole else self.part * count
        position = torch.arange(first, first + count, device=x.device)
        drawn = scramble(row[:, None] ^ scramble(position)).view(len(x), *inner)
        return x * (drawn >= round(self.rate * 2**32)).to(x.dtype) / (1 - self.rate)


def seeds_of_parts(seeds: Tensor, parts: int) -> Tensor:
    """Seeds (B*parts,) of rows that are parts of rows, by the seeds (B,) of these."""
    numbers = torch.arange(parts, device=seeds.device).repeat(len(seeds))
    return seeds.repeat_interleave(parts) ^ (numbers << 20)


class CrossAttention(nn.Module):
    """Multi-head attention from one sequence to another (arXiv 1706.03762, 3.2).

    Args:
        width: of queries and output.
        memory_width: of what is attended to.
        num_heads: divides `width`.
    """

    def __init__(self, width: int, memory_width: int, num_heads: int) -> None:
        super().__init__()
        self.head_dim = width // num_heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(memory_width, width)
        self.value = nn.Linear(memory_width, width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        """Attend from x (B, N, D) to memory (B, M, W) where mask (B, M) is True.

        A row without any such position gets a finite result that means nothing.
        """
        return self.look_up(x, self.project(memory), mask)

    def project(self, memory: Tensor) -> KeyValues:
        """Keys and values of memory (B, M, W)."""
        return KeyValues(
            split_heads(self.key(memory), self.head_dim), split_heads(self.value(memory), self.head_dim)
        )

    def look_up(self, x: Tensor, memory: KeyValues, mask: Tensor) -> Tensor:
        """The same as `forward`, of a memory that is projected already."""
        query = self._queries(x)
        mixed = attend(query, memory.key, memory.value, key_bias(mask, query.dtype))
        return self.output(merge_heads(mixed))

    def looked_at(self, x: Tensor, memory: KeyValues, mask: Tensor) -> Tensor:
        """How much of what x (B, N, D) looks up is from where: (B, N, M), the mean of heads."""
        query = self._queries(x)
        scores = query @ memory.key.transpose(-2, -1) + key_bias(mask, query.dtype)
        return scores.softmax(dim=-1).mean(dim=1)

    def _queries(self, x: Tensor) -> Tensor:
        return split_heads(self.query(x), self.head_dim) * self.head_dim**-0.5


def scramble(x: Tensor) -> Tensor:
    """Map integers x below 2**32 to others, one to one; every bit hangs on every bit (MurmurHash3)."""
    x = (x ^ x >> 16) * 0x85EBCA6B & MASK
    x = (x ^ x >> 13) * 0xC2B2AE35 & MASK
    return x ^ x >> 16


def split_heads(x: Tensor, head_dim: int) -> Tensor:
    """(B, N, H*K) → (B, H, N, K), for as many heads as there are."""
    return x.unflatten(-1, (-1, head_dim)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, H, N, K) → (B, N, H*K)."""
    return x.transpose(1, 2).flatten(2)


def key_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Bias (B, 1, 1, M) that hides the keys where mask (B, M) is False.

    A row without a single key would have no softmax; it is left unmasked.
    """
    hidden = ~mask & mask.any(dim=1, keepdim=True)
    zeros = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return zeros.masked_fill(hidden, float("-inf"))[:, None, None, :]


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """Softmax attention; queries come scaled. Scores and their softmax are in single precision at least.

    Args:
        query: (B, H, N, K).
        key: (B, H, M, K).
        value: (B, H, M, K).
        bias: added to the scores, broadcast to (B, H, N, M); -inf hides a key.
    """
    return scores_in_single(_attend, query, key, value, bias)


def scores_in_single(attention: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
    """Attention in single precision at least; what it gives is of its first input's type.

    On a GPU the fused kernel does so by itself. Elsewhere half precision is widened; only the inputs are kept
    for the backward pass, which computes the rest again.
    """
    first = inputs[0]
    assert first is not None
    dtype = first.dtype
    if dtype not in HALF or first.is_cuda:
        return attention(*inputs)

    def exact(*inputs: Tensor | None) -> Tensor:
        return attention(*(x if x is None else x.float() for x in inputs)).to(dtype)

    if not torch.is_grad_enabled():
        return exact(*inputs)
    return checkpoint(exact, *inputs, use_reentrant=False, preserve_rng_state=False)


def _attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    if key.shape[2] <= SHORT and query.dtype not in HALF:
        # measured, forward and backward: (64, 16, 32, 24) on 2 cores 4.4 ms, fused 11.1 ms; on an H200 Swin
        # V2 of CIFAR-10's size in fp32 makes 42.4 steps/s, fused 34.3
        scores = query @ key.transpose(-2, -1)
        return (scores if bias is None else scores + bias).softmax(dim=-1) @ value
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=1.0)


def init_weights(module: nn.Module) -> None:
    """Draw weights from a normal cut at two sigma; zero the biases.

    A linear layer's sigma is 1/sqrt(fan-in), which keeps a signal's size at any width. The usual 0.02
    fits widths near 2,000: at 128 it starts a short training too far down.
    """
    if isinstance(module, nn.Embedding):
        nn.init.trunc_normal_(module.weight, std=0.02, a=-0.04, b=0.04)
    elif isinstance(module, nn.Linear):
        sigma = module.in_features**-0.5
        nn.init.trunc_normal_(module.weight, std=sigma, a=-2 * sigma, b=2 * sigma)
        if module.bias is not None:  # pyright: ignore[reportUnnecessaryComparison]
            nn.init.zeros_(module.bias)
