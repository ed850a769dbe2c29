"""Turned and bent volumes: what moves keeps its shape in millimetres, and marks and points move with it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.transforms.spatial.array import Affine
from scipy import ndimage

from eagleray.pipelines.media.turning import (
    MAX_SLOPE,
    Turn,
    draw_turn,
    rotation_about,
    turn_marks,
    turn_points,
    turn_volume,
)
from eagleray.pipelines.media.volumes import Volume

from ..volume_files import ORIGIN, oblique

SPACING = np.array([2.5, 0.8, 0.7])
SHAPE = (30, 90, 100)
NO_BEND = np.zeros((3, 2, 2, 2))


def volume(voxels: np.ndarray, spacing: np.ndarray = SPACING) -> Volume:
    return Volume(voxels, np.array(spacing), np.array(ORIGIN), oblique())


def millimetres(shape: tuple[int, ...] = SHAPE, spacing: np.ndarray = SPACING) -> np.ndarray:
    """(D, H, W, 3) from the middle."""
    places = np.stack(np.meshgrid(*(np.arange(size) for size in shape), indexing="ij"), -1)
    return (places - (np.array(shape) - 1) / 2) * spacing


def ball(centre: np.ndarray, radius: float) -> np.ndarray:
    return np.linalg.norm(millimetres() - centre, axis=-1) <= radius


def smooth() -> np.ndarray:
    values = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=SHAPE), 3)
    return (values / values.std()).astype(np.float32)


def points_of(mask: np.ndarray, one: Volume) -> np.ndarray:
    centre = np.argwhere(mask).mean(axis=0)
    return one.origin_mm + (centre * one.spacing_mm) @ one.direction


@pytest.mark.parametrize("axis", [(1, 0, 0), (0, 1, 0), (0.3, -0.5, 0.8)])
def test_a_rotation_is_scipys_with_the_same_matrix_in_voxels(axis):
    rotation = rotation_about(np.array(axis), 0.25)
    given = volume(smooth())
    matrix = np.diag(1 / SPACING) @ rotation.T @ np.diag(SPACING)
    middle = (np.array(SHAPE) - 1) / 2
    expected = ndimage.affine_transform(
        given.voxels, matrix, middle - matrix @ middle, order=1, mode="constant", cval=-7
    )
    found = turn_volume(given, Turn(rotation, NO_BEND), -7)
    # places are kept in single precision, and a place on the very border may fall to either side
    inside = (expected > -6) & (found.voxels > -6)
    assert inside.mean() > 0.6
    np.testing.assert_allclose(found.voxels[inside], expected[inside], atol=2e-4)
    assert ((expected == -7) == (found.voxels == -7)).mean() > 0.9999
    assert found.spacing_mm is given.spacing_mm


def test_a_rotation_of_cubes_is_monais():
    side = 40
    values = smooth()[:, :side, :side]
    given = volume(np.pad(values, [(5, 5), (0, 0), (0, 0)], mode="edge"), np.ones(3))
    angles = (0.2, -0.1, 0.15)
    turned = Affine(rotate_params=angles, padding_mode="zeros", image_only=True)
    expected = np.asarray(turned(torch.from_numpy(given.voxels)[None]))[0]
    # monai's matrix, by which the grid of the result is moved, is x, y and z one after the other
    matrices = [rotation_about(axis, angle) for axis, angle in zip(np.eye(3), angles, strict=True)]
    moved = matrices[0] @ matrices[1] @ matrices[2]
    found = turn_volume(given, Turn(moved.T, NO_BEND), 0).voxels
    inner = (slice(12, -12),) * 3
    np.testing.assert_allclose(found[inner], expected[inner], atol=1e-4)


def test_a_ball_stays_a_ball_in_millimetres_though_voxels_are_flat():
    centre, radius = np.array([6.0, 8.0, -5.0]), 14
    given = volume(ball(centre, radius).astype(np.float32))
    turn = Turn(rotation_about(np.array([0.2, 1.0, -0.4]), math.radians(15)), NO_BEND)
    marks = turn_marks(given.voxels.astype(np.uint8), given, turn)
    places = np.argwhere(marks) * SPACING
    assert marks.sum() == pytest.approx(given.voxels.sum(), rel=0.03)
    extents = np.sqrt(np.linalg.eigvalsh(np.cov(places.T)))
    np.testing.assert_allclose(extents, radius / math.sqrt(5), rtol=0.02)
    expected = ball(turn.rotation @ centre, radius)
    overlap = 2 * (marks & expected).sum() / (marks.sum() + expected.sum())
    assert overlap > 0.95


@pytest.mark.parametrize("bend_mm", [0.0, 3.0])
def test_marks_and_points_follow_the_picture(bend_mm):
    centre = np.array([4.0, -9.0, 10.0])
    given = volume(ball(centre, 6).astype(np.float32) * 100)
    rng = np.random.default_rng(1)
    turn = draw_turn(given, math.radians(15), bend_mm, 40.0, rng)
    marks = turn_marks((given.voxels > 0).astype(np.uint8), given, turn)
    seen = turn_volume(given, turn, 0).voxels > 50
    assert 2 * (marks & seen).sum() / (marks.sum() + seen.sum()) > 0.95
    (moved,) = turn_points(points_of(given.voxels > 0, given)[None], given, turn)
    assert np.linalg.norm(moved - points_of(marks > 0, given)) < 0.5
    assert np.linalg.norm(moved - points_of(given.voxels > 0, given)) > 0.5


def test_points_go_where_the_content_at_their_place_went():
    given = volume(np.zeros(SHAPE, np.float32))
    turn = draw_turn(given, math.radians(15), 4.0, 30.0, np.random.default_rng(2))
    coordinates = [np.broadcast_to(axis, SHAPE) for axis in np.ogrid[tuple(slice(n) for n in SHAPE)]]
    came = [turn_volume(volume(axis.astype(np.float32)), turn, np.nan).voxels for axis in coordinates]
    there = np.stack(came, -1)
    known = np.argwhere(np.isfinite(there).all(axis=-1))
    chosen = known[np.random.default_rng(3).integers(len(known), size=200)]
    to_mm = lambda places: given.origin_mm + (places * SPACING) @ given.direction  # noqa: E731
    found = turn_points(to_mm(there[tuple(chosen.T)]), given, turn)
    np.testing.assert_allclose(found, to_mm(chosen), atol=2e-3)


def test_bends_fold_nothing():
    given = volume(np.zeros(SHAPE, np.float32))
    turn = draw_turn(given, 0.0, 50.0, 20.0, np.random.default_rng(4))
    extent = (np.array(SHAPE) - 1) * SPACING
    slopes = [
        np.abs(np.diff(turn.bends_mm, axis=axis)).max() * (turn.bends_mm.shape[axis] - 1) / extent[axis - 1]
        for axis in (1, 2, 3)
    ]
    assert 0.05 < max(slopes) <= MAX_SLOPE


def test_no_angle_and_no_bend_leave_voxels_as_they_are():
    given = volume(np.random.default_rng(0).integers(-1000, 400, SHAPE).astype(np.int16))
    turn = draw_turn(given, 0.0, 0.0, 40.0, np.random.default_rng(0))
    found = turn_volume(given, turn, -1000)
    assert found.voxels.dtype == np.int16
    np.testing.assert_array_equal(found.voxels, given.voxels)
