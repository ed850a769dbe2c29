"""Volumes: NIfTI, NRRD, MetaImage and series of DICOM slices, from bytes to voxels in patient space.

Axes are (depth, height, width), the last one the fastest. Patient space is LPS: x grows to the patient's
left, y to the back, z to the head; millimetres throughout.
"""

from __future__ import annotations

import bz2
import io
import math
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..quarantine import Refused
from ..source import Row
from ..spec import MAX_VOXELS

Voxels = NDArray[Any]
Reals = NDArray[np.float64]
Beside = Callable[[str], bytes]
"""Reads the file that a header names."""

HEADER_BYTES = 1 << 16
"""A header of NRRD or MetaImage is text, and no longer than that."""
SPACING_MM = (1e-3, 1e3)
"""What a voxel's side may be."""
ROUNDING = 1e-6
TOLERANCE = 0.01
"""How far slices may be from even, and axes from square, as a share."""

_META_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
_NRRD_TYPES = (
    ("i1", "signed char|int8|int8_t"),
    ("u1", "uchar|unsigned char|uint8|uint8_t"),
    ("i2", "short|short int|signed short|signed short int|int16|int16_t"),
    ("u2", "ushort|unsigned short|unsigned short int|uint16|uint16_t"),
    ("i4", "int|signed int|int32|int32_t"),
    ("u4", "uint|unsigned int|uint32|uint32_t"),
    (
        "i8",
        "longlong|long long|long long int|signed long long|signed long long int|int64|int64_t",
    ),
    ("u8", "ulonglong|unsigned long long|unsigned long long int|uint64|uint64_t"),
    ("f4", "float"),
    ("f8", "double"),
)
_TO_LPS = {
    "left-posterior-superior": (1, 1, 1),
    "lps": (1, 1, 1),
    "right-anterior-superior": (-1, -1, 1),
    "ras": (-1, -1, 1),
    "left-anterior-superior": (1, -1, 1),
    "las": (1, -1, 1),
}


@dataclass(frozen=True)
class Volume:
    """Voxels in patient space.

    Attributes:
        voxels: (D, H, W).
        spacing_mm: (3,) distances of neighbours along depth, height, width.
        origin_mm: (3,) x, y, z of the centre of the first voxel.
        direction: (3, 3) unit vectors in patient space, a row for each axis.
    """

    voxels: Voxels
    spacing_mm: Reals
    origin_mm: Reals
    direction: Reals

    def row(self, address: str) -> Row:
        """As `contracts.COLUMNS` has it."""
        little = self.voxels.dtype.newbyteorder("<")
        return {
            "address": address,
            "shape": list(self.voxels.shape),
            "spacing_mm": self.spacing_mm.tolist(),
            "origin_mm": self.origin_mm.tolist(),
            "direction": self.direction.ravel().tolist(),
            "dtype": self.voxels.dtype.name,
            "voxels": np.ascontiguousarray(self.voxels, little).tobytes(),
        }

    def holds(self, point_mm: Sequence[float]) -> bool:
        """Whether a point of patient space lies in it, half a voxel around the outermost centres included."""
        place = self.direction @ (np.asarray(point_mm) - self.origin_mm) / self.spacing_mm
        inside = (place > -0.5 - ROUNDING) & (place < np.array(self.voxels.shape) - 0.5 + ROUNDING)
        return bool(inside.all())


def of_row(row: Mapping[str, Any]) -> Volume:
    """A volume as `contracts.COLUMNS` has it, its voxels read only."""
    dtype = np.dtype(row["dtype"]).newbyteorder("<")
    return Volume(
        np.frombuffer(row["voxels"], dtype).reshape(row["shape"]),
        np.array(row["spacing_mm"]),
        np.array(row["origin_mm"]),
        np.array(row["direction"]).reshape(3, 3),
    )


