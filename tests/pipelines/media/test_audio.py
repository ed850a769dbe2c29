"""Recordings."""

from __future__ import annotations

import io
import math
from contextlib import suppress

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from eagleray.pipelines.media import audio
from eagleray.pipelines.quarantine import Refused
from eagleray.pipelines.spec import Preparation

RATE = 16_000
PREPARATION = Preparation()


def tone(hz: float, seconds: float = 1.0, rate: int = RATE) -> np.ndarray:
    return np.sin(2 * np.pi * hz * np.arange(int(seconds * rate)) / rate).astype(np.float32)


def encode(wave: np.ndarray, rate: int = RATE, file_format: str = "WAV", **options: str) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, rate, format=file_format, **options)
    return buffer.getvalue()


def slaney_mel(hz: float) -> float:
    """Slaney's scale in closed form: 200/3 Hz a mel up to 1 kHz, then 27 mels for a factor of 6.4."""
    return hz / (200 / 3) if hz < 1000 else 15 + 27 * math.log(hz / 1000) / math.log(6.4)


@pytest.mark.parametrize("hz", [150, 440, 900, 1000, 1500, 3000, 5000, 7000])
def test_a_pure_tone_peaks_in_the_band_whose_centre_is_nearest(hz):
    mel = audio.log_mel(tone(hz), PREPARATION)
    spacing = slaney_mel(RATE / 2) / (PREPARATION.n_mels + 1)
    nearest = slaney_mel(hz) / spacing - 1
    peaks = mel[5:-5].argmax(axis=1)
    assert np.abs(peaks - nearest).max() <= 1.0


def test_a_tone_carries_its_energy_into_the_mel_bands():
    """A sine of amplitude a has |rfft|² summing to a² N Σw² / 4 over its peak (Parseval, Hann window)."""
    hz, window, size = 1000.0, 400, 512
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    filters = audio.mel_filters(RATE, size, PREPARATION.n_mels)
    weight_at_peak = filters[:, round(hz * size / RATE)].sum()
    expected = math.log10(size * (hann**2).sum() / 4 * weight_at_peak)
    levels = audio.log_mel(tone(hz), PREPARATION)[20].astype(np.float64)
    assert math.log10((10**levels).sum()) == pytest.approx(expected, abs=0.05)


def test_mel_filters_are_triangles_of_area_one():
    filters = audio.mel_filters(RATE, 4096, 40).astype(np.float64)
    areas = filters.sum(axis=1) * RATE / 4096
    assert areas == pytest.approx(np.ones(40), rel=0.02)
    for band in filters:
        support = np.flatnonzero(band)
        assert np.array_equal(support, np.arange(support[0], support[-1] + 1))
        rising = np.diff(band[support[0] : band.argmax() + 1])
        assert (rising > 0).all()


def test_every_band_hears_something_even_with_more_bands_than_low_frequencies():
    assert (audio.mel_filters(RATE, 512, 128).sum(axis=1) > 0).all()


@given(st.floats(0, 20_000))
def test_mel_scale_round_trips(hz):
    assert audio.mel_to_hz(audio.hz_to_mel(np.array(hz))) == pytest.approx(hz, rel=1e-9, abs=1e-9)


def test_mel_scale_is_the_closed_form():
    for hz in (0, 500, 999, 1000, 1001, 4000, 8000):
        assert audio.hz_to_mel(np.array(float(hz))) == pytest.approx(slaney_mel(hz))


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_resampling_keeps_energy_and_pitch(rate):
    wave = audio.decode(encode(0.5 * tone(1000, 1.0, rate), rate, subtype="FLOAT"), RATE)
    assert len(wave) == pytest.approx(RATE, abs=2)
    inner = wave[1000:-1000]
    assert float((inner**2).mean()) == pytest.approx(0.125, rel=1e-3)
    spectrum = np.abs(np.fft.rfft(inner * np.hanning(len(inner))))
    assert spectrum.argmax() * RATE / len(inner) == pytest.approx(1000, abs=2)


def test_resampling_removes_what_the_lower_rate_cannot_carry():
    wave = audio.decode(encode(tone(15_000, 1.0, 44_100), 44_100, subtype="FLOAT"), RATE)
    assert float((wave[1000:-1000] ** 2).mean()) < 1e-6


def test_channels_are_averaged():
    left = tone(500)
    both = audio.decode(encode(np.stack([left, 0 * left], axis=1), subtype="FLOAT"), RATE)
    assert np.allclose(both, left / 2, atol=1e-6)


def test_frames_follow_the_hop_and_stop_at_the_limit():
    hop = RATE // 100
    assert len(audio.log_mel(tone(500, 0.5), PREPARATION)) == 1 + RATE // 2 // hop
    assert len(audio.log_mel(tone(500)[:3], PREPARATION)) == 1
    assert len(audio.log_mel(tone(500, 10.0), PREPARATION)) == PREPARATION.max_frames


