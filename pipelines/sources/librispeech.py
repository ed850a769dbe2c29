"""LibriSpeech's layout (Panayotov et al. 2015): `SPEAKER/CHAPTER/SPEAKER-CHAPTER-NUMBER.flac`, and for each
chapter one file of transcripts.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Literal

from ..files import OUTSIDE, Files
from ..quarantine import Refusal, Refuse, Refused, link_outside
from ..source import Row, Source, SourceSpec, Unit
from ..spec import Preparation

_UTTERANCE = re.compile(
    r"(?P<folder>(?:.*/)?(?P<speaker>\d+)/(?P<chapter>\d+))/(?P<id>\d+-\d+-\d+)\.(?:flac|wav)"
)


class LibrispeechSpec(SourceSpec):
    """Read speech with transcripts, as LibriSpeech lays it out; no speaker stands in two splits."""

    kind: Literal["librispeech"] = "librispeech"
    language: str = "en"
    """Of speech and transcripts."""


def list_units(spec: LibrispeechSpec, files: Files) -> Iterator[Unit | Refusal]:
    """One unit for each chapter: its transcripts lie in one file."""
    chapters: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for path, entry in files.entries.items():
        match = _UTTERANCE.fullmatch(path)
        if match is None:
            continue
        if entry.version == OUTSIDE:
            yield link_outside("librispeech", path, match["id"])
        else:
            chapters[match["folder"], match["speaker"], match["chapter"]].append(path)
    for (folder, speaker, chapter), paths in chapters.items():
        transcripts = f"{folder}/{speaker}-{chapter}.trans.txt"
        fields = {"speaker": speaker, "transcripts": files.holds(transcripts)}
        yield Unit(folder, (transcripts, *paths), fields)


def read(
    spec: LibrispeechSpec, files: Files, unit: Unit, preparation: Preparation, refuse: Refuse
) -> Iterator[Row]:
    """The utterances of a chapter; one without a transcript stays without a caption."""
    transcripts, *paths = unit.files
    said = _transcripts(files, transcripts, refuse) if unit.fields["transcripts"] else {}
    for path in paths:
        name = path.rpartition("/")[2].partition(".")[0]
        try:
            content = files.read(path)
        except OSError as error:
            unreadable = Refused("unreadable-file", f"the file can't be read: {error.strerror or error}")
            refuse(unreadable, path, whole=True)
            continue
        if name not in said:
            refuse(Refused("missing-caption", f"{transcripts} has no line for it"), path)
        yield {
            "id": name,
            "group": f"speaker {unit.fields['speaker']}",
            "captions": [{"language": spec.language, "text": said[name]}] if name in said else [],
            "recordings": [{"language": spec.language, "address": path, "content": content}],
        }


def _transcripts(files: Files, path: str, refuse: Refuse) -> dict[str, str]:
    """Utterance → transcript."""
    content = files.read(path)
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        message = f"the transcripts are not UTF-8: byte 0x{content[error.start]:02x} at {error.start}"
        refuse(Refused("caption-not-utf8", message), path, content)
        return {}
    pairs = (line.partition(" ") for line in lines)
    return {name: text.strip() for name, _, text in pairs if text.strip()}


SOURCE = Source(
    spec=LibrispeechSpec,
    summary="read speech with transcripts, as LibriSpeech lays it out",
    columns=lambda spec: ("captions", "recordings"),
    list_units=list_units,
    read=read,
)
