"""Findings in scans lie where they do in the patient, and what can't be assessed says why."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from eagleray.pipelines.assessing.spec import NOTICE, NotAssessable, VolumeAssessment, not_assessable
from eagleray.pipelines.assessing.volumes import Found, VolumeAssessor, least_voxels
from eagleray.pipelines.assessing.windows import window_places
from eagleray.pipelines.bundle import Marking, Slicing
from eagleray.pipelines.media.volumes import Volume, read_series
from eagleray.pipelines.quarantine import Refused

from .. import volume_files
from ..chest_files import LESION, ORIGIN, SPACING, chest, lesion, lungs
from .bundles import FakeBundle

MARKING = Marking(
    size=32, findings=("nodule",), threshold=0.5, slicing=Slicing(spacing_mm=(3.0, 2.0, 2.0), gap=1)
)
HOT_HU = 1250
"""Of the nodule; half-way between it and lung is what the model marks, and nothing else there is as dense."""
LPS = np.eye(3)[::-1]
FEET_FIRST = np.array([[0.0, 0, -1], [0, 1, 0], [-1, 0, 0]])


def hot(windows: np.ndarray) -> np.ndarray:
    """What is denser than 200 HU in the own slice."""
    hu = (windows[:, 1:2] + 1) / 2 * 1400 - 1000
    return np.clip((hu - 200) / 200 + 0.5, 0, 1) * (hu > 100)


@cache
def voxels() -> np.ndarray:
    return np.where(lesion() > 0, HOT_HU, chest()).astype(np.int16)


def scan(direction: np.ndarray = LPS) -> Volume:
    return Volume(voxels().copy(), np.array(SPACING), np.array(ORIGIN), direction)


def find(volume: Volume, marking: Marking = MARKING) -> Found:
    found = VolumeAssessor(FakeBundle(marking, hot)).find(volume)
    assert isinstance(found, Found)
    return found


def reason(volume: Volume) -> str:
    bundle = FakeBundle(MARKING, hot)
    found = VolumeAssessor(bundle).assess(volume)
    assert isinstance(found, NotAssessable)
    assert bundle.batches == []
    assert found.message
    return found.reason


@pytest.mark.parametrize("direction", [LPS, FEET_FIRST])
@pytest.mark.parametrize("spacing", [SPACING, (3.0, 2.0, 2.0), (4.0, 2.0, 1.5)])
def test_a_nodule_is_found_where_it_lies_in_the_patient(direction, spacing):
    marking = MARKING.model_copy(update={"slicing": Slicing(spacing_mm=spacing)})
    assessment = find(scan(direction), marking).assessment
    (one,) = assessment.findings
    centre = np.array(ORIGIN) + np.array(LESION) @ direction
    np.testing.assert_allclose([one.x_mm, one.y_mm, one.z_mm], centre, atol=0.6)
    assert one.diameter_mm == pytest.approx(20, rel=0.1)
    assert one.slice == LESION[0] / SPACING[0]
    assert one.label == "nodule"
    assert (assessment.slices, assessment.spacing_mm, assessment.notice) == (40, SPACING, NOTICE)


def test_assessing_says_what_finding_says():
    said = VolumeAssessor(FakeBundle(MARKING, hot)).assess(scan())
    assert isinstance(said, VolumeAssessment)
    assert said == find(scan()).assessment


def test_a_chest_without_nodules_has_none():
    assert find(replace(scan(), voxels=chest())).assessment.findings == ()


def test_nothing_is_told_far_from_the_lungs_and_little_is_looked_for():
    volume = scan()
    volume.voxels[5:8, 38:42, 48:52] = HOT_HU  # between the lungs, 3 cm from each
    volume.voxels[38:, 10:20, 45:55] = HOT_HU  # above them
    bundle = FakeBundle(MARKING, hot)
    found = VolumeAssessor(bundle).find(volume)
    assert isinstance(found, Found)
    assert len(found.assessment.findings) == 1
    _, height, width = found.grid.voxels.shape
    places = sum(1 for _ in window_places((height, width), MARKING.size, 0.5))
    assert sum(bundle.batches) < 0.7 * len(found.grid.voxels) * places


@pytest.mark.parametrize("spacing", [SPACING, (3.0, 2.0, 2.0)])
def test_what_is_marked_comes_back_in_the_voxels_of_the_scan(spacing):
    marking = MARKING.model_copy(update={"slicing": Slicing(spacing_mm=spacing)})
    volume = scan()
    marked = find(volume, marking).marked(volume)
    assert marked.shape == (1, *volume.voxels.shape)
    both = 2 * (marked[0] & (lesion() > 0)).sum() / (marked[0].sum() + lesion().sum())
    assert both > (0.999 if spacing == SPACING else 0.9)


def test_what_is_smaller_than_two_millimetres_is_no_finding():
    assert [least_voxels(np.array(one)) for one in (SPACING, (1.0, 1.0, 1.0), (2.5, 0.8, 0.8))] == [1, 5, 3]


# ── what can't be assessed ─────────────────────────────────────────────────────────────────────────


def test_too_few_slices_are_refused():
    assert reason(replace(scan(), voxels=scan().voxels[15:24])) == "too-few-slices"


@pytest.mark.parametrize("spacing", [(5.5, 0.8, 0.8), (2.5, 5.2, 0.8)])
def test_a_coarse_scan_is_refused(spacing):
    assert reason(replace(scan(), spacing_mm=np.array(spacing))) == "too-coarse"


def test_slices_along_the_patient_are_refused():
    assert reason(scan(np.eye(3))) == "not-axial"


@pytest.mark.parametrize(
    "change",
    [
        lambda hu: np.clip((hu + 1000) / 1400 * 255, 0, 255).astype(np.uint8),
        lambda hu: (hu + 1024).astype(np.uint16),
        lambda hu: np.clip((hu + 1000) / 1400, 0, 1).astype(np.float32),
        lambda hu: np.full_like(hu, 40),
        lambda hu: np.random.default_rng(0).gamma(2, 120, hu.shape).astype(np.int16),
    ],
    ids=["windowed", "not rescaled", "shares", "one value", "like MR"],
)
def test_values_that_are_no_hounsfield_units_are_refused(change):
    assert reason(replace(scan(), voxels=change(scan().voxels))) == "not-ct"


def test_a_body_without_lungs_is_refused():
    solid = np.where(lungs(), 40, voxels())
    assert reason(replace(scan(), voxels=solid)) == "no-lungs"


def test_a_scan_that_would_be_too_large_is_refused():
    marking = MARKING.model_copy(update={"slicing": Slicing(spacing_mm=(0.1, 0.1, 0.1))})
    found = VolumeAssessor(FakeBundle(marking, hot)).assess(scan())
    assert isinstance(found, NotAssessable)
    assert found.reason == "volume-too-large"


def _tilted(datasets):
    for number, one in enumerate(datasets):
        one.ImagePositionPatient = [0, 0.6 * number, 2.5 * number]


def _coloured(datasets):
    for one in datasets:
        one.SamplesPerPixel, one.PhotometricInterpretation = 3, "RGB"


def _flat(datasets):
    for one in datasets:
        one.PixelSpacing = [0, 0.7]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_tilted, "sheared-axes"),
        (lambda datasets: datasets.pop(2), "uneven-slices"),
        (_flat, "wrong-spacing"),
        (_coloured, "not-three-dimensional"),
    ],
    ids=["gantry tilt", "missing slice", "wrong spacing", "secondary capture in colour"],
)
def test_what_readers_refuse_is_not_assessable_for_the_same_reason(change, why):
    datasets = volume_files.slices(volume_files.ct())
    change(datasets)
    slices = [(f"{n}.dcm", volume_files.encoded(one)) for n, one in enumerate(datasets)]
    with pytest.raises(Refused) as caught:
        read_series(slices)
    problem = not_assessable(caught.value)
    assert (problem.reason, problem.message) == (why, str(caught.value))
