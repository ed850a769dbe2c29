"""Writing a corpus's Parquet shards: the bytes depend on the rows and on nothing else."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from .contracts import TABLES, shard_path
from .spec import SPLITS


def write_table(table: pa.Table, path: Path) -> None:
    """Write one Parquet file, the same bytes for the same rows however the table is chunked."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        table.combine_chunks(),
        path,
        compression="zstd",
        compression_level=1,
        use_dictionary=False,  # pictures and spectrograms hardly repeat
        row_group_size=max(1, table.num_rows),
    )


class ShardWriter:
    """Writes one table of a corpus shard by shard, as rows come in, split after split.

    Args:
        corpus: its folder.
        table: `pictures`, `captions` or `speech`.
        shard_rows: rows of a full shard.
    """

    def __init__(self, corpus: Path, table: str, shard_rows: int) -> None:
        self._corpus = corpus
        self._table = table
        self._shard_rows = shard_rows
        self._waiting: dict[str, list[pa.Table]] = {split: [] for split in SPLITS}
        self._numbers = dict.fromkeys(SPLITS, 0)
        self.counts = dict.fromkeys(SPLITS, 0)
        """Rows by split."""

    def add(self, split: str, rows: pa.Table) -> None:
        """Add rows of a split, in the order in which they shall stand; columns as in the schema."""
        self.counts[split] += rows.num_rows
        self._waiting[split].append(rows.select(TABLES[self._table].names).cast(TABLES[self._table]))
        waiting = sum(part.num_rows for part in self._waiting[split])
        while waiting >= self._shard_rows:
            self._write(split, self._shard_rows)
            waiting -= self._shard_rows

    def close(self) -> None:
        """Write what is left; a split without rows gets one empty shard."""
        for split, number in list(self._numbers.items()):
            if number == 0 or any(part.num_rows for part in self._waiting[split]):
                self._write(split, self._shard_rows)

    def _write(self, split: str, num_rows: int) -> None:
        schema = TABLES[self._table]
        parts = self._waiting[split]
        rows = pa.concat_tables(parts) if parts else schema.empty_table()
        write_table(
            rows.slice(0, num_rows), shard_path(self._corpus, self._table, split, self._numbers[split])
        )
        self._numbers[split] += 1
        self._waiting[split] = [rows.slice(num_rows)]
