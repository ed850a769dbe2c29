"""Common Voice's layout (Ardila et al. 2020): a TSV that names clips, their sentences and their speakers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from ..files import OUTSIDE, Files
from ..quarantine import Refusal, Refuse, link_outside
from ..source import Row, Source, SourceSpec, Unit
from ..spec import Preparation
from ..tables import read_rows

COLUMNS = ("client_id", "path", "sentence")


class CommonVoiceSpec(SourceSpec):
    """Sentences that volunteers read; no speaker stands in two splits."""

    kind: Literal["common-voice"] = "common-voice"
    table: str = "validated.tsv"
    """The TSV's path in the folder; the clips lie in `clips` beside it."""
    language: str | None = None
    """Of speech and sentences; the table's column `locale` by default."""


def list_units(spec: CommonVoiceSpec, files: Files) -> Iterator[Unit | Refusal]:
    """One unit for each clip that the table names."""
    folder = spec.table.rpartition("/")[0]
    seen: set[str] = set()
    for row in read_rows(files, spec.table, COLUMNS if spec.language else (*COLUMNS, "locale")):
        path = "/".join(part for part in (folder, "clips", row["path"]) if part)
        if path in seen:
            yield Refusal(path, path, "common-voice", "duplicate-id", "the table names the clip twice")
        elif path not in files.entries:
            message = f"{spec.table} names it, it is not there"
            yield Refusal(path, path, "common-voice", "missing-file", message)
        elif files.entries[path].version == OUTSIDE:
            yield link_outside("common-voice", path)
        else:
            fields = {"speaker": row["client_id"], "text": row["sentence"]}
            yield Unit(path, (path,), fields | {"language": spec.language or row["locale"]})
        seen.add(path)


def read(
    spec: CommonVoiceSpec, files: Files, unit: Unit, preparation: Preparation, refuse: Refuse
) -> Iterator[Row]:
    """The record of a clip."""
    (path,) = unit.files
    language = unit.fields["language"]
    yield {
        "id": path,
        "group": f"speaker {unit.fields['speaker']}",
        "captions": [{"language": language, "text": unit.fields["text"]}] if unit.fields["text"] else [],
        "recordings": [{"language": language, "address": path, "content": files.read(path)}],
    }


SOURCE = Source(
    spec=CommonVoiceSpec,
    summary="sentences that volunteers read, as Common Voice lays them out",
    columns=lambda spec: ("captions", "recordings"),
    list_units=list_units,
    read=read,
)