def read_nifti(data: bytes, max_voxels: int = MAX_VOXELS) -> Volume:
    """Decode NIfTI-1 or -2, compressed or not (nifti.nimh.nih.gov); its space is RAS.

    Raises:
        Refused: when it is something else, broken, or too large.
    """
    import nibabel
    from nibabel.spatialimages import HeaderDataError
    from nibabel.wrapstruct import WrapStructError

    packed = data[:2] == b"\x1f\x8b"
    head = _inflate(data, 1024) if packed else data[:1024]
    magic = head[344:348], head[4:8]
    if magic[0] not in (b"n+1\0", b"ni1\0") and magic[1] != b"n+2\0":
        raise Refused("not-a-volume", f"the content is no NIfTI file: it starts with {data[:8]!r}")
    kind = nibabel.Nifti2Image if magic[1] == b"n+2\0" else nibabel.Nifti1Image
    try:
        header = kind.header_class.from_fileobj(io.BytesIO(head), check=False)
        shape = _three([int(size) for size in header.get_data_shape()])
        _check_size(shape, max_voxels)
        _check_spacing([float(one) for one in header["pixdim"][1:4]])
        size = int(header["vox_offset"]) + math.prod(shape) * int(header["bitpix"]) // 8
        content = _inflate(data, size) if packed else data
        if len(content) < size:
            raise Refused("truncated-volume", f"the volume has {len(content):,} of {size:,} bytes")
        image = kind.from_bytes(content)
        affine = np.asarray(image.affine, np.float64)
        held: Any = image.dataobj
        scaled = held.slope != 1 or held.inter != 0
        stored = np.asarray(held if scaled else held.get_unscaled())
    except Refused:
        raise
    except (HeaderDataError, WrapStructError, ValueError, OSError, KeyError, OverflowError) as error:
        raise Refused("corrupt-volume", f"the NIfTI file can't be read: {error}") from error
    voxels = stored.reshape(shape).T
    axes = np.diag([-1.0, -1.0, 1.0]) @ affine[:3]
    return _volume(voxels.astype(np.float32) if scaled else voxels, axes[:, 2::-1].T, axes[:, 3])


def read_nrrd(data: bytes, beside: Beside, max_voxels: int = MAX_VOXELS) -> Volume:
    """Decode NRRD (teem.sourceforge.net/nrrd), its voxels in the file or in one beside it.

    Args:
        data: the file.
        beside: reads the file that the header names.
        max_voxels: the most that are decoded.

    Raises:
        Refused: when it is something else, broken, or too large.
    """
    import nrrd

    if not data.startswith(b"NRRD"):
        raise Refused("not-a-volume", f"the content is no NRRD file: it starts with {data[:8]!r}")
    stream = io.BytesIO(data)
    try:
        header: dict[str, Any] = dict(nrrd.read_header(stream))
        shape = _three([int(size) for size in header["sizes"]])
        kind = next(code for code, names in _NRRD_TYPES if header["type"] in names.split("|"))
    except Refused:
        raise
    except (nrrd.NRRDError, ValueError, KeyError, StopIteration, IndexError) as error:
        raise Refused("corrupt-volume", f"the NRRD header can't be read: {error!r}") from error
    named = header.get("data file", header.get("datafile"))
    _check_size(shape, max_voxels)
    order = ">" if header.get("endian") == "big" else "<"
    content = stream.read() if named is None else beside(str(named))
    size = math.prod(shape) * int(kind[1])
    encoding = header.get("encoding", "raw")
    if encoding in ("gzip", "gz", "bzip2", "bz2"):
        content = _inflate(content, size) if encoding.startswith("g") else _unzip2(content, size)
    elif encoding != "raw":
        raise Refused("unsupported-encoding", f"the NRRD file is in the encoding {encoding}")
    skip = int(header.get("byteskip", header.get("byte skip", 0)))
    content = content[len(content) - size :] if skip == -1 else content[skip:]
    voxels = _voxels(content, order + kind, shape)
    if "space directions" in header:
        turn = np.array(_TO_LPS.get(str(header.get("space", "lps")).lower(), (1, 1, 1)), np.float64)
        axes = np.asarray(header["space directions"], np.float64) * turn
        origin = np.asarray(header.get("space origin", np.zeros(3)), np.float64) * turn
    else:
        spacings = [float(one) for one in header.get("spacings", (1, 1, 1))]
        axes, origin = np.diag(spacings), np.zeros(3)
    return _volume(voxels, axes[::-1], origin)


