"""Swin Transformer V2 (arXiv 2111.09883): windowed cosine attention on a hierarchy of scales.

With the published weights it answers as the published code does (`weights.py` reads them), at sides that
windows don't divide too: there `transformers` fills up with zeros, which are attended to.

Shape letters: B batch, R feature map's side, N = R*R positions, P = R filled up to whole windows,
W windows, A window's area, H heads, K head width, C channels, S scales.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

from .layers import MLP, HeadParameter, RowDropout, attend, init_weights, scores_in_single
from .spec import VisionSpec

MAX_LOGIT_SCALE = math.log(100.0)
"""The learned temperature is at least 0.01 (section 3.2)."""
BIAS_HIDDEN = 512
"""Hidden width of the network that gives the position bias."""
SMALLEST_NORM = 1e-12
"""Vectors shorter than this stay as short."""


class UnitVectors(torch.autograd.Function):
    """x / |x| along the last axis; its backward pass reads memory half as often as autograd's own.

    Measured on 2 cores, (768, 64, 32), forward and backward: fp32 1.2 ms, `F.normalize` 3.2 ms; bf16 1.0 and
    2.3 ms.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """(..., K) → (..., K)."""
        inverse = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(SMALLEST_NORM).reciprocal()
        unit = x * inverse
        ctx.save_for_backward(unit, inverse)
        return unit

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """What of the gradient is across x, over |x|."""
        unit, inverse = ctx.saved_tensors  # pyright: ignore[reportAttributeAccessIssue]
        along = (gradient * unit).sum(dim=-1, keepdim=True)
        return torch.addcmul(gradient, unit, along, value=-1) * inverse


