"""A folder of recordings with transcripts, in text files beside them or in a table."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from ..files import OUTSIDE, Files
from ..quarantine import Refusal, Refuse, Refused, link_outside
from ..source import Row, Source, SourceSpec, Unit
from ..spec import Preparation
from ..tables import read_rows

SUFFIXES = (".flac", ".mp3", ".ogg", ".opus", ".wav")


class TranscriptsSpec(SourceSpec):
    """A folder of recordings, each with a text file beside it, or with a table of transcripts."""

    kind: Literal["transcripts"] = "transcripts"
    table: str | None = None
    """Path of a CSV, TSV, JSONL or Parquet file in the folder; without one, `x.txt` goes with `x.wav`."""
    path_column: str = "path"
    """The table's column of paths, relative to its own folder."""
    text_column: str = "text"
    """Its column of transcripts."""
    speaker_column: str | None = None
    """Its column of speakers; no speaker stands in two splits then."""
    language: str = "en"
    """Of speech and transcripts."""


def list_units(spec: TranscriptsSpec, files: Files) -> Iterator[Unit | Refusal]:
    """One unit for each recording; with a table, for each that it names."""
    described = _described(spec, files) if spec.table else {}
    for path, entry in files.entries.items():
        if not path.lower().endswith(SUFFIXES) or (spec.table and path not in described):
            continue
        if entry.version == OUTSIDE:
            yield link_outside("transcripts", path)
        elif spec.table:
            yield Unit(path, (path,), described[path])
        else:
            beside = _text_path(path)
            yield Unit(path, (path, beside) if files.holds(beside) else (path,))
    for path in sorted(described.keys() - files.entries.keys()):
        yield Refusal(path, path, "transcripts", "missing-file", f"{spec.table} names it, it is not there")


def read(
    spec: TranscriptsSpec, files: Files, unit: Unit, preparation: Preparation, refuse: Refuse
) -> Iterator[Row]:
    """The record of a recording; one without a transcript stays without a caption."""
    path = unit.files[0]
    content = files.read(path)
    if spec.table:
        said = unit.fields["text"]
        if not said:
            refuse(Refused("missing-caption", f"{spec.table} has no text for it"), path)
    else:
        said = _beside(files, unit.files[1:], _text_path(path), refuse)
    speaker = unit.fields.get("speaker")
    yield {
        "id": path,
        "group": f"speaker {speaker}" if speaker else None,
        "captions": [{"language": spec.language, "text": said}] if said else [],
        "recordings": [{"language": spec.language, "address": path, "content": content}],
    }


def _text_path(path: str) -> str:
    return f"{os.path.splitext(path)[0]}.txt"


def _beside(files: Files, found: Sequence[str], path: str, refuse: Refuse) -> str:
    """The transcript in a text file of its own; empty where there is none that can be read.

    Args:
        files: the source's. A task doesn't ask for its entries: that would list all of them again.
        found: the text file, if the listing saw one.
        path: where it would be.
        refuse: notes that it is missing.
    """
    if not found:
        refuse(Refused("missing-caption", "there is no such file"), path)
        return ""
    content = files.read(path)
    try:
        said = " ".join(content.decode("utf-8-sig").split())
    except UnicodeDecodeError as error:
        message = f"the transcript is not UTF-8: byte 0x{content[error.start]:02x} at {error.start}"
        refuse(Refused("caption-not-utf8", message), path, content)
        return ""
    if not said:
        refuse(Refused("missing-caption", "the file is empty"), path)
    return said


def _described(spec: TranscriptsSpec, files: Files) -> dict[str, dict[str, Any]]:
    """Path → what the table says of it."""
    assert spec.table is not None
    folder = spec.table.rpartition("/")[0]
    wanted = {spec.path_column, spec.text_column} | ({spec.speaker_column} if spec.speaker_column else set())
    found: dict[str, dict[str, Any]] = {}
    for row in read_rows(files, spec.table, wanted):
        path = "/".join(part for part in (folder, str(row[spec.path_column])) if part)
        found[path] = {"text": str(row[spec.text_column] or "")}
        if spec.speaker_column:
            found[path]["speaker"] = str(row[spec.speaker_column])
    return found


SOURCE = Source(
    spec=TranscriptsSpec,
    summary="a folder of recordings with transcripts, beside them or in a table",
    columns=lambda spec: ("captions", "recordings"),
    list_units=list_units,
    read=read,
)
