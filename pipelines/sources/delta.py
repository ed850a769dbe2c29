"""Delta tables: the Parquet files that a version of the table consists of."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

from pydantic import Field

from ...workflows.errors import EaglerayError
from ..columns import ColumnsSpec, given_columns
from ..files import Files
from ..quarantine import Refusal
from ..source import Source, Unit
from .parquet import read, row_groups

LOG = "_delta_log/"


class DeltaSpec(ColumnsSpec):
    """A Delta table; options say which column is what."""

    kind: Literal["delta"] = "delta"
    version: int | None = Field(default=None, ge=0)
    """Version of the table; the newest by default."""


def list_units(spec: DeltaSpec, files: Files) -> Iterator[Unit | Refusal]:
    """One unit for each row group of the files that the version consists of."""
    for path, partition in _active_files(spec, files):
        if path in files.entries:
            yield from row_groups(spec, files, path, partition)
        else:
            message = "the table's log names it, it is not there (vacuumed, or outside the folder)"
            yield Refusal(path, path, "delta", "missing-file", message)


def _active_files(spec: DeltaSpec, files: Files) -> list[tuple[str, dict[str, Any]]]:
    """Paths with the values of their partition's columns, as the table's log has them.

    The log is copied, so that it may lie wherever `Files` reads from.

    Raises:
        EaglerayError: when there is no such table or version, or it can't be read file by file.
    """
    try:
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError
    except ImportError:
        raise EaglerayError(
            "reading a Delta table needs the package deltalake",
            "pip install 'eagleray[delta]'",
            "source.kind",
        ) from None
    import pyarrow as pa

    log = [path for path in files.entries if path.startswith(LOG)]
    if not log:
        raise EaglerayError("the folder holds no Delta table: it has no _delta_log", "", files.shown)
    with tempfile.TemporaryDirectory() as copy:
        for path in log:
            place = Path(copy, path)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(files.read(path))
        try:
            table = DeltaTable(copy, version=spec.version)
            features = set(table.protocol().reader_features or ())
            mapping = table.metadata().configuration.get("delta.columnMapping.mode", "none")
            actions = pa.table(table.get_add_actions(flatten=True))
        except DeltaError as error:
            raise EaglerayError(
                f"the Delta table can't be opened: {error}", "mend it, or name another version", files.shown
            ) from error
    if "deletionVectors" in features or mapping != "none":
        what = "deletion vectors" if "deletionVectors" in features else "column mapping"
        raise EaglerayError(
            f"the Delta table uses {what}, with which its files alone say something else than the table",
            "rewrite it without (REORG TABLE … APPLY (PURGE), then drop the feature)",
            files.shown,
        )
    prefix = "partition."
    names = [name for name in actions.schema.names if name.startswith(prefix)]
    return [
        (unquote(row["path"]), {name.removeprefix(prefix): _plain(row[name]) for name in names})
        for row in actions.select(["path", *names]).to_pylist()
    ]


def _plain(value: Any) -> Any:  # noqa: ANN401 - what a partition's column holds
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


SOURCE = Source(
    spec=DeltaSpec,
    summary="a Delta table, whose columns hold pictures, captions, recordings or texts",
    columns=given_columns,
    list_units=list_units,
    read=read,
)
