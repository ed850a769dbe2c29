"""Which units are prepared already, and where their rows lie: in parts of an interrupted attempt, or in the
corpus that an earlier run made of the same source before it grew.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from .compute import pc
from .contracts import PLACE, QUARANTINE, shard_paths
from .preparing import END, RECORD, REFUSAL
from .shards import MappedRows
from .spec import SPLITS

PART_BYTES = 64 << 20
"""Prepared rows that are written to disk at once; a killed run loses no more than that."""

ARRIVING = "arriving-"

Keys = NDArray[np.void]
"""Keys of units, 16 bytes each."""


@dataclass(frozen=True)
class Holding:
    """Prepared rows of whole units.

    Attributes:
        rows: where they are.
        places: their `unit`, `row`, and their position in `rows`, for records only.
        refusals: of the same units, as `QUARANTINE` has them.
        units: the units, as `key`, `records`.
    """

    rows: MappedRows
    places: pa.Table
    refusals: pa.Table
    units: pa.Table

    def of(self, keys: pa.Array) -> Holding:
        """What it holds of these units."""
        return Holding(
            self.rows,
            self.places.filter(pc.is_in(self.places["unit"], keys)),
            self.refusals.filter(pc.is_in(self.refusals["unit"], keys)),
            self.units.filter(pc.is_in(self.units["key"], keys)),
        )


def write_parts(blocks: Iterable[pa.Table], folder: Path) -> Iterator[pa.Table]:
    """Write prepared blocks to parts below `folder`, each as it comes, and yield them once more."""
    for broken_off in folder.glob(f"{ARRIVING}*"):
        broken_off.unlink()
    part: _Part | None = None
    try:
        for block in blocks:
            part = part or _Part(folder, block.schema)
            part.add(block)
            if part.size_bytes >= PART_BYTES:
                part.close()
                part = None
            yield block
    finally:
        if part is not None:
            part.close()


def open_parts(folder: Path) -> Holding | None:
    """What the parts below `folder` hold of whole units; None if there are none."""
    paths = sorted(folder.glob("part-*.arrow"))
    if not paths:
        return None
    rows = MappedRows(paths, uneven=True)
    places = rows.column(*PLACE.names, "event")
    places = places.append_column("position", pa.array(np.arange(len(rows))))
    ends = places.filter(pc.equal(places["event"], END))
    units = pa.table({"key": ends["unit"], "records": ends["row"]})
    units = units.group_by("key").aggregate([("records", "min")]).rename_columns(["key", "records"])
    whole = pc.is_in(places["unit"], units["key"].combine_chunks())
    refused = places.filter(pc.and_(whole, pc.equal(places["event"], REFUSAL)))
    return Holding(
        rows,
        _once(places.filter(pc.and_(whole, pc.equal(places["event"], RECORD))), PLACE.names),
        _refusals(rows, refused["position"].to_numpy()),
        units,
    )


def open_corpus(folder: Path) -> Holding | None:
    """What a corpus holds of whole units: those of which no record was left out as a duplicate."""
    if not (folder / "intake.parquet").is_file():
        return None  # of an earlier version
    intake = pq.read_table(folder / "intake.parquet")
    whole = intake.filter(pc.equal(intake["records"], pc.add(intake["kept"], intake["refused"])))
    units = pa.table({"key": whole["unit"], "records": whole["records"]})
    rows = MappedRows([path for split in SPLITS for path in shard_paths(folder, split)])
    places = rows.column(*PLACE.names)
    places = places.append_column("position", pa.array(np.arange(len(rows))))
    refusals = pq.read_table(folder / "quarantine.parquet", schema=QUARANTINE)
    keys = units["key"].combine_chunks()
    return Holding(
        rows,
        places.filter(pc.is_in(places["unit"], keys)),
        refusals.filter(pc.is_in(refusals["unit"], keys)),
        units,
    )


def _refusals(rows: MappedRows, positions: NDArray[np.int64]) -> pa.Table:
    """The refusals at these positions of parts, as `QUARANTINE` has them."""
    table = rows.take(positions, [*PLACE.names, "refusal"])
    refusal = table["refusal"].combine_chunks()
    columns = [table[name] for name in PLACE.names]
    columns += [refusal.field(name) for name in QUARANTINE.names[len(PLACE) :]]
    found = pa.table(columns, QUARANTINE).append_column("position", pa.array(positions))
    return _once(found, QUARANTINE.names[:-1]).select(QUARANTINE.names)


def _once(places: pa.Table, columns: list[str]) -> pa.Table:
    """One row of those alike in `columns`: a unit of which an attempt got half is read again by the next."""
    first = places.group_by(columns).aggregate([("position", "min")])["position_min"]
    return places.filter(pc.is_in(places["position"], first.combine_chunks()))


class _Part:
    """A file of prepared rows, which has its name once it is whole."""

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._final = folder / f"part-{len(list(folder.glob('part-*.arrow'))):06d}.arrow"
        self._arriving = folder / f"{ARRIVING}{uuid.uuid4().hex}"
        self._file = pa.ipc.new_file(str(self._arriving), schema)
        self.size_bytes = 0

    def add(self, block: pa.Table) -> None:
        self.size_bytes += block.nbytes
        self._file.write_table(block.combine_chunks())

    def close(self) -> None:
        self._file.close()
        self._arriving.rename(self._final)
