"""Where in a recording someone speaks: the Silero VAD model (Silero Team 2024), run by ONNX Runtime.

Shape letters: N samples, F frames of 32 ms, S stretches.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

Floats = NDArray[np.float32]

MODEL_RATE = 16_000
FRAME = 512
"""Samples that the model judges at once, 32 ms."""
CONTEXT = 64
"""Samples before a frame that the model sees with it."""
MEMORY = (1, 1, 128)
"""Shape of what the model's LSTM remembers."""


def speech_probabilities(wave: Floats, sample_rate: int) -> Floats:
    """How likely someone speaks in each 32 ms of a mono wave (N,) → (F,), F = ⌈N · 16 kHz / FRAME⌉."""
    import soxr

    heard = wave if sample_rate == MODEL_RATE else soxr.resample(wave, sample_rate, MODEL_RATE)
    num_frames = -(-len(heard) // FRAME)
    if not num_frames:
        return np.zeros(0, np.float32)
    padded = np.zeros(CONTEXT + num_frames * FRAME, np.float32)
    padded[CONTEXT : CONTEXT + len(heard)] = heard
    frames = np.lib.stride_tricks.sliding_window_view(padded, CONTEXT + FRAME)[::FRAME]
    memory = np.zeros(MEMORY, np.float32)
    given = {"input": np.ascontiguousarray(frames), "h": memory, "c": memory}
    return np.asarray(speech_model().run(["speech_probs"], given)[0], np.float32)


def speech_stretches(probabilities: Floats, threshold: float, max_pause_s: float) -> NDArray[np.int64]:
    """Stretches of speech (S, 2): first frame, and the one after the last.

    Args:
        probabilities: (F,) of `speech_probabilities`.
        threshold: probability from which on a frame is speech.
        max_pause_s: pauses up to this length, in seconds, belong to the speech around them.
    """
    spoken = np.flatnonzero(probabilities >= threshold)
    if not len(spoken):
        return np.zeros((0, 2), np.int64)
    breaks = np.flatnonzero(np.diff(spoken) - 1 > max_pause_s * MODEL_RATE / FRAME)
    starts = spoken[np.concatenate([[0], breaks + 1])]
    ends = spoken[np.concatenate([breaks, [len(spoken) - 1]])] + 1
    return np.stack([starts, ends], axis=1).astype(np.int64)


@lru_cache(maxsize=1)
def speech_model() -> InferenceSession:
    """The model, loaded once in a process (20 ms), on one thread: a task has half a core.

    The package that brings it is found, not imported: that would load torch.
    """
    import onnxruntime

    package = find_spec("silero_vad")
    assert package is not None
    assert package.origin is not None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    model = Path(package.origin).parent / "data" / "silero_vad_16k_sequence.onnx"
    return onnxruntime.InferenceSession(str(model), options, ["CPUExecutionProvider"])
