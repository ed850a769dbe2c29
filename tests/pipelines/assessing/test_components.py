"""Candidates from probabilities lie where the probabilities do, in patient space."""

from __future__ import annotations

import numpy as np
import pytest

from eagleray.pipelines.assessing.components import candidates
from eagleray.pipelines.media.volumes import Volume

SPACING = np.array([2.5, 0.8, 0.7])
ORIGIN = np.array([-120.0, 80.0, 33.0])
FEET_FIRST = np.array([[0.0, 0, -1], [0, 1, 0], [-1, 0, 0]])


def volume(values: np.ndarray) -> Volume:
    return Volume(values, SPACING, ORIGIN, FEET_FIRST)


def test_a_ball_has_its_centre_in_patient_space_and_its_diameter():
    middle, radius = np.array([12, 30, 35]), 12.0
    places = np.stack(np.meshgrid(np.arange(24), np.arange(60), np.arange(70), indexing="ij"), -1)
    inside = (((places - middle) * SPACING) ** 2).sum(-1) < radius**2
    found = candidates(volume(np.where(inside, 0.8, 0.1)))
    assert found.scores.tolist() == [0.8]
    np.testing.assert_allclose(found.centres_mm[0], ORIGIN + (middle * SPACING) @ FEET_FIRST, atol=1e-9)
    assert found.diameters_mm[0] == pytest.approx(2 * radius, rel=0.02)


def test_pieces_join_over_corners_and_the_likeliest_comes_first():
    values = np.zeros((6, 6, 6))
    values[0, 0, 0], values[1, 1, 1] = 0.6, 0.7
    values[4, 4, 4] = 0.9
    found = candidates(volume(values))
    assert found.scores.tolist() == [0.9, 0.7]
    one, two = (np.cbrt(6 / np.pi * count * SPACING.prod()) for count in (1, 2))
    np.testing.assert_allclose(found.diameters_mm, [one, two])
    weighted = np.full(3, 0.7 / 1.3)
    np.testing.assert_allclose(found.centres_mm[1], ORIGIN + (weighted * SPACING) @ FEET_FIRST)


def test_what_is_unlikely_or_small_is_no_candidate():
    values = np.zeros((4, 4, 4))
    values[0, 0, :3], values[3, 3, 3] = 0.5, 0.4
    assert candidates(volume(values)).scores.tolist() == [0.5]
    assert candidates(volume(values), min_voxels=4).centres_mm.shape == (0, 3)
    assert candidates(volume(values), threshold=0.3).scores.tolist() == [0.5, 0.4]
    assert candidates(volume(np.zeros((4, 4, 4)))).scores.size == 0
