"""Recordings: decoding, log-mel spectrogram, padding, masking.

Shape letters: N samples, F frames, M mel bands, K frequencies, B rows.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ..quarantine import Refused
from ..spec import Preparation

Floats = NDArray[np.float32]

MAX_DURATION_S = 120.0
"""What goes beyond it is cut."""
MAX_TOTAL_S = 3600.0
"""A longer recording is refused: it wants to be cut into pieces first."""
FLOOR = 1e-10
"""Power below which the logarithm is cut off."""
DYNAMIC_RANGE = 8.0
"""Decades of power kept below a clip's loudest band (80 dB)."""
# SpecAugment (Park et al. 2019, section 2), sized for clips of one to two seconds.
MAX_TIME_MASK = 0.15
MAX_BAND_MASK = 0.2
NUM_MASKS = 2


@dataclass(frozen=True)
class Clip:
    """A decoded recording.

    Attributes:
        wave: (N,) float32 mono.
        duration_s: of the whole recording, also of what was cut.
    """

    wave: Floats
    duration_s: float


def decode(data: bytes, sample_rate: int) -> Floats:
    """Decode WAV, Ogg, FLAC or MP3 bytes to (N,) float32 mono at `sample_rate`.

    Channels are averaged; what goes beyond `MAX_DURATION_S` is cut.

    Raises:
        Refused: when it holds no sound, or can't be decoded.
    """
    return read(data, sample_rate).wave


def read(data: bytes, sample_rate: int) -> Clip:
    """Decode as `decode` does, and keep the whole recording's duration.

    Raises:
        Refused: when it holds no sound, or can't be decoded.
    """
    import soundfile
    import soxr

    if not data:
        raise Refused("empty-audio", "the recording has 0 bytes")
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate, total = int(file.samplerate), int(file.frames)
            if total > MAX_TOTAL_S * rate:
                message = f"the recording has {total / rate:,.0f} s, over {MAX_TOTAL_S:,.0f}"
                raise Refused("audio-too-long", message)
            wave = file.read(int(MAX_DURATION_S * rate), dtype="float32", always_2d=True)
    except Refused:
        raise
    except (soundfile.LibsndfileError, RuntimeError, ValueError, MemoryError) as error:
        raise Refused("undecodable-audio", f"the recording can't be decoded: {error}") from error
    if not len(wave):
        raise Refused("empty-audio", "the recording holds no sample")
    if not np.isfinite(wave).all():
        raise Refused("not-finite-audio", "the recording holds samples that are no numbers")
    mono = wave @ np.full(wave.shape[1], 1 / wave.shape[1], np.float32)  # four times as fast as mean(axis=1)
    if rate != sample_rate:
        mono = soxr.resample(mono, rate, sample_rate)
    if not len(mono):
        raise Refused(
            "empty-audio", f"the recording of {total} samples is shorter than one at {sample_rate} Hz"
        )
    return Clip(np.ascontiguousarray(mono, dtype=np.float32), total / rate)


def duration_of(data: bytes) -> float | None:
    """Seconds by what stands at the beginning; None where that tells none."""
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            return file.frames / file.samplerate
    except (soundfile.LibsndfileError, RuntimeError, ValueError, MemoryError):  # `read` says what is wrong
        return None


