"""Where a nodule is said to be, and what of a CT is kept."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eagleray.pipelines.media.insertion import MARGIN_MM, finding, fullest, read_chest
from eagleray.pipelines.media.volumes import Volume
from eagleray.pipelines.quarantine import Refused

from ..chest_files import ORIGIN, SPACING, chest, lesion, lungs, write_nrrd


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=40))
def test_as_many_voxels_are_marked_as_there_is_volume_and_the_fullest_are(shares):
    share = np.array(shares, np.float32).reshape(1, 1, -1)
    mask = fullest(share)
    assert mask.sum() == max(1, round(float(share.sum())))
    assert share[mask].min() >= share[~mask].max(initial=0)


def test_a_finding_is_a_ball_of_its_mask_in_patient_space():
    mask = np.zeros((6, 8, 10), bool)
    mask[2:4, 3, 5:7] = True
    turned = np.array([[0.0, 0, -1], [0, 1, 0], [1, 0, 0]])
    found = finding("x", mask, Volume(mask, np.array([2.0, 1, 0.5]), np.array([1.0, 2, 3]), turned))
    assert (found["x_mm"], found["y_mm"], found["z_mm"]) == (1 + 5.5 * 0.5, 2 + 3, 3 - 2.5 * 2)
    assert np.pi / 6 * found["diameter_mm"] ** 3 == pytest.approx(4)


def test_a_ct_is_cut_to_its_lungs_and_stays_in_its_place(tmp_path):
    for name, voxels in (("image", chest()), ("label", lesion())):
        write_nrrd(tmp_path / f"{name}.nrrd", voxels)
    found = read_chest(*((tmp_path / f"{name}.nrrd").read_bytes() for name in ("image", "label")))
    start = np.rint((found.volume.origin_mm - ORIGIN)[::-1] / SPACING).astype(int)
    box = tuple(slice(a, a + n) for a, n in zip(start, found.volume.voxels.shape, strict=True))
    assert np.array_equal(found.volume.voxels, chest()[box])
    assert np.array_equal(found.lesion, lesion()[box] > 0)
    assert lungs()[box].sum() == lungs().sum()
    edges = np.argwhere(lungs()[box])
    for axis, spacing in enumerate(SPACING):
        assert edges[:, axis].min() * spacing <= MARGIN_MM + 3 * spacing
    assert found.filled[found.lesion].all()
    vessel = (88 // 4 - start[0], 40 - start[1], 216 // 3 - start[2])
    assert found.lungs[vessel]
    assert found.filled[vessel]
    assert found.filled[found.lungs].mean() < 0.1
    assert found.depth_mm.max() == pytest.approx(46, abs=4)  # a lung is 48 mm to each side


def test_what_has_no_lungs_or_another_grid_is_refused(tmp_path):
    write_nrrd(tmp_path / "a.nrrd", np.full((10, 40, 40), 40, np.int16))
    write_nrrd(tmp_path / "b.nrrd", np.zeros((10, 40, 41), np.uint8))
    image, mask = ((tmp_path / name).read_bytes() for name in ("a.nrrd", "b.nrrd"))
    for lesions, reason in ((None, "no-lungs"), (mask, "mixed-geometry")):
        with pytest.raises(Refused) as caught:
            read_chest(image, lesions)
        assert caught.value.reason == reason
