"""One door to local folders and object storage: pyarrow's filesystems, and fsspec's for what it lacks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

OURS = ("s3", "gs", "gcs", "file", "hdfs", "viewfs", "abfs", "abfss")
"""Schemes that pyarrow opens itself; any other is asked of fsspec (`hf://`, `http://`, …)."""
GCS_PATIENCE_S = 30


def absolute(place: str) -> str:
    """A URI as it is, a path made absolute: workers run elsewhere than the command that was typed."""
    return place if "://" in place else str(Path(place).expanduser().absolute())


def shown(place: str) -> str:
    """A URI without its keys, for people."""
    scheme, separator, rest = place.rpartition("://")
    return scheme + separator + rest.partition("?")[0].rpartition("@")[2] if separator else place


def write_private(path: Path, content: bytes) -> None:
    """Write a file anew, for its owner alone from the first byte on."""
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)


def _patient(place: str) -> str:
    """A URI of GCS whose client gives up after a while; by itself it tries for a quarter of an hour."""
    if "retry_limit_seconds=" in place:
        return place
    return f"{place}{'&' if '?' in place else '?'}retry_limit_seconds={GCS_PATIENCE_S}"


def open_filesystem(place: str) -> tuple[FileSystem, str]:
    """The filesystem of a folder or URI, and the path in it without a final slash.

    Raises:
        ValueError: when it can't be understood; the message may hold keys.
        OSError: when the filesystem refuses it.
    """
    from pyarrow.fs import FileSystem, FSSpecHandler, LocalFileSystem, PyFileSystem

    if "://" not in place:
        return LocalFileSystem(), place.rstrip("/") or "/"
    scheme = place.partition("://")[0]
    if not scheme:
        raise ValueError("it has no scheme")
    if scheme in OURS:
        filesystem, root = FileSystem.from_uri(_patient(place) if scheme in ("gs", "gcs") else place)
    else:
        from fsspec.core import url_to_fs

        try:
            found, root = url_to_fs(place)
        except ImportError as error:
            raise ValueError(f"{scheme}:// needs a package: {error}") from error
        filesystem = PyFileSystem(FSSpecHandler(found))
    if not root:
        raise ValueError("it names no bucket")
    return filesystem, root.rstrip("/")
