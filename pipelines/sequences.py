"""What a training reads, row by row: records, or stretches of those whose document is long.

A document that goes beyond a limit is cut into sequences; each begins with the last token of the one before,
so that every token but the document's first is predicted exactly once. A record without a document, or one
with captions, is one sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .order import Rows, Seeds
from .reading import Arrays, CorpusReader
from .shards import OPEN_BATCHES
from .spec import Sizes


class Sequences:
    """The sequences of a split. Memory grows with its chunks of records, not with its documents.

    Args:
        reader: of the split.
        max_tokens: of a sequence; None cuts nothing, a record is one sequence, and of a long document it has
            as much as `preparation.max_tokens`.
    """

    def __init__(self, reader: CorpusReader, max_tokens: int | None = None) -> None:
        self.reader, self.max_tokens = reader, max_tokens
        self._cuts = max_tokens is not None and "text_tokens" in reader.info.columns
        self._ends = np.zeros(0, np.int64)  # of the chunks, in sequences
        if self._cuts:
            self._counts = lru_cache(maxsize=OPEN_BATCHES)(self._count)
            sizes = [int(self._count(chunk).sum()) for chunk in range(len(reader.chunk_starts) - 1)]
            self._ends = np.cumsum(np.array(sizes, np.int64))

    def __len__(self) -> int:
        if not self._cuts:
            return len(self.reader)
        return int(self._ends[-1]) if len(self._ends) else 0

    def locate(self, numbers: Rows) -> tuple[Rows, NDArray[np.int64]]:
        """Records (N,) of sequences (N,), and where in the record's document each begins (N,)."""
        if not self._cuts:
            return numbers, np.zeros_like(numbers)
        rows, starts = np.empty_like(numbers), np.empty_like(numbers)
        chunks = np.searchsorted(self._ends, numbers, side="right")
        for chunk in np.unique(chunks).tolist():
            here = chunks == chunk
            counts = self._counts(chunk)
            ends = np.cumsum(counts)
            within = numbers[here] - (self._ends[chunk] - ends[-1])
            places = np.searchsorted(ends, within, side="right")
            rows[here] = self.reader.chunk_starts[chunk] + places
            starts[here] = (within - (ends - counts)[places]) * (self._limit - 1)
        return rows, starts

    def ids_of(self, numbers: Rows) -> list[str]:
        """Ids (N,): the record's, with the place of the first token where that isn't the document's first."""
        rows, starts = self.locate(numbers)
        ids = self.reader.ids_of(rows)
        return [f"{one}@{start}" if start else one for one, start in zip(ids, starts.tolist(), strict=True)]

    def lengths(self, numbers: Rows, seeds: Seeds | None, *, transcript: bool = False) -> list[Sizes]:
        """Lengths of what `examples` reads of sequences (N,)."""
        rows, starts = self.locate(numbers)
        return self.reader.lengths(rows, seeds, self._stretches(starts), transcript=transcript)

    def examples(
        self, numbers: Rows, seeds: Seeds | None, sizes: Sizes | None = None, *, transcript: bool = False
    ) -> Arrays:
        """Read sequences (N,); see `CorpusReader.examples`."""
        rows, starts = self.locate(numbers)
        stretches = self._stretches(starts)
        return self.reader.examples(rows, seeds, stretches, sizes=sizes, transcript=transcript)

    @property
    def _limit(self) -> int:
        assert self.max_tokens is not None
        return self.max_tokens

    def _stretches(self, starts: NDArray[np.int64]) -> Sequence[slice] | None:
        if not self._cuts:
            return None
        return [slice(start, start + self._limit) for start in starts.tolist()]

    def _count(self, chunk: int) -> NDArray[np.int64]:
        """How many sequences each record of a chunk is."""
        tokens = self.reader.document_lengths(chunk)
        return np.maximum(1, -(-(tokens - 1) // (self._limit - 1)))
