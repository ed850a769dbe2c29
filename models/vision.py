"""Swin Transformer V2 (arXiv 2111.09883): windowed cosine attention on a hierarchy of scales.

Shape letters: B batch, R feature map's side, N = R*R positions, W windows, A window's area,
H heads, K head width, C channels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import MLP, HeadParameter, attend, init_weights
from .spec import VisionSpec

MAX_LOGIT_SCALE = math.log(100.0)
"""The learned temperature is at least 0.01 (section 3.2)."""
BIAS_HIDDEN = 512
"""Hidden width of the network that gives the position bias."""


class PatchEmbedding(nn.Module):
    """Cut pictures into patches and project each.

    Args:
        patch_size: pixels.
        channels: of the output.
    """

    def __init__(self, patch_size: int, channels: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.projection = nn.Conv2d(3, channels, patch_size, patch_size)
        self.norm = nn.LayerNorm(channels)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, S, S) → (B, N, C); sides that are no multiple of a patch are padded with zeros."""
        bottom, right = (-side % self.patch_size for side in image.shape[-2:])
        if bottom or right:
            image = F.pad(image, (0, right, 0, bottom))
        return self.norm(self.projection(image).flatten(2).transpose(1, 2))


class PositionBias(nn.Module):
    """Bias of every two positions of a window, from their log-spaced offset (section 3.3).

    The bias is 16 * sigmoid of a small network, as in the authors' code.

    Args:
        window: side of the window.
        num_heads: biases of each pair.
    """

    offsets: Tensor
    pairs: Tensor

    def __init__(self, window: int, num_heads: int) -> None:
        super().__init__()
        self.window = window
        self.hidden = nn.Linear(2, BIAS_HIDDEN)
        self.per_head = nn.Linear(BIAS_HIDDEN, num_heads, bias=False)
        self.register_buffer("offsets", log_offsets(window), persistent=False)
        self.register_buffer("pairs", offset_of_pairs(window), persistent=False)

    def forward(self) -> Tensor:
        """Bias of all pairs (H, A, A)."""
        area = self.window**2
        table = self.per_head(F.relu(self.hidden(self.offsets)))
        bias = (16 * torch.sigmoid(table)).index_select(0, self.pairs)
        return bias.view(area, area, -1).permute(2, 0, 1)


class WindowAttention(nn.Module):
    """Scaled cosine attention within windows (section 3.2).

    Args:
        channels: of input and output.
        num_heads: divides `channels`.
        window: side of a window.
        num_windows: windows of a picture.
    """

    def __init__(self, channels: int, num_heads: int, window: int, num_windows: int) -> None:
        super().__init__()
        self.head_dim = channels // num_heads
        self.num_windows = num_windows
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels, bias=False)  # as in the authors' code
        self.value = nn.Linear(channels, channels)
        self.output = nn.Linear(channels, channels)
        self.logit_scale = HeadParameter(torch.full((num_heads, 1, 1), math.log(10.0)))
        self.position_bias = PositionBias(window, num_heads)

    def forward(self, x: Tensor, hidden: Tensor | None) -> Tensor:
        """Attend within each window.

        Args:
            x: (B, W*A, C), window after window.
            hidden: (W, A, A) bool, True where a query must not see a key; None hides nothing.
        """
        bias = self.position_bias().unsqueeze(0).expand(self.num_windows, -1, -1, -1)
        if hidden is not None:
            bias = bias.masked_fill(hidden.unsqueeze(1), float("-inf"))
        scale = self.logit_scale().clamp(max=MAX_LOGIT_SCALE).exp().repeat(self.num_windows, 1, 1)
        query = F.normalize(self._split(self.query(x)), dim=-1) * scale
        key = F.normalize(self._split(self.key(x)), dim=-1)
        mixed = attend(query, key, self._split(self.value(x)), bias.flatten(0, 1))
        mixed = mixed.unflatten(1, (self.num_windows, -1)).transpose(2, 3)
        return self.output(mixed.flatten(3).flatten(1, 2))

    def _split(self, x: Tensor) -> Tensor:
        """(B, W*A, H*K) → (B, W*H, A, K): windows are as independent as heads."""
        x = x.unflatten(1, (self.num_windows, -1)).unflatten(-1, (-1, self.head_dim))
        return x.transpose(2, 3).flatten(1, 2)


