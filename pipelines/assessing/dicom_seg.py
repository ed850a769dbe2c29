"""What is marked in a scan, as a DICOM Segmentation object (PS3.3 A.51, C.8.20) that viewers lay over it.

Shape letters: K segments, D slices, H height, W width.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..media.volumes import Volume, parse_dicom
from ..quarantine import Refused
from .spec import NOTICE

Mask: TypeAlias = NDArray[np.bool_]
Code: TypeAlias = tuple[str, str, str]
"""Value, scheme and meaning."""
MAKER = "Eagleray"
DESCRIPTION_LENGTH = 64
"""Characters that a short text may have."""
PATIENT_AND_STUDY = {
    "PatientName": "",
    "PatientID": "",
    "PatientBirthDate": "",
    "PatientSex": "",
    "StudyInstanceUID": "",
    "StudyDate": "",
    "StudyTime": "",
    "StudyID": "",
    "AccessionNumber": "",
    "ReferringPhysicianName": "",
}
"""What an object shares with others of its study, and what stands there where that isn't known."""

ABNORMAL: Code = ("49755003", "SCT", "Morphologically Abnormal Structure")
NODULE: Code = ("27925004", "SCT", "Nodule")
LESION: Code = ("52988006", "SCT", "Lesion")
SEGMENTATION: Code = ("113076", "DCM", "Segmentation")
SOURCE_IMAGE: Code = ("121322", "DCM", "Source image for image processing operation")


@dataclass(frozen=True)
class SourceSeries:
    """The series of slices that a scan was read from.

    Attributes:
        shared: value of each of `PATIENT_AND_STUDY`.
        series_uid: of the series.
        frame_of_reference_uid: of its patient space.
        instances: SOP class and SOP instance of each slice, in the scan's order.
    """

    shared: dict[str, str]
    series_uid: str
    frame_of_reference_uid: str
    instances: Sequence[tuple[str, str]]


def source_series(slices: Sequence[tuple[str, bytes]]) -> SourceSeries:
    """What an object needs to know of the slices that `media.volumes.read_series` reads.

    Args:
        slices: address and content of each, in any order.

    Raises:
        Refused: when one of them isn't told from others, or from where it lies.
    """
    heads = [parse_dicom(content, stop_before_pixels=True) for _, content in slices]
    needed = ("ImageOrientationPatient", "ImagePositionPatient", "SOPInstanceUID", "SeriesInstanceUID")
    for head, (address, _) in zip(heads, slices, strict=True):
        missing = [name for name in needed if head.get(name) in (None, "")]
        if missing:
            raise Refused("no-geometry", f"{address} has no {' and no '.join(missing)}")
    across, down = np.array(heads[0].ImageOrientationPatient, np.float64).reshape(2, 3)
    places = np.array([head.ImagePositionPatient for head in heads], np.float64) @ np.cross(across, down)
    order = np.argsort(places, kind="stable").tolist()
    first = heads[0]
    return SourceSeries(
        {name: str(first.get(name) or instead) for name, instead in PATIENT_AND_STUDY.items()},
        str(first.SeriesInstanceUID),
        str(first.get("FrameOfReferenceUID") or ""),
        [(str(heads[number].SOPClassUID), str(heads[number].SOPInstanceUID)) for number in order],
    )


def dicom_seg(
    marked: Mask,
    labels: Sequence[str],
    scan: Volume,
    made: datetime,
    source: SourceSeries | None = None,
) -> bytes:
    """A DICOM file: a segment for each label, with a frame for each slice in which something is marked.

    A file has at least one frame, so where nothing is marked it is an empty one. The same marks of the same
    series have the same identity.

    Args:
        marked: (K, D, H, W).
        labels: of each of the K.
        scan: in whose voxels that is.
        made: when.
        source: what the scan was read from; without it the object stands for itself, in its own study.
    """
    import pydicom
    from pydicom.pixels import pack_bits

    shown = np.argwhere(marked.any(axis=(2, 3))).tolist() or [[0, 0]]
    frames = [(segment, depth) for segment, depth in shown]
    uids = _Uids(marked, source)
    found = _head(uids, made, source)
    _describe(found, labels, scan, frames)
    found.PerFrameFunctionalGroupsSequence = [_frame(*one, scan, source) for one in frames]
    found.SharedFunctionalGroupsSequence = [_common(scan)]
    if source is not None:
        used = sorted({depth for _, depth in frames})
        found.ReferencedSeriesSequence = [
            _item(
                SeriesInstanceUID=source.series_uid,
                ReferencedInstanceSequence=[_instance(source, depth) for depth in used],
            )
        ]
    found.PixelData = pack_bits(np.stack([marked[one] for one in frames]).astype(np.uint8))
    found["PixelData"].VR = "OB"
    content = io.BytesIO()
    pydicom.dcmwrite(content, found, enforce_file_format=True)
    return content.getvalue()


class _Uids:
    """Identities that follow from what is marked and where."""

    def __init__(self, marked: Mask, source: SourceSeries | None) -> None:
        digest = sha256(np.packbits(marked).tobytes() + repr((marked.shape, source)).encode())
        self._entropy = digest.hexdigest()

    def of(self, what: str) -> str:
        from pydicom.uid import generate_uid

        return generate_uid(entropy_srcs=[self._entropy, what])


