"""Each kind of defect does to the copper what its name says."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from eagleray.pipelines.media.board_defects import APART_MM, Damage
from eagleray.pipelines.media.board_kinds import DEFECT_KINDS
from eagleray.pipelines.media.board_survey import TRACE_MM, Survey, survey
from eagleray.pipelines.media.boards import materials, render
from eagleray.pipelines.media.morphology import depth, dilated, parts

from .. import board_files

SEEDS = range(12)
SCALES = (10, 16)


@cache
def board(scale: int) -> Survey:
    files = {
        "outline": [board_files.outline()],
        "copper": [board_files.copper()],
        "silkscreen": [board_files.silkscreen()],
        "drill": [board_files.drill()],
    }
    return survey(render(files, False, scale), scale)


def damage(kind: str, seed: int, scale: int, scratch_mm: float = 0.2) -> Damage:
    made = Damage(board(scale), board(scale).layers, scratch_mm)
    assert made.insert(kind, np.random.default_rng(seed))
    assert [one.kind for one in made.defects] == [kind]
    return made


def nets(copper: np.ndarray) -> int:
    return parts(copper)[1]


def changed(made: Damage) -> np.ndarray:
    return made.copper != made.layers.copper


def extent_mm(layer: np.ndarray, scale: int) -> float:
    rows, columns = np.nonzero(layer)
    return float(max(np.ptp(rows), np.ptp(columns)) + 1) / scale


def area_mm2(layer: np.ndarray, scale: int) -> float:
    return np.count_nonzero(layer) / scale**2


pytestmark = [pytest.mark.parametrize("seed", SEEDS), pytest.mark.parametrize("scale", SCALES)]


def test_an_open_cuts_a_net_in_two(seed, scale):
    made = damage("open", seed, scale)
    assert nets(made.copper) == nets(made.layers.copper) + 1
    assert not (made.copper & ~made.layers.copper).any()
    assert extent_mm(changed(made), scale) <= TRACE_MM + 0.5
    assert area_mm2(changed(made), scale) >= 0.02


def test_a_short_joins_two_nets(seed, scale):
    made = damage("short", seed, scale)
    assert nets(made.copper) == nets(made.layers.copper) - 1
    assert not (made.layers.copper & ~made.copper).any()
    assert extent_mm(changed(made), scale) <= 0.5 + 0.35 + 2 / scale


def test_a_mouse_bite_takes_some_of_an_edge_and_cuts_nothing(seed, scale):
    made = damage("mouse-bite", seed, scale)
    bite = changed(made)
    assert nets(made.copper) == nets(made.layers.copper)
    assert not (made.copper & ~made.layers.copper).any()
    assert (dilated(bite, 1) & ~made.layers.copper).any()  # it opens to what lies beside
    assert (dilated(bite, 1) & made.copper).any()
    assert parts(~made.copper, corners=False)[1] == parts(~made.layers.copper, corners=False)[1]


def test_a_spur_grows_from_one_net(seed, scale):
    made = damage("spur", seed, scale)
    assert nets(made.copper) == nets(made.layers.copper)
    assert not (made.layers.copper & ~made.copper).any()
    touched = set(np.unique(board(scale).nets[dilated(changed(made), 1)])) - {0}
    assert len(touched) == 1
    assert extent_mm(changed(made), scale) <= 0.6 + 0.25 + 2 / scale


def test_spurious_copper_is_a_net_of_its_own(seed, scale):
    made = damage("spurious-copper", seed, scale)
    assert nets(made.copper) == nets(made.layers.copper) + 1
    assert 0.2 <= extent_mm(changed(made), scale) <= 0.8 * 1.2 + 2 / scale
    assert made.layers.board[changed(made)].all()


def test_a_pin_hole_is_a_hole_in_copper(seed, scale):
    made = damage("pin-hole", seed, scale)
    assert nets(made.copper) == nets(made.layers.copper)
    before, after = (parts(~one, corners=False)[1] for one in (made.layers.copper, made.copper))
    assert after == before + 1
    assert extent_mm(changed(made), scale) <= 0.6 * 1.2 + 2 / scale


@pytest.mark.parametrize("scratch_mm", [0.2, 0.6])
def test_a_scratch_is_as_wide_as_asked_for_and_leaves_the_copper(seed, scale, scratch_mm):
    made = damage("scratch", seed, scale, scratch_mm)
    assert not changed(made).any()
    assert (made.layers.board & ~made.layers.openings & ~made.layers.holes)[made.bare].all()
    # The deepest pixel of a band of w pixels lies w / 2 from its edge, and half a pixel more beyond.
    width = 2 * float(depth(made.bare).max()) - 1
    assert width == pytest.approx(scratch_mm * scale, abs=1.5)
    assert extent_mm(made.bare, scale) >= 1


@pytest.mark.parametrize("kind", DEFECT_KINDS)
def test_what_is_marked_is_what_shows_something_else(seed, scale, kind):
    made = damage(kind, seed, scale)
    (defect,) = made.defects
    nothing = np.zeros_like(made.bare)
    before = materials(made.layers, made.layers.copper, nothing)
    after = materials(made.layers, made.copper, made.bare)
    marked = nothing.copy()
    marked[defect.window] = defect.seen
    assert np.array_equal(marked, before != after)
    assert marked.sum() >= 4


def test_defects_lie_apart_and_are_a_function_of_the_seed(seed, scale):
    made, again = (Damage(board(scale), board(scale).layers, 0.2) for _ in range(2))
    for one in (made, again):
        random = np.random.default_rng(seed)
        for kind in DEFECT_KINDS:
            one.insert(kind, random)
    assert np.array_equal(made.copper, again.copper)
    assert np.array_equal(made.bare, again.bare)
    assert len(made.defects) >= 5
    around = np.zeros(made.copper.shape, np.int32)
    for defect in made.defects:
        marked = np.zeros(made.copper.shape, np.bool_)
        marked[defect.window] = defect.seen
        around += dilated(marked, APART_MM * scale / 2 - 1)
    assert around.max() == 1
