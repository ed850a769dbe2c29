"""Judging and trimming recordings."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eagleray.pipelines.media.audio import trim
from eagleray.pipelines.operators.audio import AudioQualitySpec, TrimSilenceSpec, audio_quality, trim_silence
from eagleray.pipelines.spec import Preparation

RATE = 16_000


def tone(seconds: float, level: float = 0.5) -> np.ndarray:
    return (level * np.sin(2 * np.pi * 440 * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


def silence(seconds: float) -> np.ndarray:
    return (1e-5 * np.random.default_rng(0).standard_normal(int(seconds * RATE))).astype(np.float32)


def record(*waves: np.ndarray) -> dict:
    return {
        "waves": [
            {"language": "en", "address": f"{i}.wav", "duration_s": len(wave) / RATE, "wave": wave}
            for i, wave in enumerate(waves)
        ]
    }


@given(st.floats(0, 1), st.floats(0.05, 1), st.floats(0, 1), st.floats(0, 100))
def test_what_sounds_stays_and_silence_goes_but_for_its_margin(before, sounding, after, margin_ms):
    wave = np.concatenate([silence(before), tone(sounding), silence(after)])
    kept = trim(wave, RATE, 40, margin_ms)
    slack = 2 * (margin_ms / 1000 + 0.01) * RATE + 2
    assert int(sounding * RATE) <= len(kept) + 0.01 * RATE
    assert len(kept) <= int(sounding * RATE) + slack
    assert len(trim(kept, RATE, 40, margin_ms)) <= len(kept)


def test_a_wave_without_a_sound_stays_whole():
    assert len(trim(np.zeros(1000, np.float32), RATE, 40, 10)) == 1000


def test_a_trimmed_recording_says_how_long_it_is_now():
    row = record(np.concatenate([silence(1), tone(0.5), silence(1)]))
    (wave,) = trim_silence(TrimSilenceSpec(margin_ms=0), Preparation())(row, lambda *args: None)["waves"]
    assert wave["duration_s"] == pytest.approx(0.5, abs=0.02)
    assert wave["duration_s"] == pytest.approx(len(wave["wave"]) / RATE)


def test_recordings_that_break_a_rule_are_left_out_of_their_record():
    refused: list[tuple[str, str, bool]] = []
    row = record(tone(1), tone(0.05), tone(3), tone(1, 0.001), np.clip(tone(1, 30), -1, 1).astype(np.float32))
    apply = audio_quality(AudioQualitySpec(max_duration_s=2), Preparation())
    kept = apply(row, lambda one, address, content=None: refused.append((address, one.reason, one.wanted)))
    assert [wave["address"] for wave in kept["waves"]] == ["0.wav"]
    assert refused == [
        ("1.wav", "audio-too-short", True),
        ("2.wav", "audio-too-long", True),
        ("3.wav", "quiet-audio", True),
        ("4.wav", "clipped-audio", True),
    ]
