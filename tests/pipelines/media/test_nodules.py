"""Shapes are drawn at their size, and blending keeps a CT's noise and vessels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from eagleray.pipelines.media.nodules import Noise, Pose, Shape, blend, draw_shape, noise_of, shape_of

from ..chest_files import NOISE_HU, chest

SILENT = Noise(0.0, np.zeros(3))


def lopsided() -> Shape:
    places = np.stack(np.meshgrid(*(np.arange(n) for n in (12, 30, 30)), indexing="ij"), -1) * [
        1.5,
        0.75,
        0.75,
    ]
    inside = (((places - [8, 11, 11]) / [5, 7, 4]) ** 2).sum(-1) < 1
    return shape_of(inside | ((((places - [8, 15, 13]) / 3) ** 2).sum(-1) < 1), np.array([1.5, 0.75, 0.75]))


def diameter(volume: float) -> float:
    return float(np.cbrt(6 / np.pi * volume))


@settings(max_examples=20)
@given(
    st.floats(4, 30),
    st.floats(0, 6.3),
    st.tuples(*[st.floats(-0.5, 0.5)] * 3),
    st.sampled_from([(5, 0.6, 0.6), (1.5, 1.5, 1.5), (1.0, 0.7, 0.7)]),
)
def test_a_shape_has_the_diameter_asked_for_on_any_grid(size, angle, offset, spacing):
    pose = Pose(size, angle, np.array([1.0, -1.0, 1.0]), np.array(offset), 0.3)
    share, core = draw_shape(lopsided(), pose, np.array(spacing))
    assert diameter(share.sum() * np.prod(spacing)) == pytest.approx(size, rel=0.08)
    assert diameter(core.sum() * np.prod(spacing)) == pytest.approx(size * 0.3 ** (1 / 3), rel=0.15)
    assert (core <= share + 1e-6).all()
    for axis in range(3):
        assert not np.take(share, (0, -1), axis).any()
    middle = np.array(share.shape) // 2 + np.array(offset)
    centre = np.array(ndimage.center_of_mass(share))
    # Where in a voxel a thing lies that is no larger, its share doesn't say.
    fine = np.array(spacing) < size / 3
    assert (np.abs((centre - middle) * spacing)[fine] < 0.25 + 0.06 * size).all()


def test_a_turn_by_half_is_both_flips():
    def draw(angle: float, flips: list[float]) -> np.ndarray:
        pose = Pose(12.0, angle, np.array(flips), np.zeros(3))
        return draw_shape(lopsided(), pose, np.array([2.0, 1.0, 1.0]))[0]

    np.testing.assert_allclose(draw(np.pi, [1, 1, 1]), draw(0, [1, -1, -1]), atol=1e-4)
    np.testing.assert_allclose(draw(0, [-1, 1, 1]), draw(0, [1, 1, 1])[::-1], atol=1e-4)


def test_edges_are_as_wide_as_the_point_spread():
    half = np.zeros((3, 40, 40), np.float32)
    half[:, :, 20:] = 1
    spacing = np.array([3.0, 0.7, 0.7])
    lung = np.full(half.shape, -850, np.int16)
    edge = blend(lung, (half, half * 0), (50.0, 50.0), spacing, SILENT, np.random.default_rng(0))[1, 20]
    assert edge[:14].max() < -845
    assert edge[26:].min() > 45
    slope = np.diff(edge) / 900
    width = np.sqrt((slope * (np.arange(39) - 19) ** 2).sum()) * 0.7
    assert 2.355 * width == pytest.approx(0.84, rel=0.2)  # the greater of 0.8 mm and 1.2 voxels


def test_ground_glass_hides_no_vessel_and_a_solid_nodule_does():
    values = np.full((3, 24, 24), -850, np.int16)
    values[:, :, 12] = 40
    full = np.ones(values.shape, np.float32)
    rng = np.random.default_rng(0)
    glass = blend(values, (full, full * 0), (-550.0, 0.0), np.ones(3), SILENT, rng)
    assert glass[1, 5, 12] == pytest.approx(40, abs=1)
    assert np.median(glass) == pytest.approx(-550, abs=1)
    solid = blend(values, (full, full * 0), (-20.0, 0.0), np.ones(3), SILENT, rng)
    assert solid == pytest.approx(np.full(values.shape, -20), abs=1)
    mixed = blend(values, (full, full), (-550.0, 30.0), np.ones(3), SILENT, rng)
    assert mixed == pytest.approx(np.full(values.shape, 30), abs=1)


def test_noise_is_measured_and_drawn_alike():
    found = noise_of(chest())
    assert found.deviation_hu == pytest.approx(NOISE_HU, rel=0.15)
    rng = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(rng.normal(size=(24, 96, 96)), (0, 0.9, 0.9))
    found = noise_of(40 + 10 * smooth / smooth.std())
    assert found.deviation_hu == pytest.approx(10, rel=0.2)
    again = found.draw((24, 96, 96), rng)
    assert again.std() == pytest.approx(found.deviation_hu, rel=0.02)
    expected, given = (
        float(np.corrcoef(one[..., 1:].ravel(), one[..., :-1].ravel())[0, 1]) for one in (smooth, again)
    )
    assert given == pytest.approx(expected, abs=0.12)
    assert noise_of(np.full((4, 30, 30), -1000)).deviation_hu == 0
