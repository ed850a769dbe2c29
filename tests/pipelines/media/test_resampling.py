"""Volumes on another grid are the same thing, more finely or more coarsely seen."""

from __future__ import annotations

import numpy as np
import pytest

from eagleray.pipelines.media.resampling import resample, resample_marks, share_of_window, to_bytes
from eagleray.pipelines.media.volumes import Volume
from eagleray.pipelines.quarantine import Refused

SPACING = np.array([2.0, 1.0, 1.0])


def volume(voxels: np.ndarray) -> Volume:
    return Volume(voxels, SPACING, np.array([3.0, 4.0, 5.0]), np.eye(3)[::-1])


def test_a_volume_with_the_wanted_spacing_is_left_alone():
    one = volume(np.zeros((2, 3, 4), np.int16))
    assert resample(one, SPACING.tolist()) is one


@pytest.mark.parametrize("spacing", [(1.0, 0.5, 0.7), (3.0, 2.0, 1.5)])
def test_a_ramp_stays_a_ramp_and_the_first_voxel_where_it_is(spacing):
    values = (np.arange(12)[:, None, None] * 20.0 + np.zeros((12, 20, 24))).astype(np.float32)
    found = resample(volume(values), spacing)
    middle = found.voxels[2:-2, 4, 4]
    np.testing.assert_allclose(np.diff(middle), 10 * spacing[0], rtol=1e-4)
    np.testing.assert_array_equal(found.origin_mm, volume(values).origin_mm)
    assert found.spacing_mm.tolist() == list(spacing)


def test_marks_follow_their_volume():
    marks = np.random.default_rng(0).integers(0, 3, (4, 8, 8), np.uint8)
    halved = resample(volume(np.zeros(marks.shape, np.int16)), (1.0, 0.5, 0.5))
    np.testing.assert_array_equal(resample_marks(marks, SPACING.tolist(), halved)[::2, ::2, ::2], marks)


def test_what_would_be_too_large_is_refused():
    with pytest.raises(Refused) as caught:
        resample(volume(np.zeros((4, 4, 4), np.int16)), (0.1, 0.1, 0.1), max_voxels=1000)
    assert caught.value.reason == "volume-too-large"


def test_a_window_ends_at_0_and_255():
    values = np.array([-3000, -1000, -300, 400, 2000], np.int16)
    assert to_bytes(values, -1000, 400).tolist() == [0, 0, 128, 255, 255]
    np.testing.assert_allclose(share_of_window(values, -1000, 400), [0, 0, 0.5, 1, 1])
