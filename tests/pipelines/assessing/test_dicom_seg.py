"""A Segmentation object holds what is marked, where it is in the patient, and where it came from."""

from __future__ import annotations

import io
from datetime import datetime

import numpy as np
import pydicom
import pytest
from pydicom.uid import SegmentationStorage

from eagleray.pipelines.assessing.dicom_seg import SourceSeries, dicom_seg, source_series
from eagleray.pipelines.media.volumes import Volume, read_series
from eagleray.pipelines.quarantine import Refused

from .. import volume_files

MADE = datetime(2026, 3, 4, 5, 6, 7)
LABELS = ("nodule", "infiltrate")


def marks(shape: tuple[int, int, int] = (6, 7, 9)) -> np.ndarray:
    marked = np.zeros((2, *shape), bool)
    marked[0, 1:3] = np.random.default_rng(0).random((2, *shape[1:])) < 0.4
    marked[1, 2, 3, 4], marked[1, 5, 0, 8] = True, True
    return marked


def scan(shape: tuple[int, int, int] = (6, 7, 9), direction: np.ndarray | None = None) -> Volume:
    direction = volume_files.oblique() if direction is None else direction
    spacing = np.array([2.5, 0.703125 / 3, 0.7])
    return Volume(np.zeros(shape, np.int16), spacing, np.array(volume_files.ORIGIN) / 7, direction)


def frames(found: pydicom.Dataset) -> list[tuple[int, pydicom.Dataset, np.ndarray]]:
    """Segment's number, functional groups and pixels of each frame."""
    pixels = found.pixel_array.reshape(-1, found.Rows, found.Columns)
    groups = found.PerFrameFunctionalGroupsSequence
    assert len(pixels) == len(groups) == found.NumberOfFrames
    return [
        (one.SegmentIdentificationSequence[0].ReferencedSegmentNumber, one, picture)
        for one, picture in zip(groups, pixels, strict=True)
    ]


def read_back(content: bytes) -> pydicom.Dataset:
    return pydicom.dcmread(io.BytesIO(content))


def series() -> list[tuple[str, bytes]]:
    """A series that is not in the order of its slices."""
    datasets = volume_files.slices(
        volume_files.ct((6, 7, 9)), patient="Änne", direction=volume_files.oblique()
    )
    for one in datasets:
        one.SpecificCharacterSet, one.FrameOfReferenceUID = "ISO_IR 192", "1.2.3.4"
    return [(f"{n}.dcm", volume_files.encoded(datasets[n])) for n in (3, 0, 5, 1, 4, 2)]


def test_frames_are_what_is_marked_and_no_others():
    marked = marks()
    found = read_back(dicom_seg(marked, LABELS, scan(), MADE))
    assert found.SOPClassUID == SegmentationStorage
    assert [one.SegmentLabel for one in found.SegmentSequence] == list(LABELS)
    expected = [(1, 1), (1, 2), (2, 2), (2, 5)]
    values = [tuple(one.FrameContentSequence[0].DimensionIndexValues) for _, one, _ in frames(found)]
    assert values == [(segment, depth + 1) for segment, depth in expected]
    for (number, _, pixels), (segment, depth) in zip(frames(found), expected, strict=True):
        assert number == segment
        np.testing.assert_array_equal(pixels, marked[segment - 1, depth])


@pytest.mark.parametrize(
    "direction", [None, np.eye(3)[::-1], np.array([[0.0, 0, -1], [0, 1, 0], [-1, 0, 0]])]
)
def test_a_voxel_is_at_the_same_point_of_the_patient(direction):
    volume = scan(direction=direction)
    found = read_back(dicom_seg(marks(), LABELS, volume, MADE))
    (shared,) = found.SharedFunctionalGroupsSequence
    down, across = shared.PixelMeasuresSequence[0].PixelSpacing
    cosines = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
    for _, one, pixels in frames(found):
        depth = one.FrameContentSequence[0].DimensionIndexValues[1] - 1
        corner = np.array(one.PlanePositionSequence[0].ImagePositionPatient, float)
        for row, column in np.argwhere(pixels):  # PS3.3 C.7.6.2.1.1
            point = corner + cosines[0] * across * column + cosines[1] * down * row
            place = np.array([depth, row, column]) * volume.spacing_mm
            np.testing.assert_allclose(point, volume.origin_mm + place @ volume.direction, atol=1e-6)


def test_an_object_belongs_to_the_study_and_names_the_slices_it_was_made_from():
    slices = series()
    volume, source = read_series(slices), source_series(slices)
    found = read_back(dicom_seg(marks(), LABELS, volume, MADE, source))
    first = read_back(slices[0][1])
    assert found.StudyInstanceUID == first.StudyInstanceUID
    assert found.SeriesInstanceUID != first.SeriesInstanceUID
    assert (found.PatientID, found.FrameOfReferenceUID) == ("Änne", "1.2.3.4")
    heads = {str(head.SOPInstanceUID): head for head in (read_back(content) for _, content in slices)}
    for _, one, _ in frames(found):
        (image,) = one.DerivationImageSequence[0].SourceImageSequence
        place = heads[image.ReferencedSOPInstanceUID].ImagePositionPatient
        np.testing.assert_allclose(one.PlanePositionSequence[0].ImagePositionPatient, place, atol=1e-6)
    (referenced,) = found.ReferencedSeriesSequence
    assert referenced.SeriesInstanceUID == first.SeriesInstanceUID
    named = {one.ReferencedSOPInstanceUID for one in referenced.ReferencedInstanceSequence}
    assert named == {source.instances[depth][1] for depth in (1, 2, 5)}


def test_without_a_source_it_stands_for_itself():
    found = read_back(dicom_seg(marks(), LABELS, scan(), MADE))
    assert found.StudyInstanceUID
    assert found.FrameOfReferenceUID
    assert "ReferencedSeriesSequence" not in found
    assert "DerivationImageSequence" not in found.PerFrameFunctionalGroupsSequence[0]


def test_where_nothing_is_marked_there_is_one_empty_frame():
    found = read_back(dicom_seg(np.zeros((2, 6, 7, 9), bool), LABELS, scan(), MADE))
    assert found.NumberOfFrames == 1
    assert not found.pixel_array.any()


def test_the_same_marks_are_the_same_object_and_others_another():
    one, again = (dicom_seg(marks(), LABELS, scan(), MADE) for _ in range(2))
    assert one == again
    other = read_back(dicom_seg(~marks(), LABELS, scan(), MADE))
    assert other.SOPInstanceUID != read_back(one).SOPInstanceUID


def test_an_object_says_that_it_is_no_medical_device():
    assert "Not a medical device" in read_back(dicom_seg(marks(), LABELS, scan(), MADE)).SeriesDescription


def test_a_series_whose_slices_lie_nowhere_is_refused():
    datasets = volume_files.slices(volume_files.ct())
    datasets[2].ImagePositionPatient = None
    with pytest.raises(Refused) as caught:
        source_series([("a", volume_files.encoded(one)) for one in datasets])
    assert caught.value.reason == "no-geometry"
    assert isinstance(source_series(series()), SourceSeries)
