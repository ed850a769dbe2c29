"""Parquet files, a row group at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from ..columns import BATCH_ROWS, ColumnsSpec, given_columns, read_batch, wanted_columns
from ..files import OUTSIDE, Files
from ..quarantine import Refusal, Refuse
from ..source import Row, Source, Unit
from ..spec import Preparation


class ParquetSpec(ColumnsSpec):
    """Parquet files; options say which column is what."""

    kind: Literal["parquet"] = "parquet"


def list_units(spec: ParquetSpec, files: Files) -> Iterator[Unit | Refusal]:
    """One unit for each row group."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path, entry in files.entries.items():
        if not path.lower().endswith((".parquet", ".pq")):
            continue
        if entry.version == OUTSIDE:
            yield Refusal(path, path, "parquet", "link-outside", "the link leads out of the folder")
            continue
        try:
            with files.open(path) as source:
                found = pq.ParquetFile(source)
                rows = [found.metadata.row_group(i).num_rows for i in range(found.num_row_groups)]
                there = found.schema_arrow.names
        except (pa.ArrowException, OSError) as error:
            yield Refusal(path, path, "parquet", "corrupt-table", f"the Parquet file can't be read: {error}")
            continue
        wanted_columns(spec, there, path)
        for number in range(len(rows)):
            fields = {"row_group": number, "first": sum(rows[:number])}
            yield Unit(f"{path}:{number:06d}", (path,), fields)


def read(
    spec: ParquetSpec, files: Files, unit: Unit, preparation: Preparation, refuse: Refuse
) -> Iterator[Row]:
    """The records of a row group, some rows at a time."""
    import pyarrow.parquet as pq

    (path,) = unit.files
    with files.open(path) as source:
        found = pq.ParquetFile(source)
        columns = wanted_columns(spec, found.schema_arrow.names, path)
        first = unit.fields["first"]
        batches = found.iter_batches(BATCH_ROWS, row_groups=[unit.fields["row_group"]], columns=columns)
        for batch in batches:
            yield from read_batch(spec, batch, path, first, refuse)
            first += batch.num_rows


SOURCE = Source(
    spec=ParquetSpec,
    summary="Parquet files, whose columns hold pictures, captions, recordings or texts",
    columns=given_columns,
    list_units=list_units,
    read=read,
)
