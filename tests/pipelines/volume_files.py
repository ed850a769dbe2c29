"""Writing small volumes in the formats that scanners and archives use."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

SPACING = (2.5, 0.8, 0.7)
"""Depth, height, width."""
ORIGIN = (-120.5, -80.25, 33.0)


def oblique() -> NDArray[np.float64]:
    """Unit vectors of depth, height and width, turned about all three axes; right-handed."""
    a, b, c = 0.3, -0.2, 0.1
    turns = (
        [[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]],
        [[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]],
        [[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]],
    )
    return (np.array(turns[0]) @ turns[1] @ turns[2])[:, ::-1].T


def ct(shape: tuple[int, int, int] = (6, 8, 9), seed: int = 0) -> NDArray[np.int16]:
    """Values as a CT scanner gives them."""
    return np.random.default_rng(seed).integers(-1024, 1500, shape).astype(np.int16)


def slices(
    voxels: NDArray[np.int16],
    series: str | None = None,
    patient: str = "P1",
    direction: NDArray[np.float64] | None = None,
    spacing: tuple[float, float, float] = SPACING,
    origin: tuple[float, float, float] = ORIGIN,
) -> list[FileDataset]:
    """A series of CT slices of one study."""
    direction = np.eye(3)[::-1] if direction is None else direction
    series, study = series or generate_uid(), generate_uid()
    found: list[FileDataset] = []
    for number, values in enumerate(voxels):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        one = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        one.SOPClassUID, one.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        one.PatientID, one.Modality, one.BodyPartExamined = patient, "CT", "CHEST"
        one.StudyInstanceUID, one.SeriesInstanceUID = study, series
        one.InstanceNumber = len(voxels) - number  # numbered from the other end
        one.Rows, one.Columns = values.shape
        one.PixelSpacing = [spacing[1], spacing[2]]
        one.SliceThickness = spacing[0]
        one.ImageOrientationPatient = [*direction[2], *direction[1]]
        one.ImagePositionPatient = (np.array(origin) + direction[0] * spacing[0] * number).tolist()
        one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
        one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 16, 15, 0
        one.RescaleSlope, one.RescaleIntercept = 1, -1024
        one.PixelData = (values.astype(np.int32) + 1024).astype("<u2").tobytes()
        found.append(one)
    return found


def encoded(dataset: FileDataset) -> bytes:
    """As a file."""
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def write_series(folder: Path, datasets: list[FileDataset], shuffled: int | None = 0) -> list[Path]:
    """Write slices under names whose order says nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    order = np.random.default_rng(shuffled).permutation(len(datasets))
    paths: list[Path] = []
    for name, number in enumerate(order.tolist()):
        paths.append(folder / f"{name:03d}.dcm")
        paths[-1].write_bytes(encoded(datasets[number]))
    return paths


def write_itk(path: Path, voxels: NDArray[Any], compressed: bool = False) -> None:
    """Write a volume by ITK, in the format that the name asks for."""
    import SimpleITK

    image = SimpleITK.GetImageFromArray(voxels)
    image.SetSpacing(SPACING[::-1])
    image.SetOrigin(ORIGIN)
    image.SetDirection(oblique()[::-1].T.ravel().tolist())
    path.parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(image, str(path), useCompression=compressed)