def _head(uids: _Uids, made: datetime, source: SourceSeries | None) -> Any:  # noqa: ANN401 - a pydicom dataset
    """Who, when and what."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SegmentationStorage

    meta: Any = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = SegmentationStorage, uids.of("instance")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    found: Any = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    for name, value in (PATIENT_AND_STUDY if source is None else source.shared).items():
        setattr(found, name, value)
    found.StudyInstanceUID = found.StudyInstanceUID or uids.of("study")
    found.SOPClassUID, found.SOPInstanceUID = SegmentationStorage, meta.MediaStorageSOPInstanceUID
    found.SpecificCharacterSet = "ISO_IR 192"
    found.Modality, found.SeriesInstanceUID, found.SeriesNumber = "SEG", uids.of("series"), 1
    found.SeriesDescription = NOTICE.partition(":")[0]
    found.FrameOfReferenceUID = (source and source.frame_of_reference_uid) or uids.of("frame of reference")
    found.PositionReferenceIndicator = ""
    found.Manufacturer, found.ManufacturerModelName = MAKER, MAKER
    found.DeviceSerialNumber, found.SoftwareVersions = "0", "0"
    found.SeriesDate = found.ContentDate = made.strftime("%Y%m%d")
    found.SeriesTime = found.ContentTime = made.strftime("%H%M%S")
    found.InstanceNumber, found.ContentLabel, found.ContentCreatorName = 1, "FINDINGS", ""
    found.ContentDescription = found.SeriesDescription
    return found


def _describe(found: Any, labels: Sequence[str], scan: Volume, frames: Sequence[tuple[int, int]]) -> None:  # noqa: ANN401
    """Segments, dimensions and the form of pixels."""
    from pydicom.uid import generate_uid

    found.ImageType, found.SegmentationType = ["DERIVED", "PRIMARY"], "BINARY"
    found.NumberOfFrames = len(frames)
    _, found.Rows, found.Columns = scan.voxels.shape
    found.SamplesPerPixel, found.PhotometricInterpretation = 1, "MONOCHROME2"
    found.BitsAllocated, found.BitsStored, found.HighBit, found.PixelRepresentation = 1, 1, 0, 0
    found.LossyImageCompression, found.BurnedInAnnotation = "00", "NO"
    found.SegmentSequence = [
        _item(
            SegmentNumber=number,
            SegmentLabel=label[:DESCRIPTION_LENGTH],
            SegmentAlgorithmType="AUTOMATIC",
            SegmentAlgorithmName=MAKER,
            SegmentedPropertyCategoryCodeSequence=[_code(ABNORMAL)],
            SegmentedPropertyTypeCodeSequence=[_code(NODULE if label == "nodule" else LESION)],
        )
        for number, label in enumerate(labels, 1)
    ]
    organization = generate_uid(entropy_srcs=[found.SOPInstanceUID, "dimensions"])
    found.DimensionOrganizationSequence = [_item(DimensionOrganizationUID=organization)]
    pointers = ((0x0062000B, 0x0062000A), (0x00200032, 0x00209113))  # segment's number, then slice's place
    found.DimensionIndexSequence = [
        _item(DimensionOrganizationUID=organization, DimensionIndexPointer=tag, FunctionalGroupPointer=group)
        for tag, group in pointers
    ]


def _common(scan: Volume) -> Any:  # noqa: ANN401 - a pydicom dataset
    """What all frames share: distances and directions."""
    depth, height, width = scan.spacing_mm.tolist()
    measures = _item(
        PixelSpacing=_decimals([height, width]),
        SliceThickness=_decimals([depth])[0],
        SpacingBetweenSlices=_decimals([depth])[0],
    )
    directions = _decimals([*scan.direction[2].tolist(), *scan.direction[1].tolist()])
    return _item(
        PixelMeasuresSequence=[measures],
        PlaneOrientationSequence=[_item(ImageOrientationPatient=directions)],
    )


def _frame(segment: int, depth: int, scan: Volume, source: SourceSeries | None) -> Any:  # noqa: ANN401
    """A frame's segment, its place, and what it was derived from."""
    place = scan.origin_mm + depth * scan.spacing_mm[0] * scan.direction[0]
    found = _item(
        FrameContentSequence=[_item(DimensionIndexValues=[segment + 1, depth + 1])],
        PlanePositionSequence=[_item(ImagePositionPatient=_decimals(place.tolist()))],
        SegmentIdentificationSequence=[_item(ReferencedSegmentNumber=segment + 1)],
    )
    if source is not None:
        image = _instance(source, depth)
        image.PurposeOfReferenceCodeSequence = [_code(SOURCE_IMAGE)]
        found.DerivationImageSequence = [
            _item(SourceImageSequence=[image], DerivationCodeSequence=[_code(SEGMENTATION)])
        ]
    return found


def _instance(source: SourceSeries, depth: int) -> Any:  # noqa: ANN401 - a pydicom dataset
    sop_class, instance = source.instances[depth]
    return _item(ReferencedSOPClassUID=sop_class, ReferencedSOPInstanceUID=instance)


def _code(code: Code) -> Any:  # noqa: ANN401 - a pydicom dataset
    value, scheme, meaning = code
    return _item(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)


def _item(**fields: Any) -> Any:  # noqa: ANN401 - a pydicom dataset has any attribute
    from pydicom.dataset import Dataset

    found = Dataset()
    for name, value in fields.items():
        setattr(found, name, value)
    return found


def _decimals(values: Sequence[float]) -> list[Any]:
    """In the 16 characters that a number may have."""
    from pydicom.valuerep import DSfloat

    return [DSfloat(value, auto_format=True) for value in values]
