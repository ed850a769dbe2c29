"""What is known of a bare board's side before defects are put into it: nets, traces, gaps between nets.

A *net* is copper that hangs together on one side, corners included: what joins two of them elsewhere (a via,
the other side) is not known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .boards import Layers
from .morphology import Layer, Window, boxes, depth, dilated, nearest, parts, ridges

Point: TypeAlias = NDArray[np.float64]
"""Row and column; the middle of a pixel has whole numbers."""

TRACE_MM = 0.8
"""Copper is a trace, not a pad or a plane, where it is no wider than this"""
ELONGATION = 5.0
"""and this much longer than wide nearby, as a ratio of variances."""
TRACE_REACH_MM = 0.6
"""How far nearby is, at least."""
BESIDE_MM, ROOM_MM = 0.3, 0.2
"""There is room beside a trace where nothing lies nearer than the second, the first away from its edge."""
NEAR_MM = 0.5
"""Nets that may be joined lie no farther apart."""
CLEAR_MM = 0.1
"""Between a defect and the copper or edge that it must not touch."""


@dataclass(frozen=True)
class Survey:
    """What is known of a side before anything is put into it.

    Attributes:
        layers: the side.
        pixels_per_mm: its scale.
        nets: (height, width) int32, 0 where there is no copper.
        depth: (height, width) float32, pixels from a pixel of copper to the nearest without.
        room: the same from a pixel without to the nearest copper, hole or edge.
        traces: (n, 2), rows and columns along the middle of traces.
        edges: (n, 2), the nearest pixel without copper to each of them.
        roomy: numbers of the traces' pixels with free space beyond that edge.
        gaps: (m, 4), two pixels of copper of two nets with nothing but free space between them.
        boxes: the window that each net lies in, the first net's first.
    """

    layers: Layers
    pixels_per_mm: float
    nets: NDArray[np.int32]
    depth: NDArray[np.float32]
    room: NDArray[np.float32]
    traces: NDArray[np.int32]
    edges: NDArray[np.int32]
    roomy: NDArray[np.int64]
    gaps: NDArray[np.int32]
    boxes: tuple[Window, ...]

    def pixels(self, length_mm: float) -> float:
        """A length in pixels."""
        return length_mm * self.pixels_per_mm


def survey(layers: Layers, pixels_per_mm: float) -> Survey:
    """Look for nets, traces and gaps between nets."""
    nets, _ = parts(layers.copper)
    within = depth(layers.copper)
    covered = layers.board & ~layers.openings & ~dilated(layers.holes, CLEAR_MM * pixels_per_mm)
    is_trace = ridges(within) & covered & (2 * within - 1 <= TRACE_MM * pixels_per_mm)
    traces = np.argwhere(is_trace).astype(np.int32)
    edges = nearest(~layers.copper)[:, traces[:, 0], traces[:, 1]].T
    closed = layers.copper | layers.holes | ~layers.board
    room = depth(~closed)
    return Survey(
        layers=layers,
        pixels_per_mm=pixels_per_mm,
        nets=nets,
        depth=depth(layers.copper & ~layers.holes),
        room=room,
        traces=traces,
        edges=edges,
        roomy=_roomy(traces, edges, room, pixels_per_mm),
        gaps=_gaps(nets, layers.copper, ~closed, NEAR_MM * pixels_per_mm),
        boxes=boxes(nets),
    )


def _roomy(
    traces: NDArray[np.int32], edges: NDArray[np.int32], room: NDArray[np.float32], pixels_per_mm: float
) -> NDArray[np.int64]:
    """Numbers of the traces' pixels with free space beyond their edge."""
    outwards = (edges - traces) / np.hypot(*(edges - traces).T)[:, None]
    beyond = np.rint(edges + outwards * BESIDE_MM * pixels_per_mm).astype(np.int64)
    beyond = np.clip(beyond, 0, np.array(room.shape) - 1)
    return np.flatnonzero(room[beyond[:, 0], beyond[:, 1]] >= ROOM_MM * pixels_per_mm)


def _gaps(nets: NDArray[np.int32], copper: Layer, free: Layer, reach: float) -> NDArray[np.int32]:
    """Neighbouring free pixels whose nearest copper is of two nets: that copper of both."""
    at, away = nearest(copper), depth(~copper)
    owner = nets[tuple(at)]
    found: list[NDArray[np.int32]] = []
    for step in ((0, 1), (1, 0)):
        here = (slice(0, nets.shape[0] - step[0]), slice(0, nets.shape[1] - step[1]))
        there = (slice(step[0], None), slice(step[1], None))
        between = (owner[here] != owner[there]) & free[here] & free[there]
        between &= away[here] + away[there] <= reach
        rows, columns = np.nonzero(between)
        found.append(np.concatenate([at[:, rows, columns], at[:, rows + step[0], columns + step[1]]]).T)
    return np.concatenate(found)


