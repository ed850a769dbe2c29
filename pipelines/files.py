"""The files below a folder, on disk or in object storage: what there is, and a digest of all of it."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..workflows.errors import EaglerayError
from ..workflows.filesystem import open_filesystem, shown

if TYPE_CHECKING:
    from pyarrow import NativeFile
    from pyarrow.fs import FileSystem

HASHERS = 8
SETTLED_S = 2.0
"""Age from which a file's time of change tells two contents apart."""
READS = 3
READ_PAUSE_S = 0.5
OUTSIDE = "a link out of the folder"
UNREADABLE = "a file that can't be read"


@dataclass(frozen=True, order=True)
class Entry:
    """A file.

    Attributes:
        path: relative to the folder, with `/`.
        size_bytes: its size.
        version: another one for another content: the sha256 on disk; size and time of change elsewhere.
            `OUTSIDE` for a link that leads out of the folder, which is never followed, and `UNREADABLE`.
    """

    path: str
    size_bytes: int
    version: str


class Files:
    """The files below a folder. Picklable.

    Args:
        place: folder or URI.
        cache: local folder that remembers digests of files on disk.
    """

    def __init__(self, place: str, cache: Path) -> None:
        self.place = place
        self._cache = cache

    @property
    def shown(self) -> str:
        """The folder without keys, for people."""
        return shown(self.place)

    @property
    def local(self) -> Path | None:
        """The folder, if it is on disk."""
        return None if "://" in self.place else Path(self.place)

    @cached_property
    def entries(self) -> Mapping[str, Entry]:
        """Every file by its path, sorted; for listing, since each process that asks lists the folder anew.

        Raises:
            EaglerayError: when there is no such folder, or it can't be listed.
        """
        if self.local is not None:
            if not self.local.is_dir():
                raise EaglerayError(f"there is no folder {self.local}", "name one that exists", "source.path")
            found = _Digests(self._cache).entries(self.local)
        else:
            found = self._remote_entries()
        return {entry.path: entry for entry in sorted(found)}

    def holds(self, path: str) -> bool:
        """Whether there is a file at a path, and no link out of the folder; for listing, as `entries` is."""
        return path in self.entries and self.entries[path].version != OUTSIDE

    def digest(self) -> str:
        """sha256, hex, over the sorted paths of all files, each followed by its version."""
        total = hashlib.sha256()
        for entry in self.entries.values():
            total.update(f"{entry.path}\0{entry.version}\n".encode("utf-8", "surrogateescape"))
        return total.hexdigest()

    def read(self, path: str, offset: int = 0, size_bytes: int | None = None) -> bytes:
        """A file's content, or a range of it.

        Raises:
            OSError: when it can't be read; object storage is asked several times.
        """
        if "://" not in self.place:
            with open(f"{self.place}/{path}", "rb", buffering=0) as file:
                if offset:
                    file.seek(offset)
                return file.read(-1 if size_bytes is None else size_bytes)
        for attempt in range(READS):
            try:
                with self.open(path) as file:
                    file.seek(offset)
                    return file.read(size_bytes)
            except FileNotFoundError:
                raise
            except OSError:
                if attempt == READS - 1:
                    raise
                time.sleep(READ_PAUSE_S * 2**attempt)
        raise AssertionError("unreachable")

    def open(self, path: str) -> NativeFile:
        """Open a file to read anywhere in it."""
        filesystem, root = self._filesystem
        return filesystem.open_input_file(f"{root}/{path}")

    @cached_property
    def _filesystem(self) -> tuple[FileSystem, str]:
        try:
            return open_filesystem(self.place)
        except Exception as error:  # what fsspec's filesystems raise depends on their libraries
            raise EaglerayError(
                f"the source can't be opened: {str(error).replace(self.place, self.shown)}",
                "give a folder, or a URI such as s3://BUCKET/PREFIX",
                self.shown,
            ) from None

    def _remote_entries(self) -> Iterator[Entry]:
        from pyarrow.fs import FileSelector, FileType

        filesystem, root = self._filesystem
        try:
            infos = filesystem.get_file_info(FileSelector(root, recursive=True))
        except Exception as error:  # what fsspec's filesystems raise depends on their libraries
            raise EaglerayError(
                f"the source can't be listed: {str(error).replace(self.place, self.shown)}",
                "check the address, the keys and the network",
                self.shown,
                retryable=not isinstance(error, FileNotFoundError),
            ) from None
        for info in infos:
            if info.type == FileType.File:
                path = info.path.removeprefix(root).lstrip("/")
                yield Entry(path, info.size, f"{info.size}-{info.mtime_ns or 0}")

    def __getstate__(self) -> dict[str, Any]:
        return {"place": self.place, "_cache": self._cache}


