"""Judging and trimming recordings."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eagleray.pipelines.media.audio import trim
from eagleray.pipelines.operators.audio import (
    AudioQualitySpec,
    TrimSilenceSpec,
    VoiceActivitySpec,
    audio_quality,
    trim_silence,
    voice_activity,
)
from eagleray.pipelines.operators.decode import DecodeSpeechSpec, decode_speech
from eagleray.pipelines.quarantine import Refused
from eagleray.pipelines.spec import Preparation

from ..conftest import sound
from ..media.test_voice import vowels

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
    kept = apply(row, lambda one, address: refused.append((address, one.reason, one.wanted)))
    assert [wave["address"] for wave in kept["waves"]] == ["0.wav"]
    assert refused == [
        ("1.wav", "audio-too-short", True),
        ("2.wav", "audio-too-long", True),
        ("3.wav", "quiet-audio", True),
        ("4.wav", "clipped-audio", True),
    ]


def test_a_recording_without_speech_is_left_out():
    refused: list[tuple[str, str, bool]] = []
    noise = np.random.default_rng(0).standard_normal(2 * RATE).astype(np.float32) / 10
    row = record(tone(2), vowels(2), noise, silence(2), vowels(2)[:1000])
    apply = voice_activity(VoiceActivitySpec(), Preparation())
    kept = apply(row, lambda one, address: refused.append((address, one.reason, one.wanted)))
    assert [wave["address"] for wave in kept["waves"]] == ["1.wav"]
    assert kept["waves"][0] is row["waves"][1]
    assert refused == [(f"{i}.wav", "no-speech", True) for i in (0, 2, 3, 4)]


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
@pytest.mark.parametrize(
    ("cut", "seconds"), [("nothing", 9), ("ends", 7.2), ("pauses", 4.4)], ids=["nothing", "ends", "pauses"]
)
def test_a_recording_is_cut_to_its_speech(cut, seconds, rate):
    """Two seconds of speech, three of silence, two of speech, with one second of silence at both ends."""
    quiet, loud = np.zeros(rate, np.float32), vowels(2, rate)
    row = record(np.concatenate([quiet, loud, quiet, quiet, quiet, loud, quiet]))
    row["waves"][0]["duration_s"] = 9.0
    apply = voice_activity(VoiceActivitySpec(cut=cut), Preparation(sample_rate=rate))
    (wave,) = apply(row, lambda *args: None)["waves"]
    assert len(wave["wave"]) / rate == pytest.approx(seconds, abs=0.15)
    assert wave["duration_s"] == pytest.approx(len(wave["wave"]) / rate)
    spoken = np.square(np.concatenate([loud, loud])).sum()
    assert np.square(wave["wave"]).sum() == pytest.approx(spoken, rel=0.01)


def test_margins_that_meet_keep_nothing_twice():
    row = record(np.concatenate([vowels(1), silence(0.6), vowels(1)]))
    spec = VoiceActivitySpec(cut="pauses", max_pause_s=0.1, margin_ms=400)
    (wave,) = voice_activity(spec, Preparation())(row, lambda *args: None)["waves"]
    assert len(wave["wave"]) <= len(row["waves"][0]["wave"])


@pytest.mark.parametrize("others", [{"picture": None}, {"picture": {"content": b""}}, {"text": "said"}])
def test_a_record_goes_with_its_last_recording_unless_there_is_more_to_it(others):
    parts: list[str] = []
    note = lambda one, address, content=None: parts.append(address)  # noqa: E731
    waves = record(tone(0.01), tone(0.02))
    broken = {"language": "en", "content": b"no sound"}
    recordings = {"recordings": [{**broken, "address": "0.wav"}, {**broken, "address": "1.wav"}]}
    for apply, row, column in (
        (audio_quality(AudioQualitySpec(), Preparation()), waves, "waves"),
        (decode_speech(DecodeSpeechSpec(), Preparation()), recordings, "waves"),
    ):
        parts.clear()
        if others == {"picture": None}:
            with pytest.raises(Refused):
                apply(row | others, note)
            assert parts == ["0.wav"]
        else:
            assert apply(row | others, note) == {column: []}
            assert parts == ["0.wav", "1.wav"]
    whole = {"language": "en", "address": "2.ogg", "content": sound(440, 0.2, "OGG")}
    row = {"recordings": [whole, {**broken, "address": "1.wav"}]}
    assert len(decode_speech(DecodeSpeechSpec(), Preparation())(row, note)["waves"]) == 1
