"""Which rows of a step are computed together: those of like length, so that little of it is padding.

What a step is made of hangs on lengths and on the spec alone: the next rows in the order of training, as
many as the budget of tokens holds. How they are divided hangs on the mesh, and changes no result: padding
doesn't, and every term of the loss is a sum over rows, divided by what the whole step has of them.

The rows stand by length. Each part (a data-parallel worker, or a source of compressed gradients) takes one
of as many neighbours, in turn and back again, so that all parts have alike much. Neighbours make groups, the
fewest at which enough is real; in a group every part has as many rows, filled up to one length. So all
workers compute the same shapes at the same time.

Shape letters: N rows of a step, P parts, K rows of a group at one part, S kinds of sequences.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ...models.spec import ModelSpec
from ...pipelines.spec import Sizes
from .spec import TrainingSpec

Ints = NDArray[np.int64]

MIN_TOKENS = 2
"""Positions that a text is filled up to at the least: one to predict from, and one to predict."""


@dataclass(frozen=True)
class Group:
    """Rows that are computed together.

    Attributes:
        rows: (P, K) places in the step; -1 where a part has no row.
        lengths: (S,) positions that each kind of sequence is filled up to; None for the corpus's longest.
    """

    rows: Ints
    lengths: Ints | None = None


def divide(spec: TrainingSpec, lengths: Ints, counted: Ints) -> list[Group]:
    """Divide a step's rows among the workers of a mesh; where the spec is of rows, each part has rows that
    follow each other.

    Args:
        spec: of the training.
        lengths: (N, S) positions.
        counted: (S,) 1 for sequences whose positions take time, else 0.
    """
    if spec.batching is None:
        return [Group(np.arange(len(lengths)).reshape(spec.num_parts, -1))]
    # a pipeline's buffers and compiled layers are for one shape each
    rounds = spec.parallel.num_slices > 1 or spec.compile_layers
    each, fill = spec.row_unit // spec.num_parts, spec.batching.fill
    return arrange(lengths, counted, spec.num_parts, each, fill, rounds=rounds)


def positions_of(rows: Sequence[Sizes], model: ModelSpec) -> Ints:
    """Positions (N, 3) of a model's texts, answers and recordings, as attention sees them."""
    stride = _stride(model)
    heard = [-(-one.frames // stride) if model.audio is not None else 0 for one in rows]
    found = [(one.tokens, one.answer, positions) for one, positions in zip(rows, heard, strict=True)]
    return np.array(found, np.int64).reshape(-1, 3)


def counted_of(model: ModelSpec) -> Ints:
    """Which of those positions (3,) a model attends to: a text may be no more than what is to be said."""
    reads = int(model.text is not None or model.decoder is not None)
    return np.array([reads, reads, int(model.audio is not None)], np.int64)


def sizes_for(lengths: Ints, model: ModelSpec, max_frames: int) -> Sizes:
    """What sequences are filled up to, for so many positions (3,) each."""
    tokens, answer, heard = (max(MIN_TOKENS, length) for length in lengths.tolist())
    return Sizes(tokens, answer, min(heard * _stride(model), max_frames))


def num_rows(totals: Iterator[int], max_positions: int, max_rows: int) -> int:
    """How many rows a step takes of those that follow, by their positions: all that fit, and at least one."""
    taken, sum_of_them = 0, 0
    for total in totals:
        sum_of_them += total
        if taken and sum_of_them > max_positions:
            break
        taken += 1
        if taken == max_rows:
            break
    return taken


def arrange(
    lengths: Ints, counted: Ints, parts: int, each: int, fill: float, *, rounds: bool = False
) -> list[Group]:
    """Divide the rows of a step.

    Args:
        lengths: (N, S) positions.
        counted: (S,) 1 for sequences whose positions take time, else 0.
        parts: that take rows, each as many as another but for one.
        each: rows that a part's of a group are a multiple of.
        fill: share of all positions that shall be real, if that can be.
        rounds: whether lengths are filled up to one of few, so that shapes come again.

    Returns:
        Groups, the longest rows first; each part's row of a group by falling length.
    """
    order = np.argsort(-(lengths @ counted), kind="stable")
    unit = parts * each
    count = -(-len(order) // unit)
    rows = np.full(count * unit, -1, np.int64)
    rows[: len(order)] = order
    tiers = rows.reshape(-1, parts)
    tiers[1::2] = tiers[1::2, ::-1]
    longest = np.zeros((count * unit, lengths.shape[1]), np.int64)
    longest[: len(order)] = lengths[order]
    units = longest.reshape(count, unit, -1).max(axis=1)
    if rounds:
        units = round_up(units)
    edges = _cut(units * counted, unit, (lengths @ counted).sum() / fill)
    return [
        Group(tiers[start * each : stop * each].T, units[start:stop].max(axis=0))
        for start, stop in pairwise(edges)
    ]


def fill_of(groups: Sequence[Group], lengths: Ints, counted: Ints) -> float:
    """Share of all positions of groups that are real; arguments as of `arrange`."""
    padded = sum(
        group.rows.size * int(group.lengths @ counted) for group in groups if group.lengths is not None
    )
    return float((lengths @ counted).sum() / padded) if padded else 1.0


def round_up(lengths: Ints) -> Ints:
    """Lengths that shapes may have: all up to 16, then 8 of each octave."""
    steps = 1 << np.maximum(0, np.ceil(np.log2(np.maximum(lengths, 1))).astype(np.int64) - 4)
    return -(-lengths // steps) * steps


def _stride(model: ModelSpec) -> int:
    return 1 if model.audio is None else 2**model.audio.num_convs


def _cut(units: Ints, unit: int, most: float) -> list[int]:
    """Edges of the fewest groups of units (U, S) whose padded positions are `most` or less, or the least.

    A group's size is 1, 2, 3, 4, 6, 8, 12 … units, so that shapes come again.
    """
    count = len(units)
    costs: dict[int, NDArray[np.float64]] = {}
    for size in _sizes(count):
        windows = np.lib.stride_tricks.sliding_window_view(units, size, axis=0)
        costs[size] = (windows.max(axis=-1).sum(axis=1) * (size * unit)).astype(np.float64)
    found = np.full(count + 1, np.inf)
    found[0] = 0.0
    taken: list[Ints] = []  # by number of groups: size of the last one that ends there
    totals: list[float] = []
    while not totals or (totals[-1] > most and len(totals) < count):
        after, sizes = np.full(count + 1, np.inf), np.zeros(count + 1, np.int64)
        for size, cost in costs.items():
            here = found[: count + 1 - size] + cost
            better = here < after[size:]
            after[size:][better], sizes[size:][better] = here[better], size
        found = after
        taken.append(sizes)
        totals.append(float(found[count]))
    edges, groups = [count], int(np.argmin(totals)) + 1
    while edges[-1]:
        groups -= 1
        edges.append(edges[-1] - int(taken[groups][edges[-1]]))
    return edges[::-1]


def _sizes(most: int) -> list[int]:
    powers = [1 << i for i in range(most.bit_length())]
    return sorted({size for power in powers for size in (power, 3 * power // 2) if 0 < size <= most})
