"""What is known of a board's side: nets, traces, gaps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eagleray.pipelines.media.board_survey import (
    NEAR_MM,
    find_trace,
    grown,
    hangs_together,
    near,
    parts_without,
    survey,
    touched_nets,
    window_at,
)
from eagleray.pipelines.media.boards import Layers
from eagleray.pipelines.media.morphology import parts

SCALE = 10
SIDE = 120


def made_board(*rectangles: tuple[int, int, int, int]) -> Layers:
    """Copper in rectangles of top, left, bottom, right."""
    empty = np.zeros((SIDE, SIDE), np.bool_)
    copper = empty.copy()
    for top, left, bottom, right in rectangles:
        copper[top:bottom, left:right] = True
    return Layers(~empty, copper, empty, empty, empty)


TWO_TRACES = made_board((30, 10, 33, 110), (37, 10, 40, 110), (70, 10, 110, 110))


def test_nets_and_their_boxes():
    found = survey(TWO_TRACES, SCALE)
    assert [tuple((one.start, one.stop) for one in box) for box in found.boxes] == [
        ((30, 33), (10, 110)), ((37, 40), (10, 110)), ((70, 110), (10, 110)),
    ]  # fmt: skip


def test_traces_run_along_the_middle_of_narrow_copper_only():
    found = survey(TWO_TRACES, SCALE)
    inner = found.traces[(found.traces[:, 1] > 14) & (found.traces[:, 1] < 105)]
    assert set(inner[:, 0]) == {31, 38}


def test_a_trace_has_its_direction_and_half_its_width():
    found = survey(TWO_TRACES, SCALE)
    random = np.random.default_rng(0)
    sites = [site for _ in range(50) if (site := find_trace(found, random)) is not None]
    assert len(sites) > 25
    for middle, edge, along, half in sites:
        assert abs(along[1]) > 0.99
        assert half == 1.5
        assert abs(edge[0] - middle[0]) == 2


def test_gaps_join_two_nets_that_lie_near():
    found = survey(TWO_TRACES, SCALE)
    assert len(found.gaps)
    for top, left, bottom, right in found.gaps:
        assert {found.nets[top, left], found.nets[bottom, right]} == {1, 2}
        assert np.hypot(bottom - top, right - left) <= NEAR_MM * SCALE + 1
    apart = survey(made_board((30, 10, 33, 110), (60, 10, 63, 110)), SCALE)
    assert not len(apart.gaps)


@given(st.integers(5, 115), st.integers(5, 115), st.integers(1, 12), st.integers(0, 9))
def test_what_a_net_falls_into_is_counted_near_a_place_as_on_the_whole_board(row, column, reach, seed):
    bits = np.random.default_rng(seed).random((SIDE // 10, SIDE // 10)) < 0.6
    copper = np.kron(bits, np.ones((10, 10))).astype(np.bool_)
    empty = np.zeros_like(copper)
    found = survey(Layers(~empty, copper, empty, empty, empty), SCALE)
    window, grid = window_at((row, column), reach, copper.shape)
    changed = near(grid, np.array([row, column - reach]), np.array([row, column + reach]), 1.0)
    net = int(found.nets[row, column])
    if not net:
        return
    changed &= found.nets[window] == net
    rest = found.nets == net
    rest[window] &= ~changed
    numbered, count = parts(rest)
    assert sorted(parts_without(found, net, window, changed)) == sorted(np.bincount(numbered.ravel())[1:])
    if hangs_together(found, net, window, changed):
        assert count == 1  # what hangs together near by does so on the whole


def test_what_touches_at_a_corner_touches():
    found = survey(TWO_TRACES, SCALE)
    window = (slice(33, 37), slice(110, 112))
    for rows, nets in (((0, 1), {1}), ((3, 4), {2}), ((0, 4), {1, 2}), ((1, 3), set())):
        added = np.zeros((4, 2), np.bool_)
        added[rows[0] : rows[1], 0] = True
        assert touched_nets(found, window, added) == nets


@pytest.mark.parametrize("by", [0, 3, 500])
def test_a_grown_window_holds_the_given_one(by):
    picture = np.arange(SIDE * SIDE).reshape(SIDE, SIDE)
    window = (slice(4, 9), slice(100, 118))
    around, inside = grown(window, by, picture.shape)
    assert np.array_equal(picture[around][inside], picture[window])
