"""Small tables beside a source's files: CSV, TSV, JSONL and Parquet, read row by row."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..workflows.errors import EaglerayError
from .files import Files


def read_rows(files: Files, path: str, wanted: Iterable[str]) -> Iterator[Mapping[str, Any]]:
    """The rows of a table, by the end of its name.

    Args:
        files: the source's.
        path: of the table.
        wanted: columns that it must have.

    Raises:
        EaglerayError: when it isn't there, has no such column, or can't be read.
    """
    if path not in files.entries:
        raise EaglerayError(f"there is no table {path}", "correct the source's options", files.shown)
    content = files.read(path)
    number = -1
    try:
        for number, row in enumerate(_rows(path, content)):
            missing = sorted(set(wanted) - row.keys()) if number == 0 or path.endswith(".jsonl") else []
            if missing:
                raise EaglerayError(
                    f"row {number + 1} of {path} has no {', '.join(missing)}; it has {', '.join(row)}",
                    "name its columns in the source's options",
                    files.shown,
                )
            yield row
        if number < 0:
            raise ValueError("it has no rows")
    except (ValueError, csv.Error) as error:
        raise EaglerayError(f"{path} can't be read: {error}", "mend it, as UTF-8", files.shown) from error


def _rows(path: str, content: bytes) -> Iterator[Mapping[str, Any]]:
    lower = path.lower()
    if lower.endswith((".csv", ".tsv")):
        delimiter = "\t" if lower.endswith(".tsv") else ","
        yield from csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""), delimiter=delimiter)
    elif lower.endswith((".jsonl", ".ndjson")):
        for line in content.decode("utf-8-sig").splitlines():
            if line.strip():
                yield json.loads(line)
    elif lower.endswith(".parquet"):
        import pyarrow as pa
        import pyarrow.parquet as pq

        for batch in pq.ParquetFile(pa.BufferReader(content)).iter_batches():
            yield from batch.to_pylist()
    else:
        raise ValueError("it is no .csv, .tsv, .jsonl or .parquet file")
