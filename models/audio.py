"""Speech: convolutions over frames, then attention along time and along frequency.

Attention that goes along one axis at a time costs T²S + TS² instead of (TS)² (axial attention,
arXiv 1912.12180; on spectrograms arXiv 2104.01778 shows why both axes matter).

Shape letters: B batch, F frames, T positions in time, S frequency bands, H heads, K head width,
D width.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import MLP, attend, init_weights, key_bias
from .spec import AudioSpec
from .text import sinusoid

STRIDE = 2
"""Of each convolution."""


class BandEmbedding(nn.Module):
    """Strided convolutions over the frames of each frequency band, all bands alike, plus positions.

    Args:
        spec: sizes.
    """

    times: Tensor

    def __init__(self, spec: AudioSpec) -> None:
        super().__init__()
        self.num_bands = spec.num_bands
        self.max_frames = spec.max_frames
        # the last two convolutions have full width, and each before them half of the next
        halvings = [max(0, spec.num_convs - 2 - i) for i in range(spec.num_convs)]
        widths = [spec.n_mels // spec.num_bands, *(max(1, spec.d_model >> n) for n in halvings)]
        self.convs = nn.ModuleList(
            nn.Conv1d(a, b, spec.kernel_size, STRIDE, spec.kernel_size // 2) for a, b in pairwise(widths)
        )
        self.norm = nn.LayerNorm(spec.d_model)
        self.bands = nn.Parameter(torch.empty(spec.num_bands, spec.d_model))
        nn.init.trunc_normal_(self.bands, std=0.02)
        length = -(-spec.max_frames // STRIDE**spec.num_convs)
        self.register_buffer("times", sinusoid(torch.arange(length), spec.d_model), persistent=False)

    def forward(self, mel: Tensor, mel_mask: Tensor) -> Tensor:
        """Embed mel (B, F, n_mels) as (B, T, S, D); frames where mel_mask (B, F) is False are never read."""
        if mel.shape[1] > self.max_frames:
            raise ValueError(f"a clip of {mel.shape[1]} frames, max_frames is {self.max_frames}")
        x, mask = mel.transpose(1, 2).unflatten(1, (self.num_bands, -1)).flatten(0, 1), mel_mask
        for i, conv in enumerate(self.convs):
            # a clip's end must look the same whether its padding begins there or the tensor ends
            x = x.unflatten(0, (-1, self.num_bands)).masked_fill(~mask[:, None, None, :], 0).flatten(0, 1)
            x = conv(x if i == 0 else F.gelu(x))
            mask = mask[:, ::STRIDE]
        x = self.norm(x.unflatten(0, (-1, self.num_bands)).permute(0, 3, 1, 2))
        return x + self.times[: x.shape[1], None].to(x.dtype) + self.bands


class AxialAttention(nn.Module):
    """Multi-head attention along one axis of a grid; positions on other lines don't meet.

    Args:
        width: of input and output.
        num_heads: divides `width`.
        axis: which axis.
    """

    def __init__(self, width: int, num_heads: int, axis: Literal["time", "frequency"]) -> None:
        super().__init__()
        self.head_dim = width // num_heads
        self.is_time = axis == "time"
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Attend along the axis.

        Args:
            x: (B, T, S, D).
            bias: added to the scores of each line, broadcast to (B, lines*H, N, N).
        """
        query, key, value = (self._split(layer(x)) for layer in (self.query, self.key, self.value))
        mixed = attend(query * self.head_dim**-0.5, key, value, bias)
        num_lines = x.shape[2] if self.is_time else x.shape[1]
        mixed = mixed.unflatten(1, (num_lines, -1)).transpose(2, 3).flatten(3)
        return self.output(mixed.transpose(1, 2) if self.is_time else mixed)

    def _split(self, x: Tensor) -> Tensor:
        """(B, T, S, H*K) → (B, lines*H, N, K): lines are as independent as heads."""
        x = x.unflatten(-1, (-1, self.head_dim))
        return (x.permute(0, 2, 3, 1, 4) if self.is_time else x.transpose(2, 3)).flatten(1, 2)


class AudioBlock(nn.Module):
    """Attention along time, attention along frequency and an MLP, each on a normalised input.

    Args:
        width: of input and output.
        num_heads: divides `width`.
        mlp_ratio: hidden width of the MLP over `width`.
    """

    def __init__(self, width: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm_time = nn.LayerNorm(width)
        self.time = AxialAttention(width, num_heads, "time")
        self.norm_frequency = nn.LayerNorm(width)
        self.frequency = AxialAttention(width, num_heads, "frequency")
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = MLP(width, mlp_ratio)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Transform hidden (B, T, S, D), attending only to times where mask (B, T) is True."""
        hidden = hidden + self.time(self.norm_time(hidden), key_bias(mask, hidden.dtype))
        hidden = hidden + self.frequency(self.norm_frequency(hidden), None)
        return hidden + self.mlp(self.norm_mlp(hidden))


class BandPooling(nn.Module):
    """Mean over the frequency bands, normalised.

    Args:
        width: of input and output.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, T, S, D) → (B, T, D)."""
        return self.norm(hidden.mean(dim=2))


class AudioEncoder(nn.Module):
    """Log-mel frames to one vector per 2**num_convs frames.

    Args:
        spec: sizes.

    Attributes:
        width: of the output.
    """

    def __init__(self, spec: AudioSpec) -> None:
        super().__init__()
        self.width = spec.d_model
        self.num_convs = spec.num_convs
        self.embed = BandEmbedding(spec)
        self.blocks = nn.ModuleList(
            AudioBlock(spec.d_model, spec.num_heads, spec.mlp_ratio) for _ in range(spec.num_layers)
        )
        self.norm = BandPooling(spec.d_model)
        self.apply(init_weights)

    def forward(self, mel: Tensor, mel_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Encode mel (B, F, n_mels) whose frames are valid where mel_mask (B, F) is True.

        Returns:
            Hidden states (B, T, width), finite everywhere, and where they are valid (B, T).
        """
        mask = self.mask(mel_mask)
        hidden = self.embed(mel, mel_mask)
        for block in self.blocks:
            hidden = block(hidden, mask)
        return self.norm(hidden), mask

    def mask(self, mel_mask: Tensor) -> Tensor:
        """Which output positions (B, T) are valid: those whose middle frame is, by mel_mask (B, F)."""
        return mel_mask[:, :: STRIDE**self.num_convs]
