"""Patches are cut where they are said to lie."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eagleray.pipelines.media.patches import all_places, cut, lot, marks_of, named
from eagleray.pipelines.media.volumes import Volume

SIDE = st.integers(1, 40)


@given(SIDE, SIDE, st.integers(1, 30), st.integers(-60, 60), st.integers(-60, 60))
def test_a_patch_is_what_a_padded_slice_has_there(height, width, size, top, left):
    values = np.arange(1, height * width + 1).reshape(height, width)
    padded = np.pad(values, 100)[100 + top : 100 + top + size, 100 + left : 100 + left + size]
    assert np.array_equal(cut(values, (0, top, left), size), padded)


@given(SIDE, SIDE, st.integers(1, 30), st.integers(1, 30))
def test_places_lie_inside_and_leave_no_voxel_out(height, width, size, stride):
    places = list(all_places((1, height, width), size, min(stride, size), 1))
    seen = np.zeros((height + size, width + size), int)
    for _, top, left in places:
        assert 0 <= top <= max(0, height - size)
        assert 0 <= left <= max(0, width - size)
        seen[top : top + size, left : left + size] += 1
    assert (seen[:height, :width] > 0).all()
    assert len(set(places)) == len(places)


def test_a_finding_at_the_edge_is_cut_off_and_a_small_one_has_a_voxel():
    volume = Volume(np.zeros((4, 5, 6)), np.array([5.0, 1, 1]), np.zeros(3), np.eye(3)[::-1])
    kept = {"label": "a", "x_mm": 0.0, "y_mm": 4.0, "z_mm": 15.0, "diameter_mm": 3.0}
    tiny = {"label": "b", "x_mm": 3.0, "y_mm": 1.0, "z_mm": 5.0, "diameter_mm": 0.5}
    marks = marks_of({"findings": [kept, tiny]}, volume, ["b", "a"])
    assert marks is not None
    assert marks[3, 4, 0] == 2
    assert (marks == 2).sum() == 4
    assert np.argwhere(marks == 1).tolist() == [[1, 1, 3]]
    assert marks_of({}, volume, ["a"]) is None


def test_a_mask_is_named_after_what_it_shows_most_of():
    assert named(np.array([[0, 1], [2, 2]], np.uint8), ["a", "b"]) == "b"
    assert named(np.array([[1, 2]], np.uint8), ["a", "b"]) == "a"
    assert named(np.zeros((2, 2), np.uint8), ["a"]) is None


def test_a_lot_is_the_same_for_a_name():
    assert lot("a").integers(1 << 60) == lot("a").integers(1 << 60) != lot("b").integers(1 << 60)
    assert lot("a").random() == pytest.approx(lot("a").random())