def read_metaimage(data: bytes, beside: Beside, max_voxels: int = MAX_VOXELS) -> Volume:
    """Decode MetaImage (.mha, .mhd; itk.org/Wiki/MetaIO), its voxels in the file or in one beside it.

    Args:
        data: the file.
        beside: reads the file that the header names.
        max_voxels: the most that are decoded.

    Raises:
        Refused: when it is something else, broken, or too large.
    """
    header, start = _meta_header(data)
    try:
        shape = _three([int(size) for size in header["DimSize"].split()])
        kind = _META_TYPES[header["ElementType"]]
        file = header["ElementDataFile"]
        spacing = _numbers(header, ("ElementSpacing", "ElementSize"), [1.0] * 3)
        origin = _numbers(header, ("Offset", "Origin", "Position"), [0.0] * 3)
        turn = _numbers(header, ("TransformMatrix", "Rotation", "Orientation"), np.eye(3).ravel().tolist())
        axes = np.array(turn).reshape(3, 3) * np.array(spacing)[:, None]
        skip = int(header.get("HeaderSize", "0"))
    except Refused:
        raise
    except (KeyError, ValueError) as error:
        raise Refused("corrupt-volume", f"the MetaImage header lacks or garbles {error}") from error
    if int(header.get("ElementNumberOfChannels", "1")) != 1:
        raise Refused("not-three-dimensional", "the volume has several values a voxel")
    _check_size(shape, max_voxels)
    _check_spacing(spacing)
    content = data[start:] if file.upper() == "LOCAL" else beside(file)
    size = math.prod(shape) * int(kind[1])
    if header.get("CompressedData", "False").lower() == "true":
        content = _inflate(content, size)
    else:
        content = content[len(content) - size if skip == -1 else skip :]
    msb = header.get("BinaryDataByteOrderMSB", header.get("ElementByteOrderMSB", "False")).lower()
    return _volume(
        _voxels(content, (">" if msb == "true" else "<") + kind, shape), axes[::-1], np.array(origin)
    )


def file_beside(data: bytes) -> str | None:
    """Name of the file with the voxels, if the head of a NRRD or MetaImage file names another."""
    if data.startswith(b"NRRD"):
        found = re.search(
            rb"^data ?file:\s*(.+?)\s*$", data.partition(b"\n\n")[0], re.MULTILINE | re.IGNORECASE
        )
    else:
        found = re.search(rb"^ElementDataFile\s*=\s*(.+?)\s*$", data, re.MULTILINE)
    name = found[1].decode("utf-8", "replace") if found else ""
    return name if name and name.upper() != "LOCAL" else None


