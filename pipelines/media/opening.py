"""A volume from one file, whatever its format: NIfTI, NRRD, MetaImage, or a zip of a series' DICOM slices."""

from __future__ import annotations

import io
import zipfile

from ..quarantine import Refused
from .volumes import Volume, read_metaimage, read_nifti, read_nrrd, read_series

MAX_SLICES = 4096
MAX_BYTES = 1 << 30
"""Of a zip's files, unpacked."""


def open_volume(data: bytes) -> Volume:
    """The volume in a file, by its content.

    Raises:
        Refused: when it is none of these formats, or a broken one.
    """
    if data.startswith(b"PK\x03\x04"):
        return read_series(_unzipped(data))
    if data.startswith(b"NRRD"):
        return read_nrrd(data, _nothing_beside)
    if data[128:132] == b"DICM":
        return read_series([("slice", data)])
    if data.lstrip().startswith((b"ObjectType", b"NDims")):
        return read_metaimage(data, _nothing_beside)
    return read_nifti(data)


def _unzipped(data: bytes) -> list[tuple[str, bytes]]:
    """The files of a zip; folders, and what an archive program adds, are no slices."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            wanted = [
                one for one in archive.infolist() if not one.is_dir() and "__MACOSX" not in one.filename
            ]
            if len(wanted) > MAX_SLICES or sum(one.file_size for one in wanted) > MAX_BYTES:
                raise Refused(
                    "volume-too-large", f"the zip has {len(wanted)} files, or is over 1 GiB unpacked"
                )
            return [(one.filename, archive.read(one)) for one in wanted]
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError) as error:
        raise Refused("corrupt-zip", f"the zip can't be read: {error}") from error


def _nothing_beside(name: str) -> bytes:
    raise Refused("missing-file", f"the header names {name}, and one file was sent: send it with its voxels")
