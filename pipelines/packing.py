"""Packing documents by length: sequences of equal length that lose no token and leave little room.

Documents are cut only where they are longer than a sequence (best-fit packing: Ding et al. 2024, "Fewer
Truncations Improve Language Modeling", section 3). A sequence is a list of *pieces* of documents.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from .contracts import PACKS, pack_path
from .shards import CHUNK_ROWS
from .spec import Packing


@dataclass(frozen=True, order=True)
class Piece:
    """Tokens `start` … `stop` of the document in row `row`."""

    row: int
    start: int
    stop: int


def pack(lengths: Sequence[int], capacity: int) -> list[list[Piece]]:
    """Pack documents of these lengths into sequences of at most `capacity` tokens.

    A document's whole multiples of `capacity` are sequences of their own. What is left goes, longest first,
    where it leaves the least room.

    Returns:
        Sequences in the order of their first pieces; the pieces of each in the documents' order.
    """
    packs: list[list[Piece]] = []
    rests: list[Piece] = []
    for row, length in enumerate(lengths):
        whole = length - length % capacity
        packs += [[Piece(row, start, start + capacity)] for start in range(0, whole, capacity)]
        if whole < length:
            rests.append(Piece(row, whole, length))
    rooms: list[tuple[int, int]] = []  # of sequences that aren't full: tokens there is room for, number
    for piece in sorted(rests, key=lambda one: (one.start - one.stop, one.row)):
        size = piece.stop - piece.start
        place = bisect_left(rooms, (size, 0))
        if place < len(rooms):
            room, number = rooms.pop(place)
            packs[number].append(piece)
        else:
            room, number = capacity, len(packs)
            packs.append([piece])
        if room > size:
            insort(rooms, (room - size, number))
    return sorted(sorted(pieces) for pieces in packs)


class PackWriter:
    """Packs a split's documents as their lengths come in, so many at once that a sequence's pieces lie near
    each other, and writes where the pieces are.

    Args:
        corpus: its folder.
        split: whose documents they are.
        packing: how.
    """

    def __init__(self, corpus: Path, split: str, packing: Packing) -> None:
        self._packing = packing
        self._lengths: list[int] = []
        self._first = 0
        self._waiting: list[list[Piece]] = []
        path = pack_path(corpus, split)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = pa.ipc.new_file(str(path), PACKS)
        self.num_packs = 0

    def add(self, lengths: Sequence[int]) -> None:
        """Add documents in the order of their rows; one without tokens has length 0."""
        self._lengths += lengths
        while len(self._lengths) >= self._packing.window:
            self._pack(self._packing.window)

    def close(self) -> None:
        """Pack and write what is left."""
        self._pack(len(self._lengths))
        self._write(len(self._waiting))
        self._file.close()

    def _pack(self, count: int) -> None:
        packs = pack(self._lengths[:count], self._packing.length)
        self._waiting += [
            [Piece(self._first + piece.row, piece.start, piece.stop) for piece in pieces] for pieces in packs
        ]
        self._lengths = self._lengths[count:]
        self._first += count
        self.num_packs += len(packs)
        self._write(len(self._waiting) - len(self._waiting) % CHUNK_ROWS)

    def _write(self, count: int) -> None:
        for start in range(0, count, CHUNK_ROWS):
            chunk = self._waiting[start : min(start + CHUNK_ROWS, count)]
            rows = [[vars(piece) for piece in pieces] for pieces in chunk]
            self._file.write_batch(pa.record_batch([pa.array(rows, PACKS.field(0).type)], schema=PACKS))
        self._waiting = self._waiting[count:]
