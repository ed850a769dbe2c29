"""From an encoded picture or recording to what a model's graph takes, as a corpus was prepared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..spec import Preparation
from . import audio, image

Arrays: TypeAlias = Mapping[str, NDArray[Any]]
SEEN, SEEN_SIDE = "seen", 224
"""What moderation sees of a picture, and its side."""


def prepare_image(data: bytes, preparation: Preparation) -> Arrays:
    """Prepare an encoded picture: image (3, H, W) float32.

    Raises:
        Refused: see `image.decode`.
    """
    stored = image.decode(data, preparation.stored_image_size, preparation.fit)
    return {"image": image.normalise(image.center(stored[None], preparation.image_size))[0]}


def prepare_seen(data: bytes, preparation: Preparation) -> Arrays:
    """Prepare an encoded picture, and whatever its preparation all of it, for moderation: also seen
    (SEEN_SIDE, SEEN_SIDE, 3) uint8.

    Raises:
        Refused: see `image.decode`.
    """
    stored, seen = image.decode_twice(data, preparation.stored_image_size, preparation.fit, SEEN_SIDE)
    return {"image": image.normalise(image.center(stored[None], preparation.image_size))[0], SEEN: seen}


def prepare_speech(data: bytes, preparation: Preparation) -> Arrays:
    """Prepare encoded speech: mel (F, n_mels) float32, mel_mask (F,) bool; what is too long is cut.

    Raises:
        Refused: see `audio.decode`.
    """
    return _prepare_wave(audio.decode(data, preparation.sample_rate), preparation)


def prepare_stretches(data: bytes, preparation: Preparation) -> Arrays:
    """Prepare encoded speech of any length, one stretch of what the model hears at once after another.

    Returns:
        mel (S, F, n_mels) float32, mel_mask (S, F) bool, and where each begins and ends, seconds: start_s,
        end_s (S,) float64.

    Raises:
        Refused: see `audio.decode`.
    """
    wave = audio.decode(data, preparation.sample_rate)
    rate, hop = preparation.sample_rate, round(preparation.sample_rate * preparation.hop_ms / 1000)
    size = (preparation.max_frames - 1) * hop
    starts = range(0, len(wave), size)
    rows = [_prepare_wave(wave[start : start + size], preparation) for start in starts]
    stacked: dict[str, NDArray[Any]] = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    begins = np.array(starts, np.float64)
    ends = np.minimum(begins + size, len(wave))
    return {**stacked, "start_s": begins / rate, "end_s": ends / rate}


def _prepare_wave(wave: audio.Floats, preparation: Preparation) -> Arrays:
    mel, mask = audio.pad(audio.normalise(audio.log_mel(wave, preparation)), preparation.max_frames)
    return {"mel": mel, "mel_mask": mask}