def read_series(slices: Sequence[tuple[str, bytes]], max_voxels: int = MAX_VOXELS) -> Volume:
    """Decode a series of DICOM slices (PS3.3 C.7.6.2), in the order of their places along the normal.

    Args:
        slices: address and content of each, in any order.
        max_voxels: the most that are decoded.

    Raises:
        Refused: when a slice is broken, or they don't form a volume.
    """
    frames = [_dicom(address, content) for address, content in slices]
    first = frames[0]
    height, width = int(first.Rows), int(first.Columns)
    _check_size((len(frames), height, width), max_voxels)
    across, down = np.array(first.ImageOrientationPatient, np.float64).reshape(2, 3)
    spacing = [float(one) for one in first.PixelSpacing]
    _check_spacing(spacing)
    for frame, (address, _) in zip(frames, slices, strict=True):
        same = (int(frame.Rows), int(frame.Columns)) == (height, width)
        turned = np.abs(np.array(frame.ImageOrientationPatient, np.float64) - [*across, *down]).max()
        scaled = np.abs(np.array(frame.PixelSpacing, np.float64) - spacing).max()
        if not same or turned > TOLERANCE or scaled > TOLERANCE * max(spacing):
            raise Refused("mixed-geometry", f"{address} has another size, spacing or orientation than others")
    normal = np.cross(across, down)
    places = np.array([frame.ImagePositionPatient for frame in frames], np.float64)
    order = np.argsort(places @ normal, kind="stable")
    frames, places = [frames[i] for i in order], places[order]
    gaps = np.diff(places @ normal)
    if len(frames) > 1:
        depth = float(np.median(gaps))
        if gaps.min() < TOLERANCE * min(spacing):
            again = slices[order[int(gaps.argmin()) + 1]][0]
            raise Refused("duplicate-slice", f"{again} lies where another slice lies")
        if np.abs(gaps - depth).max() > TOLERANCE * depth:
            wide = int(np.abs(gaps - depth).argmax())
            raise Refused(
                "uneven-slices",
                f"slices are {depth:.3g} mm apart, but {gaps[wide]:.3g} before {slices[order[wide + 1]][0]}",
            )
        axis = (places[-1] - places[0]) / (len(frames) - 1)
    else:
        axis = normal * float(first.get("SpacingBetweenSlices", first.get("SliceThickness")) or 1)
    voxels = np.stack([_pixels(frame) for frame in frames])
    return _volume(voxels, np.array([axis, down * spacing[0], across * spacing[1]]), places[0])


def parse_dicom(content: bytes, **options: Any) -> Any:  # noqa: ANN401 - datasets have any attribute
    """A pydicom dataset, without a word about what is odd in it; raises anything on hostile bytes.

    Args:
        content: of a file, or its beginning.
        options: of `pydicom.dcmread`.
    """
    import warnings

    import pydicom

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pydicom.dcmread(io.BytesIO(content), **options)


def _dicom(address: str, content: bytes) -> Any:  # noqa: ANN401 - pydicom's datasets have any attribute
    from pydicom.errors import InvalidDicomError

    try:
        found = parse_dicom(content)
        needed = ("Rows", "Columns", "PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient")
        missing = [name for name in needed if found.get(name) in (None, "")]
        numbers = [*(found.get("ImageOrientationPatient") or ()), *(found.get("ImagePositionPatient") or ())]
        several = int(found.get("SamplesPerPixel", 1)) != 1 or int(found.get("NumberOfFrames", 1) or 1) != 1
    except InvalidDicomError as error:
        raise Refused("not-a-volume", f"{address} is no DICOM file") from error
    except Exception as error:  # pydicom raises anything on hostile bytes
        raise Refused("corrupt-volume", f"{address} can't be read: {error}") from error
    if missing:
        raise Refused("no-geometry", f"{address} has no {' and no '.join(missing)}")
    if len(numbers) != 9 or not all(math.isfinite(float(one)) for one in numbers):
        raise Refused("no-geometry", f"{address} has a place or an orientation that is no number")
    if "PixelData" not in found:
        raise Refused("no-pixels", f"{address} has no pixels")
    if several:
        raise Refused("not-three-dimensional", f"{address} has several values a pixel, or several frames")
    return found


def _pixels(frame: Any) -> Voxels:  # noqa: ANN401 - a pydicom dataset
    """Modality values (H, W) of a slice: int16 or int32 where they are whole numbers."""
    try:
        stored = np.asarray(frame.pixel_array)
    except (NotImplementedError, RuntimeError) as error:
        name = frame.file_meta.TransferSyntaxUID.name
        raise Refused("unsupported-encoding", f"no decoder is installed for {name}") from error
    except Exception as error:  # pydicom raises anything on hostile bytes
        short = "bytes" in str(error) and "expected" in str(error)
        reason = "truncated-volume" if short else "corrupt-volume"
        raise Refused(reason, f"the slice's pixels can't be decoded: {error}") from error
    slope, intercept = float(frame.get("RescaleSlope", 1)), float(frame.get("RescaleIntercept", 0))
    if not (slope.is_integer() and intercept.is_integer()):
        return (stored * np.float64(slope) + intercept).astype(np.float32)
    values = stored.astype(np.int64) * int(slope) + int(intercept)
    fits = values.size == 0 or (values.min() >= -(1 << 15) and values.max() < 1 << 15)
    return values.astype(np.int16 if fits else np.int32)


