"""Windows cover everything, and where they agree nothing is left of their having been there."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eagleray.pipelines.assessing.windows import slide, slide_volume, window_places, window_weights
from eagleray.pipelines.media.image import normalise
from eagleray.pipelines.media.patches import slab

sides = st.integers(1, 70)
sizes = st.integers(1, 24)
shares = st.floats(0, 0.9)


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 100 + width).integers(0, 256, (height, width, 3), np.uint8)


def per_pixel(windows: np.ndarray) -> np.ndarray:
    """A model that sees single pixels: two findings."""
    return np.stack([windows.mean(axis=1) / 2 + 0.5, windows[:, 0] ** 2], axis=1)


@settings(max_examples=60, deadline=None)
@given(sides, sides, sizes, shares, st.integers(1, 5))
def test_what_depends_on_the_pixel_alone_comes_back_unchanged(height, width, size, share, batch):
    pixels = picture(height, width)
    found = slide(pixels, size, per_pixel, share, batch)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, per_pixel(normalise(pixels[None]))[0])


@settings(max_examples=60, deadline=None)
@given(sides, sides, sizes, shares, st.floats(0, 1, width=32))
def test_what_is_the_same_everywhere_comes_back_to_the_last_bit(height, width, size, share, value):
    found = slide(picture(height, width), size, lambda windows: np.full_like(windows[:, :1], value), share)
    assert (found == np.float32(value)).all()
    assert found.shape == (1, height, width)


@settings(max_examples=60, deadline=None)
@given(sides, sides, sizes, shares)
def test_windows_cover_a_picture_and_stay_in_it(height, width, size, share):
    shape = (max(height, size), max(width, size))
    places = list(window_places(shape, size, share))
    assert len(set(places)) == len(places)
    covered = np.zeros(shape, bool)
    for top, left in places:
        assert 0 <= top <= shape[0] - size
        assert 0 <= left <= shape[1] - size
        covered[top : top + size, left : left + size] = True
    assert covered.all()


def test_neighbours_have_the_wanted_share_in_common():
    assert list(window_places((8, 20), 8, 0.5)) == [(0, 0), (0, 4), (0, 8), (0, 12)]
    assert list(window_places((8, 19), 8, 0.25)) == [(0, 0), (0, 6), (0, 11)]


def test_the_middle_of_a_window_counts_most_and_its_corner_a_little():
    weights = window_weights(16)
    assert weights.max() == 1
    assert weights[8, 8] == 1
    assert weights.min() == weights[0, 0] == 1e-3
    assert weights[8, 10] / weights[8, 8] == pytest.approx(np.exp(-(2.5**2 - 0.5**2) / 2 / 2**2))
    np.testing.assert_array_equal(weights, weights[::-1, ::-1].T)


def test_where_windows_differ_the_nearer_one_counts_more():
    seen = iter(np.linspace(0, 1, 2))
    found = slide(picture(8, 12), 8, lambda windows: np.full_like(windows[:, :1], next(seen)), batch=1)
    row = found[0, 4]
    assert (np.diff(row) >= 0).all()
    assert row[4] < 0.05
    assert row[7] > 0.95
    weights = window_weights(8)[4]
    np.testing.assert_allclose(row[4:8], weights[:4] / (weights[:4] + weights[4:]), rtol=1e-6)


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_batches_change_nothing(batch):
    def mean(windows: np.ndarray) -> np.ndarray:
        assert len(windows) <= batch
        return np.broadcast_to(windows.mean(axis=(1, 2, 3), keepdims=True), (len(windows), 1, 8, 8))

    found = slide(picture(30, 21), 8, mean, 0.5, batch)
    np.testing.assert_array_equal(found, slide(picture(30, 21), 8, mean, 0.5, 1))


def test_a_small_picture_is_mirrored_until_it_fills_a_window():
    seen: list[np.ndarray] = []

    def keep(windows: np.ndarray) -> np.ndarray:
        seen.append(windows)
        return windows

    pixels = picture(3, 5)
    assert slide(pixels, 8, keep).shape == (3, 3, 5)
    filled = np.concatenate([pixels, pixels[::-1], pixels[:2]])
    filled = np.concatenate([filled, filled[:, :1:-1]], axis=1)
    np.testing.assert_array_equal(seen[0], normalise(filled[None]))


def volume(shape: tuple[int, int, int] = (5, 30, 21)) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize("shape", [(5, 30, 21), (1, 6, 21), (3, 4, 5)])
@pytest.mark.parametrize("gap", [0, 1, 2])
def test_colours_of_a_slice_are_its_neighbours_as_a_model_learns_from_them(shape, gap):
    voxels = volume(shape)
    found = dict(slide_volume(voxels, 8, per_pixel, 0.4, gap))
    assert list(found) == list(range(shape[0]))
    for depth, probabilities in found.items():
        whole = slab(voxels, (depth, 0, 0), max(shape[1:]), gap, (0, 255))[: shape[1], : shape[2]]
        np.testing.assert_array_equal(probabilities, per_pixel(normalise(whole[None]))[0])


def test_windows_without_anything_to_look_at_are_left_out():
    voxels, within = volume(), np.zeros((5, 30, 21), bool)
    within[1, 4:6, 3:5], within[3, 20:28, 2:19] = True, True
    counts: list[int] = []

    def mean(windows: np.ndarray) -> np.ndarray:
        counts.append(len(windows))
        return np.broadcast_to(windows.mean(axis=(1, 2, 3), keepdims=True) + 2, (len(windows), 1, 8, 8))

    every = dict(slide_volume(voxels, 8, mean))
    num_windows, counts = sum(counts), []
    found = dict(slide_volume(voxels, 8, mean, within=within))
    assert list(found) == [1, 3]
    assert sum(counts) < num_windows / 5
    for depth, probabilities in found.items():
        np.testing.assert_array_equal(probabilities[0][within[depth]], every[depth][0][within[depth]])
    assert not found[1][0, 12:].any()
    assert list(slide_volume(voxels, 8, mean, within=np.zeros_like(within))) == []
