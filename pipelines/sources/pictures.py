"""A folder of pictures, with captions in a table beside them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from ..files import OUTSIDE, Files
from ..quarantine import Refusal, Refuse, link_outside
from ..source import Row, Source, SourceSpec, Unit
from ..spec import Preparation
from ..tables import read_rows

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".svg", ".svgz", ".tif", ".tiff", ".webp")


class PicturesSpec(SourceSpec):
    """A folder of pictures, captioned by a CSV, TSV, JSONL or Parquet file."""

    kind: Literal["pictures"] = "pictures"
    captions: str | None = None
    """The table's path in the folder; without one, pictures have no captions."""
    path_column: str = "path"
    """Its column of paths, relative to the table's own folder."""
    caption_columns: tuple[tuple[str, str], ...] = (("en", "caption"),)
    """Language and column of each caption."""
    category: Literal["folder", "none"] | str = "folder"
    """What a picture's category is: its folder, none, or a column of the table."""
    group_column: str | None = None
    """Column of what no two splits may share (a patient, a board)."""


def list_units(spec: PicturesSpec, files: Files) -> Iterator[Unit | Refusal]:
    """One unit for each picture; with a table, for each picture that it names."""
    described = _described(spec, files) if spec.captions else {}
    for path, entry in files.entries.items():
        if not path.lower().endswith(SUFFIXES):
            continue
        if entry.version == OUTSIDE:
            yield link_outside("pictures", path)
        elif not spec.captions or path in described:
            yield Unit(path, (path,), described.get(path, {}))
    for path in sorted(described.keys() - files.entries.keys()):
        yield Refusal(path, path, "pictures", "missing-file", f"{spec.captions} names it, it is not there")


def read(
    spec: PicturesSpec, files: Files, unit: Unit, preparation: Preparation, refuse: Refuse
) -> Iterator[Row]:
    """The record of a picture."""
    (path,) = unit.files
    category = path.rpartition("/")[0].rpartition("/")[2] or None
    yield {
        "id": path,
        "group": unit.fields.get("group"),
        "category": category if spec.category == "folder" else unit.fields.get("category"),
        "captions": unit.fields.get("captions", []),
        "picture": {"address": path, "content": files.read(path)},
    }


def _described(spec: PicturesSpec, files: Files) -> dict[str, dict[str, Any]]:
    """Path → what the table says of it."""
    assert spec.captions is not None
    folder = spec.captions.rpartition("/")[0]
    wanted = {spec.path_column, *(column for _, column in spec.caption_columns)}
    wanted |= {spec.group_column} if spec.group_column else set()
    wanted |= {spec.category} if spec.category not in ("folder", "none") else set()
    found: dict[str, dict[str, Any]] = {}
    for row in read_rows(files, spec.captions, wanted):
        path = "/".join(part for part in (folder, str(row[spec.path_column])) if part)
        captions = [
            {"language": language, "text": str(row[column])}
            for language, column in spec.caption_columns
            if row[column] not in (None, "")
        ]
        known = found.setdefault(path, {"captions": []})
        known["captions"] += captions
        if spec.group_column:
            known["group"] = str(row[spec.group_column])
        if spec.category not in ("folder", "none"):
            known["category"] = str(row[spec.category])
    return found


SOURCE = Source(
    spec=PicturesSpec,
    summary="a folder of pictures, with captions in a CSV, TSV, JSONL or Parquet file",
    columns=lambda spec: ("category", "captions", "picture"),
    list_units=list_units,
    read=read,
)