class MixedFiles(Files):
    """The files of all parts, each below its part's name.

    Args:
        parts: name → the part's files.
        cache: local folder that remembers digests.
    """

    def __init__(self, parts: Mapping[str, Files], cache: Path) -> None:
        super().__init__(", ".join(f"{name}: {files.shown}" for name, files in parts.items()), cache)
        self.parts = parts

    @property
    def shown(self) -> str:
        """All parts' folders, for people."""
        return self.place

    @property
    def local(self) -> Path | None:
        """There is no one folder."""
        return None

    @cached_property
    def entries(self) -> Mapping[str, Entry]:
        """Every file by its path below its part's name."""
        return {
            f"{name}/{path}": Entry(f"{name}/{path}", entry.size_bytes, entry.version)
            for name, files in sorted(self.parts.items())
            for path, entry in files.entries.items()
        }

    def read(self, path: str, offset: int = 0, size_bytes: int | None = None) -> bytes:
        """A file's content, or a range of it."""
        name, _, rest = path.partition("/")
        return self.parts[name].read(rest, offset, size_bytes)

    def open(self, path: str) -> NativeFile:
        """Open a file to read anywhere in it."""
        name, _, rest = path.partition("/")
        return self.parts[name].open(rest)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "parts": self.parts}


class _Digests:
    """Remembers the sha256 of files on disk by path, inode, size and time of change."""

    def __init__(self, cache: Path) -> None:
        self._path = cache / "digests.db"

    def entries(self, folder: Path) -> list[Entry]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(self._path, timeout=60)) as database:
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("CREATE TABLE IF NOT EXISTS digests (stamp TEXT PRIMARY KEY, sha256 TEXT)")
            with ThreadPoolExecutor(HASHERS) as pool:
                return list(self._entries(folder, database, pool))

    def _entries(self, folder: Path, database: sqlite3.Connection, pool: ThreadPoolExecutor) -> list[Entry]:
        entries: list[Entry] = []
        stamps: dict[str, str] = {}
        sizes: dict[str, int] = {}
        for path in _walk(folder):
            if not _inside(folder, folder / path):
                entries.append(Entry(path, 0, OUTSIDE))
                continue
            stat = os.stat(folder / path)
            stamps[path] = f"{folder / path}\0{stat.st_ino}\0{stat.st_size}\0{stat.st_mtime_ns}"
            sizes[path] = stat.st_size
        known = _lookup(database, stamps.values())
        new = [path for path, stamp in stamps.items() if stamp not in known]
        for path, digest in zip(new, pool.map(lambda path: _sha256(folder / path), new), strict=True):
            known[stamps[path]] = digest
        settled = (time.time() - SETTLED_S) * 1e9
        with database:
            database.executemany(
                "INSERT OR REPLACE INTO digests VALUES (?, ?)",
                [
                    (_printable(stamps[path]), known[stamps[path]])
                    for path in new
                    if int(stamps[path].rpartition("\0")[2]) < settled and known[stamps[path]] != UNREADABLE
                ],
            )
        entries += [Entry(path, sizes[path], known[stamp]) for path, stamp in stamps.items()]
        return entries


def _lookup(database: sqlite3.Connection, stamps: Iterable[str]) -> dict[str, str]:
    query = "SELECT sha256 FROM digests WHERE stamp = ?"
    found: dict[str, str] = {}
    for stamp in stamps:
        row = database.execute(query, (_printable(stamp),)).fetchone()
        if row:
            found[stamp] = row[0]
    return found


def _printable(stamp: str) -> str:
    return stamp.encode("utf-8", "surrogateescape").decode("latin-1")  # a file's name may be any bytes


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return UNREADABLE


def _walk(folder: Path) -> Iterator[str]:
    for parent, folders, names in os.walk(folder):
        relative = os.path.relpath(parent, folder)
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        outside = [name for name in links if not _inside(folder, Path(parent, name))]
        for name in [*names, *outside]:
            path = name if relative == "." else f"{relative}/{name}"
            if (
                os.path.isfile(os.path.join(parent, name))
                or name in outside
                or not _inside(folder, Path(parent, name))
            ):
                yield path


def _inside(folder: Path, path: Path) -> bool:
    if not path.is_symlink():
        return True
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
