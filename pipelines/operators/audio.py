"""Cutting recordings to what is heard; leaving out those without speech, too short, too quiet or clipped."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ..operator import Apply, Operator, OperatorSpec
from ..quarantine import Refuse, Refused
from ..source import Row
from ..spec import Preparation

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class TrimSilenceSpec(OperatorSpec):
    """Cut silence off both ends of every recording.

    Serving takes recordings as they come: a model that learned without silence wants to be asked without.
    """

    kind: Literal["trim-silence"] = "trim-silence"
    threshold_db: float = Field(default=40.0, gt=0)
    """Decibels under the loudest 10 ms from which on it is silent."""
    margin_ms: float = Field(default=50.0, ge=0)
    """Milliseconds of silence that stay."""


class VoiceActivitySpec(OperatorSpec):
    """Leave out recordings in which hardly anyone speaks, and cut the others to speech if asked to."""

    kind: Literal["voice-activity"] = "voice-activity"
    threshold: float = Field(default=0.5, gt=0, lt=1)
    """Probability from which on 32 ms are speech."""
    min_speech_s: float = Field(default=0.1, ge=0)
    """Least speech in all of a recording, in seconds; a letter that is spelt has 0.2."""
    cut: Literal["nothing", "ends", "pauses"] = "nothing"
    """What is cut away: what comes before the first word and after the last, or long pauses too."""
    max_pause_s: float = Field(default=0.5, ge=0)
    """Longest pause that isn't cut, in seconds."""
    margin_ms: float = Field(default=100.0, ge=0)
    """Milliseconds around speech that stay."""


class AudioQualitySpec(OperatorSpec):
    """Leave out recordings that are too short, too long, too quiet or clipped."""

    kind: Literal["audio-quality"] = "audio-quality"
    min_duration_s: float = Field(default=0.1, ge=0)
    """Shortest recording, in seconds."""
    max_duration_s: float = Field(default=60.0, gt=0)
    """Longest recording, in seconds."""
    min_peak_db: float = Field(default=-40.0, le=0)
    """Least peak, in decibels below full scale."""
    max_clipped_share: float = Field(default=0.01, ge=0, le=1)
    """Greatest share of samples at full scale."""


FULL_SCALE = 0.999


def trim_silence(spec: TrimSilenceSpec, preparation: Preparation) -> Apply:
    """`waves` without silence at their ends; one that is silent all along stays as it is."""
    from ..media.audio import trim

    def change(wave: Row) -> Row:
        kept = trim(wave["wave"], preparation.sample_rate, spec.threshold_db, spec.margin_ms)
        return _cut(wave, kept, preparation.sample_rate)

    return _each(change)


def voice_activity(spec: VoiceActivitySpec, preparation: Preparation) -> Apply:
    """`waves` with speech in them, cut to it if asked to."""
    import numpy as np

    from ..media import voice

    voice.speech_model()  # loaded before the first record
    frames_per_s = voice.MODEL_RATE / voice.FRAME
    margin_s = spec.margin_ms / 1000

    def change(wave: Row) -> Row:
        probabilities = voice.speech_probabilities(wave["wave"], preparation.sample_rate)
        speech_s = np.count_nonzero(probabilities >= spec.threshold) / frames_per_s
        if speech_s < spec.min_speech_s:
            message = f"{speech_s:.2f} s of speech, at least {spec.min_speech_s:g}"
            raise Refused("no-speech", message, wanted=True)
        if spec.cut == "nothing" or not speech_s:
            return wave
        longest = spec.max_pause_s if spec.cut == "pauses" else np.inf
        # What lies within two margins would be kept twice.
        stretches = voice.speech_stretches(probabilities, spec.threshold, max(longest, 2 * margin_s))
        bounds = stretches / frames_per_s + (-margin_s, margin_s)
        places = np.clip(bounds * preparation.sample_rate, 0, len(wave["wave"])).round().astype(int)
        return _cut(wave, np.concatenate([wave["wave"][a:b] for a, b in places]), preparation.sample_rate)

    return _each(change)


def audio_quality(spec: AudioQualitySpec, preparation: Preparation) -> Apply:
    """`waves` without those that break a rule."""
    import numpy as np

    def change(wave: Row) -> Row:
        samples, duration_s = wave["wave"], wave["duration_s"]
        if duration_s < spec.min_duration_s:
            message = f"{duration_s:.2f} s, at least {spec.min_duration_s:g}"
            raise Refused("audio-too-short", message, wanted=True)
        if duration_s > spec.max_duration_s:
            message = f"{duration_s:.1f} s, at most {spec.max_duration_s:g}"
            raise Refused("audio-too-long", message, wanted=True)
        loudness = np.abs(samples)
        peak_db = 20 * float(np.log10(max(float(loudness.max()), 1e-9)))
        if peak_db < spec.min_peak_db:
            message = f"its peak is at {peak_db:.0f} dB, at least {spec.min_peak_db:g}"
            raise Refused("quiet-audio", message, wanted=True)
        clipped = float((loudness >= FULL_SCALE).mean())
        if clipped > spec.max_clipped_share:
            message = f"{clipped:.1%} of it is clipped, at most {spec.max_clipped_share:.1%}"
            raise Refused("clipped-audio", message, wanted=True)
        return wave

    return _each(change)


def _each(change: Callable[[Row], Row]) -> Apply:
    """Change every one of `waves`, or leave it out where that raises `Refused`.

    The record goes on without it, unless its recordings were all there was to it.
    """

    def apply(row: Row, refuse: Refuse) -> Row:
        kept: list[Row] = []
        alone = not (row.get("picture") or row.get("text"))
        for number, wave in enumerate(row["waves"], 1):
            try:
                kept.append(change(wave))
            except Refused as refused:
                if alone and not kept and number == len(row["waves"]):
                    raise
                refuse(refused, wave["address"])
        return {"waves": kept}

    return apply


def _cut(wave: Row, kept: NDArray[np.float32], sample_rate: int) -> Row:
    """A wave of which some samples are kept; what wasn't decoded counts on in its duration."""
    gone = len(wave["wave"]) - len(kept)
    return {**wave, "wave": kept, "duration_s": wave["duration_s"] - gone / sample_rate}


TRIM = Operator(
    spec=TrimSilenceSpec,
    summary="cut silence off both ends of recordings",
    needs=lambda spec: ("waves",),
    gives=lambda spec: ("waves",),
    start=trim_silence,
)
VOICE = Operator(
    spec=VoiceActivitySpec,
    summary="leave out recordings without speech, or cut them to it",
    needs=lambda spec: ("waves",),
    gives=lambda spec: ("waves",),
    start=voice_activity,
)
QUALITY = Operator(
    spec=AudioQualitySpec,
    summary="leave out recordings that are too short, too long, too quiet or clipped",
    needs=lambda spec: ("waves",),
    gives=lambda spec: ("waves",),
    start=audio_quality,
)
