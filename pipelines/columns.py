"""Records from the columns of a table, whatever file it lies in: which column is what."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..workflows.errors import EaglerayError
from .quarantine import Refuse, Refused
from .source import Row, SourceSpec

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 64


class ColumnsSpec(SourceSpec):
    """Which column of a table is what. A picture or recording is bytes, or a struct of `bytes` and `path`."""

    id_column: str | None = None
    """Column of ids; the row's place in its file by default."""
    group_column: str | None = None
    """Column of what no two splits may share (a speaker, a patient)."""
    category_column: str | None = None
    """Column of categories."""
    picture_column: str | None = None
    """Column of encoded pictures."""
    caption_columns: tuple[tuple[str, str], ...] = ()
    """Language and column of each caption; a column may hold lists of captions."""
    recording_columns: tuple[tuple[str, str], ...] = ()
    """Language and column of each encoded recording."""
    text_column: str | None = None
    """Column of documents."""


def given_columns(spec: ColumnsSpec) -> tuple[str, ...]:
    """Names of the columns that records have."""
    given = {
        "category": spec.category_column,
        "captions": spec.caption_columns,
        "picture": spec.picture_column,
        "recordings": spec.recording_columns,
        "text": spec.text_column,
    }
    return tuple(name for name, column in given.items() if column)


def wanted_columns(spec: ColumnsSpec, there: list[str], where: str) -> list[str]:
    """The table's columns that are read.

    Raises:
        EaglerayError: when none is named, or one isn't there.
    """
    single = (spec.id_column, spec.group_column, spec.category_column, spec.picture_column, spec.text_column)
    listed = (*spec.caption_columns, *spec.recording_columns)
    wanted = list(dict.fromkeys([*(one for one in single if one), *(column for _, column in listed)]))
    missing = [name for name in wanted if name not in there]
    if missing or not given_columns(spec):
        cause = (
            f"{where} has no column {missing[0]!r}" if missing else "the source names no column to learn from"
        )
        remedy = f"set its options (picture_column, text_column, …) to some of {', '.join(there)}"
        raise EaglerayError(cause, remedy, "source")
    return wanted


def read_batch(
    spec: ColumnsSpec, batch: pa.RecordBatch, address: str, first: int, refuse: Refuse
) -> Iterator[Row]:
    """The records of some rows.

    Args:
        spec: which column is what.
        batch: rows, with the columns of `wanted_columns`.
        address: of the file.
        first: number of the first row in it.
        refuse: for rows that can't be used.
    """
    for number, row in enumerate(batch.to_pylist(), first):
        name = str(row[spec.id_column]) if spec.id_column else f"{address}#{number}"
        where = f"{address}#{number}"
        try:
            yield _record(spec, row, name, where)
        except Refused as refused:
            refuse(refused, where, whole=True)


def _record(spec: ColumnsSpec, row: Row, name: str, where: str) -> Row:
    record: Row = {"id": name}
    if spec.group_column:
        record["group"] = _text(row[spec.group_column])
    if spec.category_column:
        record["category"] = _text(row[spec.category_column])
    if spec.caption_columns:
        record["captions"] = [
            {"language": language, "text": text}
            for language, column in spec.caption_columns
            for text in _texts(row[column])
        ]
    if spec.picture_column:
        record["picture"] = _file(row, spec.picture_column, where)
    if spec.recording_columns:
        found = [(language, _file(row, column, where)) for language, column in spec.recording_columns]
        record["recordings"] = [{"language": language, **file} for language, file in found if file]
    if spec.text_column:
        record["text"] = _text(row[spec.text_column])
    if not any(record.get(name) for name in ("captions", "picture", "recordings", "text")):
        raise Refused("empty-record", "the row has nothing in any of the columns")
    return record


def _file(row: Row, column: str, where: str) -> Row | None:
    """An encoded picture or recording; None where there is none."""
    value = row[column]
    if isinstance(value, dict):
        value = value.get("bytes")
    if value is None:
        return None
    if isinstance(value, bytes):
        return {"address": f"{where}.{column}", "content": value}
    raise Refused("not-bytes", f"the column {column} holds {type(value).__name__}, not bytes")


def _texts(value: Any) -> list[str]:  # noqa: ANN401 - what a table holds
    values = value if isinstance(value, list) else [value]
    return [str(one) for one in values if one not in (None, "")]


def _text(value: Any) -> str | None:  # noqa: ANN401 - what a table holds
    return None if value is None else str(value)
