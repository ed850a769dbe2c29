"""Lungs are found in a chest, vessels included, airways and other gas left out."""

from __future__ import annotations

import numpy as np
import pytest

from eagleray.pipelines.media.lungs import close, enlarge, in_plane_step, segment_lungs, shrink

from ..chest_files import GAS, SPACING, chest, ellipsoid, lungs

WIDTH = np.array(SPACING)


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * (one & other).sum() / (one.sum() + other.sum())


def test_lungs_are_found_with_their_vessels_and_nothing_else():
    found = segment_lungs(chest(), WIDTH)
    assert overlap(found, lungs()) > 0.97
    assert not found[ellipsoid(*GAS)].any()
    assert not found[:, 20, 50].any()  # the windpipe


def test_a_lung_that_goes_on_beyond_the_last_slice_stays_whole():
    found = segment_lungs(chest()[10:30], WIDTH)
    assert overlap(found, lungs()[10:30]) > 0.97


def test_where_there_are_no_lungs_none_are_found():
    assert not segment_lungs(np.full((10, 40, 40), 40, np.int16), WIDTH).any()
    assert not segment_lungs(np.full((10, 40, 40), -1000, np.int16), WIDTH).any()


def test_closing_fills_what_is_narrow_and_leaves_what_is_wide():
    mask = np.zeros((8, 40, 60), bool)
    mask[:, 5:35, 5:55] = True
    mask[:, :, 20:23], mask[:, 12:28, 34:50] = False, False
    closed = close(mask, np.array([2.0, 1.0, 1.0]), 4.0)
    assert closed[:, 10:30, 20:23].all()
    assert not closed[:, 17:23, 39:45].any()
    assert not closed[:, :5].any()
    assert not closed[:, 35:].any()


@pytest.mark.parametrize("step", [1, 2, 3])
def test_shrinking_keeps_means_and_enlarging_undoes_it(step):
    values = np.random.default_rng(0).normal(size=(3, 13, 11))
    small = shrink(values, step)
    assert small.shape == (3, -(-13 // step), -(-11 // step))
    np.testing.assert_allclose(small[1, 1, 1], values[1, step : 2 * step, step : 2 * step].mean(), rtol=1e-5)
    blocks = np.random.default_rng(0).integers(0, 2, small.shape)
    np.testing.assert_array_equal(shrink(enlarge(blocks, step, values.shape), step) > 0.5, blocks > 0)


def test_a_step_makes_voxels_of_a_millimetre_at_least():
    assert [in_plane_step(np.array([5, one, one])) for one in (0.5, 0.57, 0.98, 1.0, 1.5)] == [2, 2, 2, 1, 1]