def _volume(voxels: Voxels, axes: Reals, origin: Reals) -> Volume:
    """A volume whose axes (3, 3), a row each, lead from a voxel to its neighbours, once all is sound."""
    spacing = np.linalg.norm(axes, axis=1)
    _check_spacing(spacing.tolist())
    direction = axes / spacing[:, None]
    if np.abs(direction @ direction.T - np.eye(3)).max() > TOLERANCE:
        raise Refused("sheared-axes", "the volume's axes are not at right angles (a tilted gantry?)")
    if not np.isfinite(origin).all():
        raise Refused("no-geometry", "the volume's place is no number")
    if voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
        raise Refused("nan-voxels", "the volume has voxels that are no number")
    return Volume(voxels, spacing, np.asarray(origin, np.float64), direction)


def _three(shape: list[int]) -> tuple[int, int, int]:
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3 or min(shape) < 1:
        raise Refused("not-three-dimensional", f"the volume's shape is {shape}")
    return shape[0], shape[1], shape[2]


def _check_size(shape: Sequence[int], max_voxels: int) -> None:
    if math.prod(shape) > max_voxels:
        size = "x".join(str(one) for one in shape)
        raise Refused("volume-too-large", f"{size} voxels are over {max_voxels:,}")


def _check_spacing(spacing: Sequence[float]) -> None:
    if not all(SPACING_MM[0] <= one <= SPACING_MM[1] for one in spacing):  # NaN is in no range
        raise Refused("wrong-spacing", f"voxels can't be {' x '.join(f'{one:g}' for one in spacing)} mm")


def _voxels(content: bytes, kind: str, shape: tuple[int, int, int]) -> Voxels:
    """(D, H, W) from bytes in which the first of `shape` is the fastest."""
    size = math.prod(shape) * int(kind[2])
    if len(content) < size:
        raise Refused("truncated-volume", f"the volume has {len(content):,} of {size:,} bytes")
    return np.frombuffer(content[:size], kind).reshape(shape[::-1])


def _inflate(content: bytes, limit: int) -> bytes:
    """Up to `limit` bytes of what was compressed by zlib or gzip."""
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(content, limit)
    except zlib.error as error:
        raise Refused("corrupt-volume", f"the voxels can't be decompressed: {error}") from error


def _unzip2(content: bytes, limit: int) -> bytes:
    try:
        return bz2.BZ2Decompressor().decompress(content, limit)
    except (OSError, ValueError) as error:
        raise Refused("corrupt-volume", f"the voxels can't be decompressed: {error}") from error


def _meta_header(data: bytes) -> tuple[dict[str, str], int]:
    """Keys of a MetaImage header, and where what follows it begins."""
    header: dict[str, str] = {}
    place = 0
    while place < min(len(data), HEADER_BYTES):
        end = data.find(b"\n", place)
        end = len(data) if end < 0 else end
        key, found, value = data[place:end].decode("latin-1").partition("=")
        if not found:
            break
        header[key.strip()] = value.strip()
        place = end + 1
        if key.strip() == "ElementDataFile":
            return header, place
    raise Refused("not-a-volume", f"the content is no MetaImage file: it starts with {data[:8]!r}")


def _numbers(header: Mapping[str, str], names: Sequence[str], default: list[float]) -> list[float]:
    for name in names:
        if name in header:
            found = [float(one) for one in header[name].split()]
            if len(found) != len(default):
                raise ValueError(name)
            return found
    return default
