"""Defects of bare boards, put into the copper or the solder mask at sizes that a real line makes them.

Six kinds are those of DeepPCB (Tang et al. 2019); `scratch` is of the solder mask. What nets and
traces are stands in `board_survey`.

| kind | what it does | size |
|---|---|---|
| `open` | cuts a trace across: its net falls into two | gap of 0.12 to 0.4 mm |
| `short` | joins two nets that lie at most 0.5 mm apart | bridge 0.12 to 0.35 mm wide |
| `mouse-bite` | takes a bite out of a trace's edge | 40 to 70 % of its width, at most 0.45 mm |
| `spur` | grows from a trace's edge, touches no other net | 0.2 to 0.6 mm long, 0.1 to 0.25 mm wide |
| `spurious-copper` | an island in free space | 0.25 to 0.8 mm across, 0.1 mm from all else |
| `pin-hole` | a hole inside copper | 0.2 to 0.6 mm across, 0.1 mm from its edge |
| `scratch` | solder mask and silkscreen are gone along a curve | as wide as asked for, 1.5 to 10 mm long |

Where a pixel is larger than that, two pixels or so are the least.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .board_kinds import DefectKind
from .board_survey import (
    CLEAR_MM,
    Point,
    Survey,
    across,
    find_trace,
    grown,
    hangs_together,
    near,
    parts_without,
    touched_nets,
    window_at,
)
from .boards import BESIDE, Layers, materials
from .morphology import Layer, Window, dilated, parts

PART_MM2 = 0.05
"""Least copper on either side of a cut."""
APART_MM = 0.6
"""Between two defects, so that each can be told by itself."""
SEEN_MM2, SEEN_PIXELS = 0.02, 4
"""Least of a defect that is seen"""
SEEN_SHARE = 0.5
"""and its share: the rest may lie under silkscreen."""
TRIES = 200
"""Places that are tried before it is given up."""


Effect: TypeAlias = Literal["add", "remove", "bare"]
"""What becomes of the changed pixels: copper, none, or no solder mask."""


@dataclass(frozen=True)
class Defect:
    """A defect that was put in.

    Attributes:
        kind: its kind.
        window: the part of the board that it lies in.
        seen: bool, of the window: pixels that show something else than without it.
    """

    kind: DefectKind
    window: Window
    seen: Layer


@dataclass
class Damage:
    """A side while defects are put in.

    Attributes:
        survey: of the whole side.
        layers: as they are shown, with openings and silkscreen where they lie on this board.
        scratch_mm: width of a scratch.
        copper: what copper there is now.
        bare: where solder mask is scratched off.
        defects: what was put in.
    """

    survey: Survey
    layers: Layers
    scratch_mm: float
    copper: Layer = field(init=False)
    bare: Layer = field(init=False)
    defects: list[Defect] = field(default_factory=list[Defect])

    def __post_init__(self) -> None:
        self.copper = self.layers.copper.copy()
        self.bare = np.zeros_like(self.copper)
        self._taken = np.zeros_like(self.copper)

    def insert(self, kind: DefectKind, random: np.random.Generator) -> bool:
        """Put in a defect where it makes sense, is seen, and is apart from others; False where none does."""
        make, effect = _KINDS[kind]
        for _ in range(TRIES):
            made = make(self, random)
            if made is not None and self._accept(kind, *made, effect):
                return True
        return False

    def _accept(self, kind: DefectKind, window: Window, changed: Layer, effect: Effect) -> bool:
        """Put it in, unless too little of it is seen, or another is near."""
        if (self._taken[window] & changed).any():
            return False
        copper, bare = self.copper[window], self.bare[window]
        new_copper = {"add": copper | changed, "remove": copper & ~changed, "bare": copper}[effect]
        new_bare = bare | changed if effect == "bare" else bare
        layers = self.layers.part(window)
        seen = materials(layers, copper, bare) != materials(layers, new_copper, new_bare)
        least = max(SEEN_PIXELS, SEEN_MM2 * self.survey.pixels_per_mm**2, SEEN_SHARE * changed.sum())
        if np.count_nonzero(seen) < least:
            return False
        self.copper[window], self.bare[window] = new_copper, new_bare
        self.defects.append(Defect(kind, window, seen))
        apart = max(1, round(self.survey.pixels(APART_MM)))
        around, inside = grown(window, apart, self.copper.shape)
        near_it = np.zeros_like(self._taken[around])
        near_it[inside] = changed
        self._taken[around] |= dilated(near_it, apart)
        return True


Made: TypeAlias = tuple[Window, Layer]
"""A window, and the pixels of it that are added, removed or laid bare."""


def _open(damage: Damage, random: np.random.Generator) -> Made | None:
    survey = damage.survey
    site = find_trace(survey, random)
    if site is None:
        return None
    middle, _, along, half = site
    gap = max(survey.pixels(random.uniform(0.12, 0.4)), 2.0)
    turned = along + random.uniform(-0.25, 0.25) * across(along)
    window, grid = window_at(middle, 2 * half + gap + 2, damage.copper.shape)
    offsets = grid - middle
    on_line = np.abs(offsets @ (turned / np.hypot(*turned))) <= gap / 2
    # The strip reaches over the trace's edges, not to what lies beside it.
    changed = on_line & (np.abs(offsets @ across(along)) <= half + 2)
    net = int(survey.nets[tuple(middle.astype(int))])
    changed &= (survey.nets[window] == net) & damage.copper[window]
    if hangs_together(survey, net, window, changed):  # quick: the whole net may be a plane
        return None
    sizes = parts_without(survey, net, window, changed)
    least = max(4.0, PART_MM2 * survey.pixels_per_mm**2)
    return (window, changed) if len(sizes) == 2 and min(sizes) >= least else None


def _short(damage: Damage, random: np.random.Generator) -> Made | None:
    survey = damage.survey
    if not len(survey.gaps):
        return None
    ends = survey.gaps[random.integers(len(survey.gaps))].astype(np.float64)
    one, other = ends[:2], ends[2:]
    radius = max(survey.pixels(random.uniform(0.12, 0.35)), 2.0) / 2
    window, grid = window_at(
        (one + other) / 2, np.hypot(*(other - one)) / 2 + radius + 2, damage.copper.shape
    )
    changed = near(grid, one, other, radius) & _is_free(damage, window)
    touched = touched_nets(survey, window, changed)
    wanted = {int(survey.nets[tuple(end.astype(int))]) for end in (one, other)}
    return (window, changed) if touched == wanted else None


def _mouse_bite(damage: Damage, random: np.random.Generator) -> Made | None:
    survey = damage.survey
    site = find_trace(survey, random)
    if site is None:
        return None
    middle, edge, along, half = site
    deep = min(2 * half * random.uniform(0.4, 0.7), survey.pixels(0.45))
    radius = max(deep, 1.5)
    length = along * radius * random.uniform(0.2, 0.7)
    window, grid = window_at(edge, 2.5 * radius + 2, damage.copper.shape)
    net = int(survey.nets[tuple(middle.astype(int))])
    changed = near(grid, edge - length, edge + length, radius)
    changed &= (survey.nets[window] == net) & damage.copper[window]
    return (window, changed) if hangs_together(survey, net, window, changed) else None


def _spur(damage: Damage, random: np.random.Generator) -> Made | None:
    survey = damage.survey
    site = find_trace(survey, random, survey.roomy)
    if site is None:
        return None
    middle, edge, along, _ = site
    outwards = (edge - middle) / max(float(np.hypot(*(edge - middle))), 1e-6)
    outwards = outwards + random.uniform(-0.4, 0.4) * along
    tip = edge + outwards * survey.pixels(random.uniform(0.2, 0.6))
    window, grid = window_at(
        (edge + tip) / 2, np.hypot(*(tip - edge)) + survey.pixels(CLEAR_MM) + 2, damage.copper.shape
    )
    wide = max(survey.pixels(random.uniform(0.1, 0.25)), 1.6) / 2
    changed = near(grid, edge, tip, wide) & _is_free(damage, window)
    net = int(survey.nets[tuple(middle.astype(int))])
    if parts(changed)[1] != 1 or touched_nets(survey, window, changed) != {net}:
        return None
    near_it = survey.nets[window][dilated(changed, survey.pixels(CLEAR_MM))]
    return (window, changed) if set(np.unique(near_it).tolist()) <= {0, net} else None


def _spurious_copper(damage: Damage, random: np.random.Generator) -> Made | None:
    return _blob(damage, damage.survey.room, random.uniform(0.25, 0.8), random)


def _pin_hole(damage: Damage, random: np.random.Generator) -> Made | None:
    return _blob(damage, damage.survey.depth, random.uniform(0.2, 0.6), random)


def _blob(
    damage: Damage, distance: NDArray[np.float32], across_mm: float, random: np.random.Generator
) -> Made | None:
    """A rounded shape where there is enough of `distance` around it."""
    survey = damage.survey
    radius = max(survey.pixels(across_mm) / 2, 1.3)
    places = np.flatnonzero(distance >= 1.2 * radius + max(survey.pixels(CLEAR_MM), 1.0))
    if not len(places):
        return None
    chosen = divmod(int(places[random.integers(len(places))]), distance.shape[1])
    middle = np.array(chosen, np.float64)
    window, grid = window_at(middle, 1.2 * radius + 1, distance.shape)
    offsets = grid - middle
    angles = np.arctan2(offsets[..., 0], offsets[..., 1])
    phases = random.uniform(0, 2 * np.pi, 2)
    uneven = 1 + 0.13 * np.cos(2 * angles + phases[0]) + 0.07 * np.cos(3 * angles + phases[1])
    return window, np.hypot(offsets[..., 0], offsets[..., 1]) <= radius * uneven


def _scratch(damage: Damage, random: np.random.Generator) -> Made | None:
    survey, layers = damage.survey, damage.layers
    places = np.flatnonzero(layers.board)
    start = np.array(divmod(int(places[random.integers(len(places))]), layers.board.shape[1]), np.float64)
    angle = random.uniform(0, 2 * np.pi)
    length = survey.pixels(random.uniform(1.5, 10))
    along = np.array([np.sin(angle), np.cos(angle)])
    end = start + along * length
    bend = (start + end) / 2 + across(along) * length * random.uniform(-0.25, 0.25)
    times = np.linspace(0, 1, 24)[:, None]
    curve = (1 - times) ** 2 * start + 2 * times * (1 - times) * bend + times**2 * end  # a quadratic Bézier
    width = survey.pixels(damage.scratch_mm)
    window, passed = _drawn(curve, width / 2, layers.board.shape)
    part = layers.part(window)
    shown = materials(part, damage.copper[window], damage.bare[window])
    changed = passed & ~part.openings & (shown != BESIDE)
    return (window, changed) if np.count_nonzero(changed) >= 0.7 * length * width else None


def _drawn(curve: Point, radius: float, shape: tuple[int, ...]) -> Made:
    """What a round pen passes over."""
    middle = (curve.min(0) + curve.max(0)) / 2
    (rows, columns), grid = window_at(middle, np.ptp(curve, 0).max() / 2 + radius + 2, shape)
    passed = np.zeros(grid.shape[:2], np.bool_)
    for one, other in pairwise(curve):
        centre = (one + other) / 2 - (rows.start, columns.start)
        here, _ = window_at(centre, np.hypot(*(other - one)) / 2 + radius + 1, passed.shape)
        passed[here] |= near(grid[here], one, other, radius)
    return (rows, columns), passed


_KINDS: Mapping[DefectKind, tuple[Callable[[Damage, np.random.Generator], Made | None], Effect]] = {
    "open": (_open, "remove"),
    "short": (_short, "add"),
    "mouse-bite": (_mouse_bite, "remove"),
    "spur": (_spur, "add"),
    "spurious-copper": (_spurious_copper, "add"),
    "pin-hole": (_pin_hole, "remove"),
    "scratch": (_scratch, "bare"),
}


def _is_free(damage: Damage, window: Window) -> Layer:
    layers = damage.survey.layers
    return layers.board[window] & ~damage.copper[window] & ~layers.holes[window]