def trim(wave: Floats, sample_rate: int, threshold_db: float, margin_ms: float) -> Floats:
    """Cut silence off both ends of a mono wave (N,).

    Args:
        wave: samples.
        sample_rate: Hertz.
        threshold_db: decibels under its loudest 10 ms from which on a stretch of 10 ms is silent.
        margin_ms: milliseconds of silence that stay.

    Returns:
        What is left, (n,); all of a wave that is silent all along.
    """
    stretch = max(1, sample_rate // 100)
    count = -(-len(wave) // stretch)
    padded = np.zeros(count * stretch, np.float32)
    padded[: len(wave)] = wave
    power = np.square(padded.reshape(count, stretch)).mean(axis=1)
    loud = np.flatnonzero(power > power.max() * 10 ** (-threshold_db / 10))
    if not len(loud):
        return wave
    margin = round(sample_rate * margin_ms / 1000)
    start, end = int(loud[0]) * stretch - margin, (int(loud[-1]) + 1) * stretch + margin
    return wave[max(0, start) : end]


def log_mel(wave: Floats, preparation: Preparation) -> Floats:
    """The log-mel spectrogram of a mono wave (N,) → (F, M) float32, at most `max_frames` frames.

    Frame f is the `window_ms` around sample f·hop, Hann-windowed, the wave taken as silent outside;
    F = 1 + N // hop. With power spectrum P = |rfft(frame)|² and the filter bank W of `mel_filters`:

        S = log10(max(W P, FLOOR)),  result = max(S, max(S) - DYNAMIC_RANGE)

    rounded to half precision, as a corpus stores it, so that serving sees what training saw.
    """
    rate = preparation.sample_rate
    hop = round(rate * preparation.hop_ms / 1000)
    window = round(rate * preparation.window_ms / 1000)
    num_frames = min(1 + len(wave) // hop, preparation.max_frames)
    size = 1 << (window - 1).bit_length()
    padded = np.zeros((num_frames - 1) * hop + window, np.float32)
    head = wave[: len(padded) - window // 2]
    padded[window // 2 : window // 2 + len(head)] = head
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop] * _hann(window)
    spectrum = np.fft.rfft(frames, size)
    power = spectrum.real**2 + spectrum.imag**2
    bands = power.astype(np.float32) @ mel_filters(rate, size, preparation.n_mels).T
    levels = np.log10(np.maximum(bands, FLOOR))
    return np.maximum(levels, levels.max() - DYNAMIC_RANGE).astype(np.float16).astype(np.float32)


@lru_cache(maxsize=8)
def mel_filters(sample_rate: int, fft_size: int, n_mels: int) -> Floats:
    """Triangular filters (M, K), equally wide in mel from 0 to half the sample rate, each of area 1.

    Slaney's Auditory Toolbox (1998): the scale is linear below 1 kHz and logarithmic above, and each
    triangle is scaled by 2 over its width in Hz. K = fft_size // 2 + 1.
    """
    edges = mel_to_hz(np.linspace(0.0, float(hz_to_mel(np.array(sample_rate / 2))), n_mels + 2))
    frequencies = np.arange(fft_size // 2 + 1) * (sample_rate / fft_size)
    lower, middle, upper = (edges[i : n_mels + i, None] for i in range(3))
    rising = (frequencies - lower) / (middle - lower)
    falling = (upper - frequencies) / (upper - middle)
    triangles = np.maximum(0.0, np.minimum(rising, falling)) * (2 / (upper - lower))
    # Low bands can be narrower than the distance of two frequencies; such a band takes the nearest one.
    for band in np.flatnonzero(~triangles.any(axis=1)):
        nearest = np.abs(frequencies - middle[band]).argmin()
        triangles[band, nearest] = fft_size / sample_rate
    return triangles.astype(np.float32)


_LINEAR_HZ_PER_MEL = 200 / 3
_BREAK_HZ = 1000.0
_BREAK_MEL = _BREAK_HZ / _LINEAR_HZ_PER_MEL
_LOG_STEP = np.log(6.4) / 27


def hz_to_mel(hz: NDArray[np.float64]) -> NDArray[np.float64]:
    """Slaney's mel scale."""
    above = _BREAK_MEL + np.log(np.maximum(hz, _BREAK_HZ) / _BREAK_HZ) / _LOG_STEP
    return np.where(hz < _BREAK_HZ, hz / _LINEAR_HZ_PER_MEL, above)


def mel_to_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    """Inverse of `hz_to_mel`."""
    above = _BREAK_HZ * np.exp(_LOG_STEP * (np.maximum(mel, _BREAK_MEL) - _BREAK_MEL))
    return np.where(mel < _BREAK_MEL, mel * _LINEAR_HZ_PER_MEL, above)


def normalise(mel: Floats) -> Floats:
    """(F, M) → (F, M) with mean 0 and standard deviation 1 over the clip: loudness and gain go."""
    return ((mel - mel.mean()) / (mel.std() + np.float32(1e-3))).astype(np.float32)


def pad(mel: Floats, max_frames: int) -> tuple[Floats, NDArray[np.bool_]]:
    """(F, M) → (max_frames, M) filled up with zeros, and which frames are real, (max_frames,)."""
    num_frames = min(len(mel), max_frames)
    padded = np.zeros((max_frames, mel.shape[1]), np.float32)
    padded[:num_frames] = mel[:num_frames]
    return padded, np.arange(max_frames) < num_frames


def mask_bands(mel: Floats, num_frames: int, seed: int) -> Floats:
    """SpecAugment on a normalised (F, M): stretches of time and of bands become 0, its mean.

    Args:
        mel: normalised, padded or not.
        num_frames: frames that are real.
        seed: decides the result alone.
    """
    random = np.random.default_rng(seed)
    masked = mel.copy()
    for _ in range(NUM_MASKS):
        start, end = _stretch(random, num_frames, MAX_TIME_MASK)
        masked[start:end] = 0
        start, end = _stretch(random, mel.shape[1], MAX_BAND_MASK)
        masked[:, start:end] = 0
    return masked


def _stretch(random: np.random.Generator, length: int, share: float) -> tuple[int, int]:
    width = int(random.integers(0, int(length * share) + 1))
    start = int(random.integers(0, length - width + 1))
    return start, start + width


@lru_cache(maxsize=8)
def _hann(window: int) -> Floats:
    """The periodic Hann window."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)).astype(np.float32)