class SwinBlock(nn.Module):
    """Windowed attention and an MLP, each normalised before it is added (res-post-norm, section 3.2).

    Args:
        channels: of input and output.
        num_heads: divides `channels`.
        resolution: side of the feature map.
        window: side of a window; the whole map is one window when it is no larger.
        shift: how far windows are shifted against the map.
        mlp_ratio: hidden width of the MLP over `channels`.
    """

    windows: Tensor
    inverse: Tensor
    hidden: Tensor | None

    def __init__(
        self, channels: int, num_heads: int, resolution: int, window: int, shift: int, mlp_ratio: float
    ) -> None:
        super().__init__()
        if resolution <= window:
            window, shift = resolution, 0
        windows, inverse, hidden = window_tables(resolution, window, shift)
        self.is_one_window = resolution == window
        self.attention = WindowAttention(channels, num_heads, window, len(hidden))
        self.norm_attention = nn.LayerNorm(channels)
        self.mlp = MLP(channels, mlp_ratio)
        self.norm_mlp = nn.LayerNorm(channels)
        self.register_buffer("windows", windows, persistent=False)
        self.register_buffer("inverse", inverse, persistent=False)
        self.register_buffer("hidden", hidden if hidden.any() else None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) → (B, N, C)."""
        if self.is_one_window:
            mixed = self.attention(x, None)
        else:
            mixed = self.attention(x.index_select(1, self.windows), self.hidden).index_select(1, self.inverse)
        x = x + self.norm_attention(mixed)
        return x + self.norm_mlp(self.mlp(x))


class PatchMerging(nn.Module):
    """Join each 2 × 2 positions into one of twice the channels; an odd side is padded with zeros.

    Args:
        channels: of the input.
        resolution: side of the input.
    """

    def __init__(self, channels: int, resolution: int) -> None:
        super().__init__()
        self.resolution = resolution
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)
        self.norm = nn.LayerNorm(2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) → (B, ceil(R/2)**2, 2*C)."""
        x = x.unflatten(1, (self.resolution, self.resolution))
        if odd := self.resolution % 2:
            x = F.pad(x, (0, 0, 0, odd, 0, odd))
        x = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))  # B, row, row's parity, column, its parity, C
        x = x.permute(0, 1, 3, 4, 2, 5).flatten(3).flatten(1, 2)
        return self.norm(self.reduction(x))


class VisionEncoder(nn.Module):
    """Swin Transformer V2 without a head.

    Args:
        spec: sizes.

    Attributes:
        width: channels of the output.
    """

    def __init__(self, spec: VisionSpec) -> None:
        super().__init__()
        self.image_size = spec.image_size
        self.embed = PatchEmbedding(spec.patch_size, spec.embed_dim)
        self.blocks = nn.ModuleList()
        channels, resolution = spec.embed_dim, -(-spec.image_size // spec.patch_size)
        for scale, (depth, heads) in enumerate(zip(spec.depths, spec.num_heads, strict=True)):
            if scale > 0:
                self.blocks.append(PatchMerging(channels, resolution))
                channels, resolution = 2 * channels, (resolution + 1) // 2
            for i in range(depth):
                shift = spec.window_size // 2 if i % 2 else 0
                self.blocks.append(
                    SwinBlock(channels, heads, resolution, spec.window_size, shift, spec.mlp_ratio)
                )
        self.norm = nn.LayerNorm(channels)
        self.width = channels
        self.apply(init_weights)

    def forward(self, image: Tensor) -> Tensor:
        """Encode pictures (B, 3, S, S) as (B, N, width)."""
        if image.shape[-2:] != (self.image_size, self.image_size):
            raise ValueError(f"pictures are {tuple(image.shape[-2:])}, image_size is {self.image_size}")
        x = self.embed(image)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def log_offsets(window: int) -> Tensor:
    """Every offset within a window, row-major, in log space ((2*window-1)**2, 2).

    Offsets are scaled to [-8, 8], then sign(x) * log2(1 + |x|) / log2(8) (equation 4, authors' code).
    """
    steps = torch.arange(1 - window, window, dtype=torch.float32) * (8 / max(1, window - 1))
    steps = steps.sign() * torch.log2(1 + steps.abs()) / math.log2(8)
    return torch.cartesian_prod(steps, steps)


def offset_of_pairs(window: int) -> Tensor:
    """Row of `log_offsets` for query i and key j, flat (A*A,)."""
    row, column = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    row, column = row.flatten(), column.flatten()
    down = row[:, None] - row[None, :] + window - 1
    across = column[:, None] - column[None, :] + window - 1
    return (down * (2 * window - 1) + across).flatten()


def window_tables(resolution: int, window: int, shift: int) -> tuple[Tensor, Tensor, Tensor]:
    """How a feature map is rolled by `-shift` and cut into windows, padded where it is too small.

    Returns:
        windows: (W*A,) position that stands at each place of each window; 0 where it is padding.
        inverse: (N,) place of each position.
        hidden: (W, A, A) bool, True where two places are no neighbours in the picture: the roll
            brought one there from the opposite edge, or only one is padding.
    """
    padded = -(-resolution // window) * window
    grid = torch.arange(padded).roll(-shift)
    wrapped = torch.arange(padded) >= padded - shift
    row, column = torch.meshgrid(grid, grid, indexing="ij")
    is_padding = (row >= resolution) | (column >= resolution)
    position = torch.where(is_padding, 0, row * resolution + column)
    region = torch.where(is_padding, 4, 2 * wrapped[:, None] + wrapped[None, :])

    def cut(table: Tensor) -> Tensor:
        table = table.unflatten(1, (-1, window)).unflatten(0, (-1, window))
        return table.transpose(1, 2).reshape(-1, window * window)

    windows, regions, kept = cut(position), cut(region), ~cut(is_padding)
    inverse = torch.empty(resolution**2, dtype=torch.long)
    inverse[windows[kept]] = torch.arange(windows.numel())[kept.flatten()]
    hidden = regions[:, :, None] != regions[:, None, :]
    return windows.flatten(), inverse, hidden
