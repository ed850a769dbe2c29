"""Cutting silence off recordings, and leaving out those that are too short, too quiet or clipped."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ..operator import Apply, Operator, OperatorSpec
from ..quarantine import Refuse, Refused
from ..source import Row
from ..spec import Preparation


class TrimSilenceSpec(OperatorSpec):
    """Cut silence off both ends of every recording.

    Serving takes recordings as they come: a model that learned without silence wants to be asked without.
    """

    kind: Literal["trim-silence"] = "trim-silence"
    threshold_db: float = Field(default=40.0, gt=0)
    """Decibels under the loudest 10 ms from which on it is silent."""
    margin_ms: float = Field(default=50.0, ge=0)
    """Milliseconds of silence that stay."""


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

    def apply(row: Row, refuse: Refuse) -> Row:
        waves: list[Row] = []
        for wave in row["waves"]:
            kept = trim(wave["wave"], preparation.sample_rate, spec.threshold_db, spec.margin_ms)
            duration_s = wave["duration_s"] - (len(wave["wave"]) - len(kept)) / preparation.sample_rate
            waves.append({**wave, "wave": kept, "duration_s": duration_s})
        return {"waves": waves}

    return apply


def audio_quality(spec: AudioQualitySpec, preparation: Preparation) -> Apply:
    """`waves` without those that break a rule; the record goes on without them."""
    import numpy as np

    def judge(wave: Row) -> None:
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

    def apply(row: Row, refuse: Refuse) -> Row:
        kept: list[Row] = []
        for wave in row["waves"]:
            try:
                judge(wave)
                kept.append(wave)
            except Refused as refused:
                refuse(refused, wave["address"])
        return {"waves": kept}

    return apply


TRIM = Operator(
    spec=TrimSilenceSpec,
    summary="cut silence off both ends of recordings",
    needs=lambda spec: ("waves",),
    gives=lambda spec: ("waves",),
    start=trim_silence,
)
QUALITY = Operator(
    spec=AudioQualitySpec,
    summary="leave out recordings that are too short, too long, too quiet or clipped",
    needs=lambda spec: ("waves",),
    gives=lambda spec: ("waves",),
    start=audio_quality,
)
