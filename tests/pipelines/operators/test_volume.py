"""Volumes are resampled without moving anything, and windowed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from eagleray.pipelines.media.volumes import Volume, of_row
from eagleray.pipelines.operators.volume import (
    ResampleVolumeSpec,
    WindowVolumeSpec,
    resample_volume,
    window_volume,
)
from eagleray.pipelines.quarantine import Refused
from eagleray.pipelines.spec import Preparation

from ..volume_files import ORIGIN, SPACING, oblique


def volume(voxels: np.ndarray, spacing: Any = SPACING) -> Volume:
    return Volume(voxels, np.array(spacing), np.array(ORIGIN), oblique())


def apply(start: Any, spec: Any, given: Volume) -> Volume:
    found = start(spec, Preparation())({"volume": given.row("a")}, None)
    return given if found is None else of_row(found["volume"])


def points(one: Volume) -> np.ndarray:
    places = np.stack(np.meshgrid(*(np.arange(size) for size in one.voxels.shape), indexing="ij"), -1)
    return one.origin_mm + (places * one.spacing_mm) @ one.direction


@pytest.mark.parametrize("spacing", [(1, 1, 1), (0.5, 0.4, 0.3), (5, 2, 2), (2.5, 2, 0.7)])
def test_a_ramp_in_patient_space_stays_where_it_is(spacing):
    given = volume(np.zeros((24, 40, 44), np.float32))
    slope = np.array([0.7, -0.4, 1.1])
    given = volume((points(given) @ slope).astype(np.float32))
    found = apply(resample_volume, ResampleVolumeSpec(spacing_mm=spacing), given)
    assert found.spacing_mm.tolist() == list(spacing)
    assert np.array_equal(found.origin_mm, given.origin_mm)
    assert np.array_equal(found.direction, given.direction)
    expected = points(found) @ slope
    pairs = list(zip(spacing, SPACING, strict=True))
    # Near its ends a Gaussian, cut at four deviations, reaches beyond, and so may the last half voxel.
    reach = [int(np.ceil((4 * max(0, new / old - 1) / 2 + 1) * old / new)) for new, old in pairs]
    inner = tuple(
        slice(one, -one) for one in reach
    )  # a Gaussian reaches beyond the edge, and half a voxel may
    np.testing.assert_allclose(found.voxels[inner], expected[inner], atol=2e-3)
    outside = [place for place in points(found).reshape(-1, 3) if not given.holds(place)]
    assert outside == []


def test_what_is_finer_than_the_new_grid_is_smoothed_away():
    stripes = np.tile(np.array([0, 1000], np.int16), 32)
    given = volume(np.broadcast_to(stripes, (16, 16, 64)).copy(), (1, 1, 1))
    found = apply(resample_volume, ResampleVolumeSpec(spacing_mm=(1, 1, 3)), given)
    assert found.voxels.dtype == np.int16
    assert np.abs(found.voxels[..., 2:-2] - 500).max() < 30


def test_a_volume_on_the_grid_stays_to_the_bit():
    given = volume(np.random.default_rng(0).normal(size=(4, 5, 6)), (1, 1, 1))
    assert resample_volume(ResampleVolumeSpec(), Preparation())({"volume": given.row("a")}, None) is None  # pyright: ignore


def test_whole_numbers_are_rounded_and_stay_in_their_range():
    given = volume(np.full((6, 6, 6), 32767, np.int16))
    found = apply(resample_volume, ResampleVolumeSpec(), given)
    assert (found.voxels == 32767).all()


def test_a_result_that_is_too_large_is_refused():
    given = volume(np.zeros((10, 10, 10), np.int16), (5, 5, 5))
    with pytest.raises(Refused) as caught:
        apply(resample_volume, ResampleVolumeSpec(max_voxels=1000), given)
    assert caught.value.reason == "volume-too-large"


@pytest.mark.parametrize("spacing", [(1, 1, 1), (5, 1.5, 1.4), (2.5, 0.8, 0.7)])
def test_regions_go_where_the_volume_goes(spacing):
    rng = np.random.default_rng(0)
    marked = np.kron(rng.integers(0, 3, (3, 4, 4)), np.ones((4, 6, 6))).astype(np.uint8)
    given = volume((marked * 100).astype(np.int16))
    regions = {"labels": ["a", "b"], "voxels": marked.tobytes()}
    row = {"volume": given.row("a"), "regions": regions}
    row |= resample_volume(ResampleVolumeSpec(spacing_mm=spacing), Preparation())(row, None) or {}  # pyright: ignore
    found = of_row(row["volume"])
    moved = np.frombuffer(row["regions"]["voxels"], np.uint8).reshape(found.voxels.shape)
    assert row["regions"]["labels"] == ["a", "b"]
    # A voxel has the label of the old one that is nearest to it in patient space.
    place = ((points(found) - given.origin_mm) @ given.direction.T) / given.spacing_mm
    old = np.minimum(np.rint(place).astype(int), np.array(marked.shape) - 1)
    between = (np.abs(place % 1 - 0.5) < 1e-6).any(-1)  # two are as near: either may be taken
    assert np.array_equal(moved[~between], marked[tuple(np.moveaxis(old, -1, 0))][~between])
    assert np.array_equal(np.unique(moved), [0, 1, 2])


def test_a_window_leaves_regions_alone():
    given = volume(np.zeros((2, 3, 4), np.int16))
    row = {"volume": given.row("a"), "regions": {"labels": ["a"], "voxels": bytes(24)}}
    assert set(window_volume(WindowVolumeSpec(), Preparation())(row, None) or {}) == {"volume"}  # pyright: ignore


def test_a_window_maps_its_ends_to_the_range():
    given = volume(np.array([[[-3000, -1000, -300, 400, 3000]]], np.int16))
    found = apply(window_volume, WindowVolumeSpec(), given)
    assert found.voxels.ravel().tolist() == [0, 0, 128, 255, 255]
    found = apply(window_volume, WindowVolumeSpec(dtype="float32"), given)
    assert found.voxels.dtype == np.float32
    np.testing.assert_allclose(found.voxels.ravel(), [0, 0, 0.5, 1, 1])


def test_wrong_options_are_refused():
    with pytest.raises(ValidationError, match="not below"):
        WindowVolumeSpec(low_hu=5, high_hu=5)
    with pytest.raises(ValidationError, match=r"0\.01 to 100"):
        ResampleVolumeSpec(spacing_mm=(0, 1, 1))