def find_trace(
    survey: Survey, random: np.random.Generator, among: NDArray[np.int64] | None = None
) -> tuple[Point, Point, Point, float] | None:
    """A place on a trace, of all or of those with these numbers: its middle, the nearest pixel beside it, its
    direction, half its width.
    """
    count = len(survey.traces if among is None else among)
    if not count:
        return None
    number = random.integers(count) if among is None else among[random.integers(count)]
    middle, edge = survey.traces[number].astype(np.float64), survey.edges[number].astype(np.float64)
    half = max(float(np.hypot(*(edge - middle))) - 0.5, 0.5)
    reach = max(3 * half, survey.pixels(TRACE_REACH_MM))
    window, grid = window_at(middle, reach, survey.nets.shape)
    same = survey.nets[window] == survey.nets[tuple(survey.traces[number])]
    offsets = (grid - middle)[same]
    offsets = offsets[np.hypot(offsets[:, 0], offsets[:, 1]) <= reach]
    variances, axes = np.linalg.eigh(offsets.T @ offsets / len(offsets))
    if variances[1] < ELONGATION * max(variances[0], 0.08):
        return None
    along = axes[:, 1]
    beside = abs(float((edge - middle) @ along)) <= 0.7 * float(np.hypot(*(edge - middle)))
    return (middle, edge, along, half) if beside else None  # at an end the nearest edge is the end's


def hangs_together(survey: Survey, net: int, window: Window, changed: Layer) -> bool:
    """Whether a net's copper around a window hangs together as before without the changed pixels."""
    around, inside = grown(window, 2, survey.nets.shape)
    before = survey.nets[around] == net
    after = before.copy()
    after[inside] &= ~changed
    numbered, count = parts(before)
    return parts(after)[1] == count == len(np.unique(numbered[after]))


def parts_without(survey: Survey, net: int, window: Window, changed: Layer) -> list[int]:
    """Sizes in pixels of the parts that a net falls into without the changed pixels of a window."""
    box = survey.boxes[net - 1]
    rest = survey.nets[box] == net
    low = [max(one.start, other.start) for one, other in zip(box, window, strict=True)]
    high = [min(one.stop, other.stop) for one, other in zip(box, window, strict=True)]
    rest[_within(box, low, high)] &= ~changed[_within(window, low, high)]
    numbered, _ = parts(rest)
    return np.bincount(numbered.ravel())[1:].tolist()


def _within(window: Window, low: Sequence[int], high: Sequence[int]) -> Window:
    """What lies between `low` and `high`, counted from where a window begins."""
    rows, columns = (
        slice(start - one.start, stop - one.start) for one, start, stop in zip(window, low, high, strict=True)
    )
    return rows, columns


def touched_nets(survey: Survey, window: Window, added: Layer) -> set[int]:
    """Nets that added copper would touch, at a corner too."""
    around, inside = grown(window, 1, survey.nets.shape)
    nets = survey.nets[around]
    copper = np.zeros(nets.shape, np.bool_)
    copper[inside] = added
    return set(np.unique(nets[dilated(copper, 1)]).tolist()) - {0}


def window_at(middle: Any, reach: float, shape: tuple[int, ...]) -> tuple[Window, Point]:  # noqa: ANN401
    """The part of a board around a point, and the rows and columns of its pixels (height, width, 2)."""
    low = [max(0, int(np.floor(at - reach))) for at in middle]
    high = [min(length, int(np.ceil(at + reach)) + 1) for at, length in zip(middle, shape, strict=True)]
    rows, columns = (np.arange(start, stop, dtype=np.float64) for start, stop in zip(low, high, strict=True))
    grid = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1)
    return (slice(low[0], high[0]), slice(low[1], high[1])), grid


def grown(window: Window, by: int, shape: tuple[int, ...]) -> tuple[Window, Window]:
    """A larger window, and where the given one lies in it."""
    rows, columns = (
        slice(max(0, one.start - by), min(length, one.stop + by))
        for one, length in zip(window, shape, strict=True)
    )
    low, high = [one.start for one in window], [one.stop for one in window]
    return (rows, columns), _within((rows, columns), low, high)


def near(grid: Point, one: Point, other: Point, radius: float) -> Layer:
    """Pixels no farther than `radius` from the line between two points."""
    line = other - one
    share = np.clip((grid - one) @ line / max(float(line @ line), 1e-9), 0, 1)
    away = grid - one - share[..., None] * line
    return (away**2).sum(-1) <= radius**2


def across(direction: Point) -> Point:
    """At right angles to a direction."""
    return np.array([-direction[1], direction[0]])
