"""Connected pieces of what is marked in a picture, as runs of pixels in its rows.

Marks are few, so a picture becomes some hundred runs, and labelling is finding which of them touch; all that
is said of a piece is said by its runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Mask: TypeAlias = NDArray[np.bool_]
Numbers: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class Piece:
    """Pixels that hang together over sides and corners.

    Attributes:
        rows: (N,) of its runs, not falling.
        starts: (N,) columns of their first pixels.
        ends: (N,) columns after their last.
    """

    rows: Numbers
    starts: Numbers
    ends: Numbers

    @property
    def area(self) -> int:
        """Its pixels."""
        return int((self.ends - self.starts).sum())

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, and after the right and the lower edge."""
        return int(self.starts.min()), int(self.rows[0]), int(self.ends.max()), int(self.rows[-1]) + 1

    @property
    def extent(self) -> float:
        """Distance of its farthest points, in pixels; the outer edges of its pixels included."""
        first, above = np.unique(self.rows, return_index=True)
        left, right = np.minimum.reduceat(self.starts, above), np.maximum.reduceat(self.ends, above)
        points = [
            (float(row + side), float(column))
            for row, *columns in zip(first.tolist(), left.tolist(), right.tolist(), strict=True)
            for side in (0, 1)
            for column in columns
        ]
        corners = np.array(_hull(sorted(set(points))))
        return math.sqrt(((corners[:, None] - corners) ** 2).sum(axis=-1).max())

    def greatest(self, values: NDArray[np.float32]) -> float:
        """The greatest of a picture's values (H, W) in it."""
        return max(float(values[row, start:end].max()) for row, start, end in self._runs)

    def sums(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Sums (K,) of a picture's values (K, H, W) in it."""
        return np.sum([values[:, row, start:end].sum(axis=1) for row, start, end in self._runs], axis=0)

    @property
    def _runs(self) -> Iterator[tuple[int, int, int]]:
        return zip(self.rows.tolist(), self.starts.tolist(), self.ends.tolist(), strict=True)


def pieces(marked: Mask) -> Iterator[Piece]:
    """The pieces of what is marked (H, W), by their first pixel in reading order."""
    if not marked.any():  # the most frequent case, and told in no time
        return
    height, width = marked.shape
    edges = np.zeros((height, width + 2), np.bool_)
    edges[:, 1:-1] = marked
    rows, columns = np.nonzero(edges[:, 1:] != edges[:, :-1])
    rows, starts, ends = rows[::2], columns[::2], columns[1::2]
    numbers = _joined(len(rows), *_touching(rows, starts, ends, width + 2))
    order = np.argsort(numbers, kind="stable")
    places = np.flatnonzero(np.diff(numbers[order])) + 1
    for runs in np.split(order, places):
        yield Piece(rows[runs], starts[runs], ends[runs])


def _touching(rows: Numbers, starts: Numbers, ends: Numbers, width: int) -> tuple[Numbers, Numbers]:
    """Pairs of runs (P,), (P,) in neighbouring rows that share a side or a corner.

    With rows laid end to end, those that a run touches in the row above are neighbours of each other: from
    the first that doesn't end before it begins, to the last that doesn't begin after it ends.
    """
    above = (rows - 1) * width
    first = np.searchsorted(rows * width + ends, above + starts, side="left")
    after = np.searchsorted(rows * width + starts, above + ends, side="right")
    counts = np.maximum(after - first, 0)
    lower = np.repeat(np.arange(len(rows)), counts)
    within = np.arange(len(lower)) - np.repeat(np.cumsum(counts) - counts, counts)
    return lower, np.repeat(first, counts) + within


def _joined(count: int, one: Numbers, other: Numbers) -> Numbers:
    """For each of `count` runs the first one that it hangs together with, over any number of pairs."""
    numbers = np.arange(count)
    while True:
        least = np.minimum(numbers[one], numbers[other])
        if (numbers[one] == least).all() and (numbers[other] == least).all():
            return numbers
        for ends in (one, other):
            np.minimum.at(numbers, numbers[ends], least)
        while (numbers[numbers] != numbers).any():
            numbers = numbers[numbers]


def _hull(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Corners of the convex hull of sorted points (Andrew's monotone chain, 1979)."""
    hull: list[tuple[float, float]] = []
    for chain in (points, points[::-1]):
        side: list[tuple[float, float]] = []
        for point in chain:
            while len(side) > 1 and _turn(side[-2], side[-1], point) <= 0:
                side.pop()
            side.append(point)
        hull += side
    return hull


def _turn(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> float:
    """Above 0 where a, b, c turn to the left."""
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
