"""Parquet files, a row group at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from ..columns import BATCH_ROWS, ColumnsSpec, given_columns, read_batch, wanted_columns
from ..files import OUTSIDE, Files
from ..quarantine import Refusal, Refuse, link_outside
from ..source import Row, Source, Unit
from ..spec import Preparation


class ParquetSpec(ColumnsSpec):
    """Parquet files; options say which column is what."""

    kind: Literal["parquet"] = "parquet"


def list_units(spec: ParquetSpec, files: Files) -> Iterator[Unit | Refusal]:
    """One unit for each row group."""
    for path in files.entries:
        if path.lower().endswith((".parquet", ".pq")):
            yield from row_groups(spec, files, path, {})


def row_groups(
    spec: ColumnsSpec, files: Files, path: str, constants: Mapping[str, Any]
) -> Iterator[Unit | Refusal]:
    """One unit for each row group of a Parquet file.

    Args:
        spec: which column is what.
        files: the source's.
        path: of the file.
        constants: columns that the file lacks, each with its value in all rows.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if files.entries[path].version == OUTSIDE:
        yield link_outside(spec.kind, path)
        return
    try:
        with files.open(path) as source:
            found = pq.ParquetFile(source)
            rows = [found.metadata.row_group(i).num_rows for i in range(found.num_row_groups)]
            there = found.schema_arrow.names
    except (pa.ArrowException, OSError) as error:
        yield Refusal(path, path, spec.kind, "corrupt-table", f"the Parquet file can't be read: {error}")
        return
    wanted_columns(spec, [*there, *constants], path)
    for number in range(len(rows)):
        fields = {"row_group": number, "first": sum(rows[:number]), "constants": dict(constants)}
        yield Unit(f"{path}:{number:06d}", (path,), fields)


def read(
    spec: ColumnsSpec, files: Files, unit: Unit, preparation: Preparation, refuse: Refuse
) -> Iterator[Row]:
    """The records of a row group, some rows at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (path,) = unit.files
    constants = unit.fields["constants"]
    with files.open(path) as source:
        found = pq.ParquetFile(source)
        wanted = wanted_columns(spec, [*found.schema_arrow.names, *constants], path)
        columns = [name for name in wanted if name not in constants]
        first = unit.fields["first"]
        for batch in found.iter_batches(BATCH_ROWS, row_groups=[unit.fields["row_group"]], columns=columns):
            for name in constants.keys() & set(wanted):
                batch = batch.append_column(name, pa.array([constants[name]] * batch.num_rows))
            yield from read_batch(spec, batch, path, first, refuse)
            first += batch.num_rows


SOURCE = Source(
    spec=ParquetSpec,
    summary="Parquet files, whose columns hold pictures, captions, recordings or texts",
    columns=given_columns,
    list_units=list_units,
    read=read,
)
