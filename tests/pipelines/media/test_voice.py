"""Where in a recording someone speaks."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.signal import lfilter

from eagleray.pipelines.media.voice import speech_probabilities, speech_stretches

FORMANTS = [(730, 1090, 2440), (270, 2290, 3010), (530, 1840, 2480), (300, 870, 2240), (660, 1720, 2410)]
SYLLABLE_S = 0.18


def vowels(seconds: float, rate: int = 16_000, pitch_hz: float = 120) -> np.ndarray:
    """Five vowels in turn: pulses of a voice through three resonances each (Peterson and Barney 1952)."""
    times = np.arange(int(seconds * rate)) / rate
    phase = np.cumsum(pitch_hz * (1 + 0.15 * np.sin(2 * np.pi * 1.1 * times))) / rate
    voice = lfilter([1], [1, -0.95], np.diff(np.floor(phase), prepend=0))
    step = int(SYLLABLE_S * rate)
    syllables = []
    for number, start in enumerate(range(0, len(voice), step)):
        syllable = voice[start : start + step]
        for hz, width_hz in zip(FORMANTS[number % 5], (80, 100, 150), strict=True):
            radius = np.exp(-np.pi * width_hz / rate)
            poles = [1, -2 * radius * np.cos(2 * np.pi * hz / rate), radius**2]
            syllable = lfilter([sum(poles)], poles, syllable)
        syllables.append(syllable * np.sqrt(np.sin(np.pi * np.arange(len(syllable)) / len(syllable))))
    spoken = np.concatenate(syllables)
    return (0.5 * spoken / np.abs(spoken).max()).astype(np.float32)


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
@pytest.mark.parametrize("pitch_hz", [100, 160, 220])
def test_a_voice_is_speech_and_noise_tones_and_silence_are_not(rate, pitch_hz):
    assert (speech_probabilities(vowels(2, rate, pitch_hz), rate) >= 0.5).mean() > 0.8
    times = np.arange(2 * rate) / rate
    for other in (
        np.random.default_rng(0).standard_normal(2 * rate) / 5,
        np.sin(2 * np.pi * 440 * times) / 2,
        np.zeros(2 * rate),
    ):
        assert speech_probabilities(other.astype(np.float32), rate).max() < 0.5


@pytest.mark.parametrize(("samples", "frames"), [(0, 0), (1, 1), (512, 1), (513, 2), (16_000, 32)])
def test_every_frame_has_a_probability(samples, frames):
    assert speech_probabilities(np.zeros(samples, np.float32), 16_000).shape == (frames,)


def test_what_comes_later_changes_nothing_before_it():
    whole = vowels(3)
    part = speech_probabilities(whole[: 40 * 512], 16_000)
    assert np.allclose(speech_probabilities(whole, 16_000)[:40], part, atol=1e-5)


@given(st.lists(st.booleans(), max_size=60), st.floats(0, 1))
def test_stretches_hold_all_speech_and_no_pause_that_is_too_long(spoken, max_pause_s):
    stretches = speech_stretches(np.array(spoken, np.float32), 0.5, max_pause_s).tolist()
    inside = {frame for start, end in stretches for frame in range(start, end)}
    assert {frame for frame, speaks in enumerate(spoken) if speaks} <= inside
    for start, end in stretches:
        assert spoken[start]
        assert spoken[end - 1]
        pauses = "".join("x" if speaks else " " for speaks in spoken[start:end]).split("x")
        assert max(map(len, pauses)) * 0.032 <= max_pause_s + 1e-9
    for (_, end), (start, _) in pairwise(stretches):
        assert (start - end) * 0.032 > max_pause_s - 1e-9


def test_torch_is_not_loaded():
    """It is in the package that brings the model."""
    script = (
        "import sys, numpy\n"
        "from eagleray.pipelines.media.voice import speech_probabilities\n"
        "speech_probabilities(numpy.zeros(600, numpy.float32), 16000)\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