def unit_vectors(x: Tensor) -> Tensor:
    """Divide x (..., K) by its length along the last axis."""
    if not x.requires_grad:
        return F.normalize(x, dim=-1)  # what exporters know
    return UnitVectors.apply(x)  # pyright: ignore[reportReturnType]


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

    The bias is 16 * sigmoid of a small network, as in the authors' code. No parameter depends on the window,
    so weights serve windows of any size.

    Args:
        window: side of the window.
        num_heads: biases of each pair.
        pretrained_window: side of the window that the weights were first trained with, whose offsets span
            the network's whole input; None for `window`.
    """

    offsets: Tensor
    pairs: Tensor

    def __init__(self, window: int, num_heads: int, pretrained_window: int | None = None) -> None:
        super().__init__()
        self.window = window
        self.hidden = nn.Linear(2, BIAS_HIDDEN)
        self.per_head = nn.Linear(BIAS_HIDDEN, num_heads, bias=False)
        self.register_buffer("offsets", log_offsets(window, pretrained_window or window), persistent=False)
        self.register_buffer("pairs", offset_of_pairs(window), persistent=False)

    def forward(self) -> Tensor:
        """Bias of all pairs (H, A, A)."""
        area = self.window**2
        table = self.per_head(F.relu(self.hidden(self.offsets.to(self.hidden.weight.dtype))))
        bias = (16 * torch.sigmoid(table)).index_select(0, self.pairs)
        return bias.view(area, area, -1).permute(2, 0, 1)


class WindowAttention(nn.Module):
    """Scaled cosine attention within windows (section 3.2).

    Args:
        channels: of input and output.
        num_heads: divides `channels`.
        resolution: side of the feature map.
        window: side of a window.
        shift: how far windows are shifted against the map.
        pretrained_window: see `PositionBias`.
    """

    hidden: Tensor | None

    def __init__(
        self,
        channels: int,
        num_heads: int,
        resolution: int,
        window: int,
        shift: int,
        pretrained_window: int | None = None,
    ) -> None:
        super().__init__()
        self.head_dim = channels // num_heads
        self.resolution, self.window, self.shift = resolution, window, shift
        self.filling = -resolution % window
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels, bias=False)  # as in the authors' code
        self.value = nn.Linear(channels, channels)
        self.output = nn.Linear(channels, channels)
        self.logit_scale = HeadParameter(torch.full((num_heads, 1, 1), math.log(10.0)))
        self.position_bias = PositionBias(window, num_heads, pretrained_window)
        hidden = hidden_pairs(resolution + self.filling, window, shift) if shift else None
        self.register_buffer("hidden", hidden, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Attend within each window of x (B, N, C)."""
        x = x.unflatten(1, (self.resolution, self.resolution))
        if self.filling:
            x = F.pad(x, (0, 0, 0, self.filling, 0, self.filling))
        if self.shift:
            x = x.roll((-self.shift, -self.shift), dims=(1, 2))
        x = self._attend(x)
        if self.shift:
            x = x.roll((self.shift, self.shift), dims=(1, 2))
        if self.filling:
            x = x[:, : self.resolution, : self.resolution]
        return x.flatten(1, 2)

    def _attend(self, x: Tensor) -> Tensor:
        """(B, P, P, C) → (B, P, P, C)."""
        num_windows = (x.shape[1] // self.window) ** 2
        bias = self.position_bias().unsqueeze(0).expand(num_windows, -1, -1, -1)
        if self.hidden is not None:
            bias = bias.masked_fill(self.hidden.unsqueeze(1), float("-inf"))
        scale = self.logit_scale().clamp(max=MAX_LOGIT_SCALE).exp().repeat(num_windows, 1, 1)
        query, key, value = (self._cut(layer(x)) for layer in (self.query, self.key, self.value))
        mixed = scores_in_single(_attend_by_cosine, query, key, value, scale, bias.flatten(0, 1))
        return self.output(self._join(mixed, x.shape[1] // self.window))

    def _cut(self, x: Tensor) -> Tensor:
        """(B, P, P, H*K) → (B, W*H, A, K): windows are as independent as heads."""
        x = x.unflatten(3, (-1, self.head_dim))
        x = x.unflatten(2, (-1, self.window)).unflatten(1, (-1, self.window))  # B, row, y, column, x, H, K
        return x.permute(0, 1, 3, 5, 2, 4, 6).flatten(4, 5).flatten(1, 3)

    def _join(self, x: Tensor, rows: int) -> Tensor:
        """(B, W*H, A, K) → (B, P, P, H*K)."""
        x = x.unflatten(2, (self.window, self.window)).unflatten(1, (rows, rows, -1))
        return x.permute(0, 1, 4, 2, 5, 3, 6).flatten(5).flatten(3, 4).flatten(1, 2)


def _attend_by_cosine(query: Tensor, key: Tensor, value: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return attend(unit_vectors(query) * scale, unit_vectors(key), value, bias)


class SwinBlock(nn.Module):
    """Windowed attention and an MLP, each normalised before it is added (res-post-norm, section 3.2).

    Args:
        channels: of input and output.
        num_heads: divides `channels`.
        resolution: side of the feature map.
        window: side of a window.
        shift: how far windows are shifted against the map.
        mlp_ratio: hidden width of the MLP over `channels`.
        pretrained_window: see `PositionBias`.
        norm_main: normalise the main branch as well (section 4.1: every sixth block of Huge and Giant).
        drop_path: how often a row goes past each branch in training.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        resolution: int,
        window: int,
        shift: int,
        mlp_ratio: float,
        pretrained_window: int | None = None,
        norm_main: bool = False,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.resolution = resolution
        self.attention = WindowAttention(channels, num_heads, resolution, window, shift, pretrained_window)
        self.norm_attention = nn.LayerNorm(channels)
        self.mlp = MLP(channels, mlp_ratio)
        self.norm_mlp = nn.LayerNorm(channels)
        self.norm_main = nn.LayerNorm(channels) if norm_main else None
        self.drop_attention = RowDropout(drop_path, whole=True)
        self.drop_mlp = RowDropout(drop_path, whole=True)

    def forward(self, x: Tensor, seeds: Tensor | None = None) -> Tensor:
        """(B, N, C) → (B, N, C); with seeds (B,) in training."""
        x = x + self.drop_attention(self.norm_attention(self.attention(x)), seeds)
        x = x + self.drop_mlp(self.norm_mlp(self.mlp(x)), seeds)
        return x if self.norm_main is None else self.norm_main(x)


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

    def forward(self, x: Tensor, seeds: Tensor | None = None) -> Tensor:
        """(B, N, C) → (B, ceil(R/2)**2, 2*C); nothing is dropped, whatever the seeds."""
        x = x.unflatten(1, (self.resolution, self.resolution))
        if odd := self.resolution % 2:
            x = F.pad(x, (0, 0, 0, odd, 0, odd))
        x = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))  # B, row, row's parity, column, its parity, C
        x = x.permute(0, 1, 3, 4, 2, 5).flatten(3).flatten(1, 2)
        return self.norm(self.reduction(x))


class FeaturePyramid(nn.Module):
    """Skip connections that fuse low scales (edges, texture) with high ones (objects, scene).

    Every scale is brought to one width and the coarser is added to the finer (feature pyramid networks,
    arXiv 1612.03144, section 3); then all are brought to the coarsest's side and added to it. That last
    projection starts at zero: an encoder whose weights were trained without a pyramid answers as before
    until it is trained on.

    Args:
        channels: of each scale, finest first.
        resolutions: side of each scale.
        width: of the pyramid.
    """

    def __init__(self, channels: Sequence[int], resolutions: Sequence[int], width: int) -> None:
        super().__init__()
        self.resolutions = tuple(resolutions)
        self.norms = nn.ModuleList(nn.LayerNorm(c) for c in channels)
        self.laterals = nn.ModuleList(nn.Linear(c, width) for c in channels)
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in channels)
        self.fuse = nn.Linear(width * len(channels), channels[-1])

    @property
    def to_top(self) -> tuple[nn.Module, ...]:
        """What only the coarsest scale is changed by, and not the finest level."""
        _, *coarser = self.smooth
        return (*coarser, self.fuse)

    def zero_(self) -> None:
        """Make what `forward` adds zero."""
        nn.init.zeros_(self.fuse.weight)
        nn.init.zeros_(self.fuse.bias)

    def levels(self, scales: Sequence[Tensor]) -> list[Tensor]:
        """The pyramid of scales [(B, N, C)]: [(B, width, R, R)], finest first."""
        found: list[Tensor] = []
        for i in reversed(range(len(scales))):
            side = self.resolutions[i]
            level = self.laterals[i](self.norms[i](scales[i])).transpose(1, 2).unflatten(2, (side, side))
            if found:
                level = level + F.interpolate(found[-1], scale_factor=2.0)[..., :side, :side]
            found.append(level)
        return [conv(level) for conv, level in zip(self.smooth, reversed(found), strict=True)]

    def forward(self, scales: Sequence[Tensor], top: Tensor) -> tuple[Tensor, Tensor]:
        """Add to top (B, N, C), the coarsest scale as it leaves the encoder, what all scales say there.

        Returns:
            That, and the pyramid's finest level (B, width, R, R).
        """
        levels = self.levels(scales)
        pooled = [
            F.avg_pool2d(level, 2**i, ceil_mode=True, count_include_pad=False) if i else level
            for i, level in zip(reversed(range(len(scales))), levels, strict=True)
        ]
        return top + self.fuse(torch.cat(pooled, dim=1).flatten(2).transpose(1, 2)), levels[0].contiguous()


class VisionEncoder(nn.Module):
    """Swin Transformer V2 without a head.

    Args:
        spec: sizes.

    Attributes:
        width: channels of the output.
        channels, resolutions: of each scale, finest first.
    """

    def __init__(self, spec: VisionSpec) -> None:
        super().__init__()
        self.image_size = spec.image_size
        self.embed = PatchEmbedding(spec.patch_size, spec.embed_dim)
        self.blocks = nn.ModuleList()
        self.channels = tuple(spec.embed_dim * 2**i for i in range(len(spec.depths)))
        self.resolutions = spec.resolutions
        for scale, (window, shift) in enumerate(spec.windows):
            channels, resolution = self.channels[scale], self.resolutions[scale]
            if scale > 0:
                self.blocks.append(PatchMerging(channels // 2, self.resolutions[scale - 1]))
            for i in range(spec.depths[scale]):
                self.blocks.append(
                    SwinBlock(
                        channels,
                        spec.num_heads[scale],
                        resolution,
                        window,
                        shift if i % 2 else 0,
                        spec.mlp_ratio,
                        spec.pretrained_window_sizes[scale] if spec.pretrained_window_sizes else None,
                        spec.norm_main_every > 0 and (i + 1) % spec.norm_main_every == 0,
                        spec.drop_path * (sum(spec.depths[:scale]) + i) / max(1, sum(spec.depths) - 1),
                    )
                )
        self.width = self.channels[-1]
        self.norm = nn.LayerNorm(self.width)
        self.pyramid = (
            FeaturePyramid(self.channels, self.resolutions, spec.pyramid_width)
            if spec.pyramid_width
            else None
        )
        self.apply(init_weights)
        if self.pyramid is not None:
            self.pyramid.zero_()

    def forward(self, image: Tensor) -> Tensor:
        """Encode pictures (B, 3, S, S) as (B, N, width)."""
        scales = self.scales(image)
        top = self.norm(scales[-1])
        return top if self.pyramid is None else self.pyramid(scales, top)[0]

    def dense(self, image: Tensor) -> Tensor:
        """The pyramid's finest level (B, width, R, R) of pictures (B, 3, S, S)."""
        assert self.pyramid is not None
        scales = self.scales(image)
        return self.pyramid(scales, self.norm(scales[-1]))[1]

    def scales(self, image: Tensor) -> list[Tensor]:
        """What each scale's last block gives: [(B, N, C)], finest first."""
        if image.shape[-2:] != (self.image_size, self.image_size):
            raise ValueError(f"pictures are {tuple(image.shape[-2:])}, image_size is {self.image_size}")
        x, found = self.embed(image), []
        for block in self.blocks:
            if isinstance(block, PatchMerging):
                found.append(x)
            x = block(x)
        return [*found, x]


def log_offsets(window: int, pretrained_window: int) -> Tensor:
    """Every offset within a window, row-major, in log space ((2*window-1)**2, 2).

    Offsets are scaled so that a window of side `pretrained_window` spans [-8, 8], then
    sign(x) * log2(1 + |x|) / log2(8) (equation 4, authors' code).
    """
    steps = torch.arange(1 - window, window, dtype=torch.float32) * (8 / max(1, pretrained_window - 1))
    steps = steps.sign() * torch.log2(1 + steps.abs()) / math.log2(8)
    return torch.cartesian_prod(steps, steps)


def offset_of_pairs(window: int) -> Tensor:
    """Row of `log_offsets` for query i and key j, flat (A*A,)."""
    row, column = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    row, column = row.flatten(), column.flatten()
    down = row[:, None] - row[None, :] + window - 1
    across = column[:, None] - column[None, :] + window - 1
    return (down * (2 * window - 1) + across).flatten()


def hidden_pairs(side: int, window: int, shift: int) -> Tensor:
    """Which places of a window are no neighbours in the picture, of a map rolled by `-shift`.

    Returns:
        (W, A, A) bool, True where the roll brought one of two places there from the opposite edge.
    """
    wrapped = torch.arange(side) >= side - shift
    region = 2 * wrapped[:, None] + wrapped[None, :]
    region = region.unflatten(1, (-1, window)).unflatten(0, (-1, window))
    region = region.transpose(1, 2).reshape(-1, window * window)
    return region[:, :, None] != region[:, None, :]