def test_frame_f_is_centred_on_sample_f_times_hop():
    """A click there is heard equally by the frames before and after: the Hann window is symmetric."""
    click = np.zeros(RATE, np.float32)
    click[30 * RATE // 100] = 1
    levels = audio.log_mel(click, PREPARATION)
    assert levels.mean(axis=1).argmax() == 30
    assert np.array_equal(levels[29], levels[31])
    assert (levels[30] > levels[29]).all()


def test_cutting_a_long_clip_first_or_last_is_the_same():
    long = np.concatenate([tone(700, 3.0), tone(2000, 3.0)])
    short = Preparation(max_frames=100)
    assert np.array_equal(audio.log_mel(long, short), audio.log_mel(long[: RATE * 2], short))


def test_gain_makes_no_difference_after_normalisation():
    wave = (tone(400) + tone(2500)) * np.linspace(0, 1, RATE, dtype=np.float32)
    loud, soft = (audio.normalise(audio.log_mel(gain * wave, PREPARATION)) for gain in (1.0, 0.02))
    assert np.abs(loud - soft).max() < 0.02
    assert loud.mean() == pytest.approx(0, abs=1e-4)
    assert loud.std() == pytest.approx(1, abs=1e-2)


def test_silence_is_finite():
    assert np.isfinite(audio.normalise(audio.log_mel(np.zeros(RATE, np.float32), PREPARATION))).all()


def test_stored_as_half_precision_a_spectrogram_loses_nothing():
    mel = audio.log_mel(tone(440) + 0.1 * tone(3000), PREPARATION)
    assert np.array_equal(mel.astype(np.float16).astype(np.float32), mel)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty-audio"),
        (encode(np.zeros((0, 1), np.float32)), "empty-audio"),
        (b"no sound but words", "undecodable-audio"),
        (encode(tone(500), file_format="OGG")[:40], "undecodable-audio"),
        (encode(np.array([np.nan, 1.0], np.float32), subtype="FLOAT"), "not-finite-audio"),
    ],
)
def test_a_broken_recording_is_refused_with_its_reason(data, reason):
    with pytest.raises(Refused) as refused:
        audio.decode(data, RATE)
    assert refused.value.reason == reason


def long_flac(seconds: int) -> bytes:
    return encode(np.zeros(seconds * 1000, np.int16), 1000, "FLAC")


def test_a_recording_that_is_too_long_is_refused_from_its_header():
    whole = long_flac(3601)
    for data in (whole, whole[:2000]):  # of the second there is hardly more than the header
        with pytest.raises(Refused, match="3,601 s") as refused:
            audio.decode(data, RATE)
        assert refused.value.reason == "audio-too-long"


def test_of_a_long_recording_only_what_is_kept_is_decoded():
    clip = audio.read(long_flac(3600), RATE)
    assert clip.duration_s == 3600
    assert len(clip.wave) == audio.MAX_DURATION_S * RATE


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_sample_that_is_no_number_is_enough(value):
    wave = tone(440)
    wave[1234] = value
    with pytest.raises(Refused) as refused:
        audio.decode(encode(wave, subtype="FLOAT"), RATE)
    assert refused.value.reason == "not-finite-audio"


@given(
    data=st.binary(max_size=100),
    magic=st.sampled_from([b"", b"OggS", b"RIFF\x00\x00\x00\x00WAVEfmt ", b"fLaC", b"ID3"]),
)
@settings(max_examples=150, deadline=None)
def test_no_bytes_raise_anything_but_refused(data, magic):
    with suppress(Refused):
        audio.decode(magic + data, RATE)


@given(frames=st.integers(1, 80))
def test_padding_keeps_the_frames_and_masks_the_rest(frames):
    mel = np.random.default_rng(frames).normal(size=(frames, 6)).astype(np.float32)
    padded, mask = audio.pad(mel, 50)
    kept = min(frames, 50)
    assert padded.shape == (50, 6)
    assert mask.sum() == kept
    assert np.array_equal(padded[mask], mel[:kept])
    assert not padded[~mask].any()


def test_masking_blanks_whole_stretches_and_is_a_function_of_the_seed():
    mel = np.random.default_rng(0).normal(size=(100, 40)).astype(np.float32)
    masked = audio.mask_bands(mel, 80, 7)
    assert np.array_equal(masked, audio.mask_bands(mel, 80, 7))
    frames, bands = (masked == 0).all(axis=1), (masked == 0).all(axis=0)
    assert np.array_equal(masked == 0, frames[:, None] | bands[None, :])
    assert not frames[80:].any()
    assert frames.mean() <= 0.3
    assert bands.mean() <= 0.4
