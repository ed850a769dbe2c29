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

from .layers import MLP, KeyValues, RowDropout, attend, init_weights, key_bias
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
        return self.place(self.convolve(mel, mel_mask), 0)

    def convolve(self, mel: Tensor, mel_mask: Tensor) -> Tensor:
        """The same without positions."""
        x, mask = mel.transpose(1, 2).unflatten(1, (self.num_bands, -1)).flatten(0, 1), mel_mask
        for i, conv in enumerate(self.convs):
            # a clip's end must look the same whether its padding begins there or the tensor ends
            x = x.unflatten(0, (-1, self.num_bands)).masked_fill(~mask[:, None, None, :], 0).flatten(0, 1)
            x = conv(x if i == 0 else F.gelu(x))
            mask = mask[:, ::STRIDE]
        return self.norm(x.unflatten(0, (-1, self.num_bands)).permute(0, 3, 1, 2))

    def place(self, x: Tensor, start: int) -> Tensor:
        """Add to x (B, T, S, D) its bands, and its times from position `start` on."""
        return x + self.times[start : start + x.shape[1], None].to(x.dtype) + self.bands


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
        return self._attend(x, self.project(x), bias)

    def project(self, x: Tensor) -> KeyValues:
        """Keys and values (B, lines*H, N, K) of x (B, T, S, D)."""
        return KeyValues(self._split(self.key(x)), self._split(self.value(x)))

    def step(self, x: Tensor, past: KeyValues | None, kept: int) -> tuple[Tensor, KeyValues]:
        """Attend along time from x (B, T, S, D) to the past and to itself.

        Returns:
            What `forward` gives where nothing is hidden, and the past of what follows: `kept` positions.
        """
        now = self.project(x) if past is None else past.followed_by(self.project(x))
        return self._attend(x, now, None), now.last(kept)

    def _attend(self, x: Tensor, context: KeyValues, bias: Tensor | None) -> Tensor:
        query = self._split(self.query(x)) * self.head_dim**-0.5
        mixed = attend(query, context.key, context.value, bias)
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
        spec: sizes.
    """

    def __init__(self, spec: AudioSpec) -> None:
        super().__init__()
        width = spec.d_model
        self.chunk, self.left = spec.chunk, spec.chunk * spec.left_chunks
        self.norm_time = nn.LayerNorm(width)
        self.time = AxialAttention(width, spec.num_heads, "time")
        self.norm_frequency: nn.LayerNorm | None = None
        self.frequency: AxialAttention | None = None
        if spec.axes == "time-frequency":
            self.norm_frequency = nn.LayerNorm(width)
            self.frequency = AxialAttention(width, spec.num_heads, "frequency")
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = MLP(width, spec.mlp_ratio)
        self.drop_time, self.drop_frequency, self.drop_mlp = (RowDropout(spec.dropout) for _ in range(3))

    def forward(self, hidden: Tensor, mask: Tensor, seeds: Tensor | None = None) -> Tensor:
        """Transform hidden (B, T, S, D), attending only to times where mask (B, T) is True.

        With seeds (B,) in training.
        """
        bias = (
            chunk_bias(mask, self.chunk, self.left, hidden.dtype)
            if self.chunk
            else key_bias(mask, hidden.dtype)
        )
        mixed = self.time(self.norm_time(hidden), bias)
        return self._finish(hidden + self.drop_time(mixed, seeds), seeds)

    def step(self, hidden: Tensor, past: KeyValues | None) -> tuple[Tensor, KeyValues]:
        """Transform a chunk (B, T, S, D), given the past that the step before left."""
        mixed, past = self.time.step(self.norm_time(hidden), past, self.left)
        return self._finish(hidden + mixed, None), past

    def _finish(self, hidden: Tensor, seeds: Tensor | None) -> Tensor:
        if self.frequency is not None and self.norm_frequency is not None:
            mixed = self.frequency(self.norm_frequency(hidden), None)
            hidden = hidden + self.drop_frequency(mixed, seeds)
        return hidden + self.drop_mlp(self.mlp(self.norm_mlp(hidden)), seeds)


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
        self.chunk = spec.chunk
        self.blocks = nn.ModuleList(AudioBlock(spec) for _ in range(spec.num_layers))
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


class AudioStream:
    """Encodes a clip while it comes in; to be used without gradients.

    What comes out is what `AudioEncoder` gives for the whole clip, within 1e-5 in fp32 (a test holds it).
    A chunk comes out once its last position's frames are there: the convolutions see
    (kernel_size // 2) * (2**num_convs - 1) frames ahead.

    Args:
        encoder: has a `chunk`.

    Raises:
        ValueError: when its attention is not by chunks.
    """

    def __init__(self, encoder: AudioEncoder) -> None:
        if not encoder.chunk:
            raise ValueError("the encoder attends to the whole clip: set audio.chunk to stream")
        self._encoder = encoder
        self._stride = STRIDE**encoder.num_convs
        kernel = encoder.embed.convs[0].kernel_size[0]  # pyright: ignore[reportIndexIssue]
        self._reach = (kernel // 2) * (self._stride - 1)
        self._margin = -(-self._reach // self._stride)  # positions that convolutions see back
        self._frames: Tensor | None = None
        self._first = 0  # frame that `_frames` begins with
        self._done = 0  # positions given so far
        self._past: list[KeyValues | None] = [None] * len(encoder.blocks)

    def push(self, mel: Tensor) -> Tensor:
        """Take frames (B, any number, n_mels); give positions (B, T, width) of chunks now whole."""
        self._frames = mel if self._frames is None else torch.cat((self._frames, mel), dim=1)
        num_frames = self._first + self._frames.shape[1]
        ready = max(0, (num_frames - self._reach - 1) // self._stride + 1)
        return self._advance(ready - ready % self._encoder.chunk)

    def finish(self) -> Tensor:
        """End the clip, and give its remaining positions (B, T, width)."""
        if self._frames is None:
            raise ValueError("no frame has come in")
        num_frames = self._first + self._frames.shape[1]
        return self._advance(-(-num_frames // self._stride))

    def _advance(self, stop: int) -> Tensor:
        encoder, frames = self._encoder, self._frames
        assert frames is not None
        given: list[Tensor] = [frames.new_empty(frames.shape[0], 0, encoder.width)]
        while self._done < stop:
            end = min(self._done + encoder.chunk, stop)
            last = (end - 1) * self._stride + self._reach + 1
            seen = frames[:, : last - self._first]
            hidden = encoder.embed.convolve(seen, seen.new_ones(seen.shape[:2], dtype=torch.bool))
            offset = self._done - self._first // self._stride
            hidden = encoder.embed.place(hidden[:, offset : offset + end - self._done], self._done)
            for i, block in enumerate(encoder.blocks):
                assert isinstance(block, AudioBlock)
                hidden, self._past[i] = block.step(hidden, self._past[i])
            given.append(encoder.norm(hidden))
            self._done = end
            first = max(0, self._done - self._margin) * self._stride
            frames, self._first = frames[:, first - self._first :], first
        self._frames = frames
        return torch.cat(given, dim=1)


def chunk_bias(mask: Tensor, chunk: int, left: int, dtype: torch.dtype) -> Tensor:
    """Bias (B, 1, T, T) that hides what is not valid, later than a query's chunk, or `left` before it.

    Args:
        mask: (B, T) bool, the valid positions.
        chunk: positions of a chunk.
        left: positions before its own chunk that a query sees.
        dtype: of the bias.
    """
    position = torch.arange(mask.shape[1], device=mask.device)
    begin = position // chunk * chunk
    seen = (position >= begin[:, None] - left) & (position < begin[:, None] + chunk)
    itself = position[:, None] == position  # no softmax over nothing, where nothing that is seen is valid
    hidden = ~(seen & mask[:, None, :] | itself)
    return (
        torch.zeros(hidden.shape, dtype=dtype, device=mask.device)
        .masked_fill(hidden, float("-inf"))
        .unsqueeze(1)
    )
