"""Asterisk's prompts: short recordings of one voice with what it says."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from typing import Literal

from ..files import Files
from ..packages import Package
from ..quarantine import Refusal, Refuse, Refused, file_missing
from ..source import Row, Source, SourceSpec, Unit
from ..spec import Preparation

SOUNDS = Package(
    manager="apt",
    name="asterisk-core-sounds-en-g722",
    version="1.6.1-1",
    sha256="38c5261820b406dcb0ecb37675720da2b0864850690690352ca52707eb623806",
)
TEXTS = Package(
    manager="apt",
    name="asterisk-core-sounds-en",
    version="1.6.1-1",
    sha256="973e797d28e37fa6ca3c0a9d6fa717e77cf1268ae916bf09fd3503113cdffa50",
)
TABLE = "core-sounds-en.txt.gz"
RATE = 16_000


class AsteriskSpec(SourceSpec):
    """Asterisk's English prompts: one voice, 16 kHz, with transcripts; tones and beeps are left out."""

    kind: Literal["asterisk"] = "asterisk"


def list_units(spec: AsteriskSpec, files: Files) -> Iterator[Unit | Refusal]:
    """One unit for each recording in which something is said."""
    table = next((path for path in files.entries if path.endswith(TABLE)), None)
    if table is None:
        yield file_missing("asterisk", TABLE)
        return
    said = parse_transcripts(gzip.decompress(files.read(table)).decode("utf-8", "replace"))
    for path in files.entries:
        if not path.endswith(".g722"):
            continue
        stem = path.removesuffix(".g722")
        # a prompt is named from the voice's folder on: digits/1, queue-thankyou
        names = [stem.split("/", n)[-1] for n in range(stem.count("/") + 1)]
        text = next((said[name] for name in names if name in said), None)
        if text is None:
            yield Refusal(path, path, "asterisk", "missing-caption", f"{TABLE} does not name it")
        elif not text.startswith("["):
            yield Unit(path, (path,), {"text": text})


def read(
    spec: AsteriskSpec, files: Files, unit: Unit, preparation: Preparation, refuse: Refuse
) -> Iterator[Row]:
    """The record of a recording."""
    (path,) = unit.files
    text = unit.fields["text"]
    yield {
        "id": path,
        "captions": [{"language": "en", "text": text}],
        "recordings": [{"language": "en", "address": path, "content": as_wave(files.read(path))}],
    }


def parse_transcripts(table: str) -> dict[str, str]:
    """Prompt → what is said, from lines of `name: text`; what is in brackets is a sound."""
    found: dict[str, str] = {}
    for line in table.splitlines():
        name, colon, text = line.partition(":")
        if colon and not line.startswith(";"):
            found[name.strip()] = " ".join(text.split())
    return found


def as_wave(g722: bytes) -> bytes:
    """ITU-T G.722 at 64 kbit/s as a WAV file."""
    import av
    import numpy as np
    import soundfile

    try:
        with av.open(io.BytesIO(g722), "r", format="g722") as container:
            frames = [np.int16(frame.to_ndarray().ravel()) for frame in container.decode(audio=0)]
    except av.FFmpegError as error:
        raise Refused("not-audio", f"not readable as G.722: {error}") from None
    if not frames:
        raise Refused("not-audio", "no sound in it")
    wave = io.BytesIO()
    soundfile.write(wave, np.concatenate(frames), RATE, format="WAV")
    return wave.getvalue()


SOURCE = Source(
    spec=AsteriskSpec,
    summary="Asterisk's English prompts: one voice, with transcripts",
    columns=lambda spec: ("captions", "recordings"),
    list_units=list_units,
    read=read,
    licence="CC BY-SA 3.0",
    size_bytes=10_600_000,
    packages={"sounds": SOUNDS, "texts": TEXTS},
)
