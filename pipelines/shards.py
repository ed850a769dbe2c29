"""A corpus's shards: Arrow IPC files, written so that their bytes depend on the rows alone, read by mapping.

Nothing is compressed, so a reader copies a row's pixels from the page cache and does nothing else.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from .contracts import shard_path, shard_paths

CHUNK_ROWS = 64
"""Rows of a record batch: what lies together and is read together."""
OPEN_BATCHES = 512
"""Record batches a reader keeps at hand: the window of an order, twice."""


def write_table(table: pa.Table, path: Path) -> None:
    """Write one Parquet file, the same bytes for the same rows however the table is chunked."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.combine_chunks(), path, compression="zstd", compression_level=1, row_group_size=4096)


class ShardWriter:
    """Writes a split shard by shard, as rows come in.

    Args:
        corpus: its folder.
        split: whose rows they are.
        schema: of the rows.
        shard_bytes: a shard that has so many is closed.
    """

    def __init__(self, corpus: Path, split: str, schema: pa.Schema, shard_bytes: int) -> None:
        self._corpus, self._split, self._schema = corpus, split, schema
        self._shard_bytes = shard_bytes
        self._waiting: list[pa.Table] = []
        self._num_waiting = 0
        self._shard: pa.ipc.RecordBatchFileWriter | None = None
        self._written_bytes = 0
        self._num_shards = 0
        self.num_rows = 0

    def add(self, rows: pa.Table) -> None:
        """Add rows in the order in which they shall stand."""
        self._waiting.append(rows.select(self._schema.names).cast(self._schema))
        self._num_waiting += rows.num_rows
        self.num_rows += rows.num_rows
        if self._num_waiting >= CHUNK_ROWS:
            waiting = pa.concat_tables(self._waiting)
            whole = self._num_waiting - self._num_waiting % CHUNK_ROWS
            for start in range(0, whole, CHUNK_ROWS):
                self._write(waiting.slice(start, CHUNK_ROWS))
            self._waiting = [waiting.slice(whole)]
            self._num_waiting -= whole

    def close(self) -> None:
        """Write what is left; a split without rows gets one empty shard."""
        if self._num_waiting:
            self._write(pa.concat_tables(self._waiting))
        if self._num_shards == 0:
            self._open()
        self._close()

    def _write(self, chunk: pa.Table) -> None:
        # A slice is written with more of its buffers than it needs: copied, it has just its own bytes.
        (batch,) = chunk.take(pa.array(range(chunk.num_rows))).combine_chunks().to_batches()
        shard = self._shard or self._open()
        shard.write_batch(batch)
        self._written_bytes += batch.nbytes
        if self._written_bytes >= self._shard_bytes:
            self._close()

    def _open(self) -> pa.ipc.RecordBatchFileWriter:
        path = shard_path(self._corpus, self._split, self._num_shards)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._num_shards += 1
        self._written_bytes = 0
        self._shard = pa.ipc.new_file(str(path), self._schema)
        return self._shard

    def _close(self) -> None:
        if self._shard is not None:
            self._shard.close()
            self._shard = None


class MappedRows:
    """The rows of Arrow IPC files, laid end to end; nothing is read before it is asked for.

    Args:
        paths: the files.
        uneven: the batches of a file are of any number of rows; else of one, but for its last.

    Attributes:
        size_bytes: of the files.
    """

    def __init__(self, paths: Sequence[Path], uneven: bool = False) -> None:
        self._files = [pa.ipc.open_file(pa.memory_map(str(path))) for path in paths]
        self.size_bytes = sum(path.stat().st_size for path in paths)
        sizes: list[int] = []
        self._where: list[tuple[int, int]] = []
        for number, file in enumerate(self._files):
            count = file.num_record_batches
            if uneven:
                sizes += [file.get_batch(i).num_rows for i in range(count)]
            elif count:
                sizes += [file.get_batch(0).num_rows] * (count - 1) + [file.get_batch(count - 1).num_rows]
            self._where += [(number, batch) for batch in range(count)]
        self._ends = np.cumsum(np.array(sizes, np.int64))
        self._open: OrderedDict[int, pa.RecordBatch] = OrderedDict()

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def starts(self) -> NDArray[np.int64]:
        """The first row of each record batch, and the number of all rows."""
        return np.concatenate([[0], self._ends])

    @property
    def schema(self) -> pa.Schema:
        """Of all files."""
        return self._files[0].schema

    def batch(self, number: int) -> pa.RecordBatch:
        """A record batch by its number over all files."""
        found = self._open.get(number)
        if found is None:
            file, index = self._where[number]
            found = self._open[number] = self._files[file].get_batch(index)
            if len(self._open) > OPEN_BATCHES:
                self._open.popitem(last=False)
        return found

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All record batches, in order."""
        for file, index in self._where:
            yield self._files[file].get_batch(index)

    def locate(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows (N,) → the number of each one's batch (N,), and its place there (N,)."""
        batches = np.searchsorted(self._ends, rows, side="right")
        return batches, rows - self.starts[batches]

    def take(self, rows: NDArray[np.int64], columns: Sequence[str]) -> pa.Table:
        """Copy rows (N,), in the order given."""
        batches, places = self.locate(rows)
        parts: list[pa.RecordBatch] = []
        edges = [0, *(np.flatnonzero(np.diff(batches)) + 1).tolist(), len(rows)]
        for start, end in pairwise(edges):
            if end > start:
                batch = self.batch(int(batches[start])).select(list(columns))
                parts.append(batch.take(pa.array(places[start:end])))
        return self._table(parts, columns)

    def column(self, *columns: str) -> pa.Table:
        """Whole columns; for small ones."""
        parts = [self.batch(number).select(list(columns)) for number in range(len(self._where))]
        return self._table(parts, columns)

    def _table(self, parts: Sequence[pa.RecordBatch], columns: Sequence[str]) -> pa.Table:
        """One table, every column of it nullable: parts allow a null where a corpus doesn't."""
        schema = pa.schema([self.schema.field(name).with_nullable(True) for name in columns])
        if not parts:
            return schema.empty_table()
        return pa.Table.from_arrays(
            [pa.chunked_array([part.column(name) for part in parts]) for name in columns], schema=schema
        )


def open_split(corpus: Path, split: str) -> MappedRows:
    """The rows of a split."""
    return MappedRows(shard_paths(corpus, split))
