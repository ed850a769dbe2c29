"""Encoding waves as a corpus stores them. Put last where a source has recordings."""

from __future__ import annotations

from typing import Literal

from ..operator import Apply, Operator, OperatorSpec
from ..quarantine import Refuse
from ..source import Row
from ..spec import Preparation


class EncodeSpeechSpec(OperatorSpec):
    """Take the log-mel spectrogram of each wave."""

    kind: Literal["encode-speech"] = "encode-speech"


def encode_speech(spec: EncodeSpeechSpec, preparation: Preparation) -> Apply:
    """`waves` → `speech`."""
    import numpy as np

    from ..media import audio

    def apply(row: Row, refuse: Refuse) -> Row:
        speech: list[Row] = []
        for wave in row["waves"]:
            mel = audio.log_mel(wave["wave"], preparation)
            speech.append(
                {
                    "language": wave["language"],
                    "address": wave["address"],
                    "duration_s": wave["duration_s"],
                    "frames": len(mel),
                    "mel": mel.astype(np.float16).tobytes(),
                }
            )
        return {"speech": speech}

    return apply


ENCODE_SPEECH = Operator(
    spec=EncodeSpeechSpec,
    summary="waves to log-mel spectrograms",
    needs=lambda spec: ("waves",),
    gives=lambda spec: ("speech",),
    start=encode_speech,
)
