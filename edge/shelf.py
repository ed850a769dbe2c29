"""A device's bundles, each in a folder named by its digest, and a pointer to the one that is used.

A folder is complete before it gets its name, and the pointer is one file that another takes the place of:
what a power failure leaves is the old one or the new one. Every file, and the folder it lies in, is on the
disk before something refers to it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from ..workflows.errors import EaglerayError
from ..workflows.spec import Spec

MOST_ATTEMPTS = 2
"""To open a bundle that was never open here: a process that ended in each of them was ended by it. One may
have been a power failure."""

Chunks = Iterator[bytes]


class Pointer(Spec):
    """Which bundle is used; each by its digest."""

    current: str
    before: str | None = None
    """That it took the place of, unless that was gone back to."""
    attempts: int = 0
    """To open the current one."""
    proven: bool = False
    """Whether one succeeded."""


class Shelf:
    """Bundles beside one another.

    Args:
        folder: where they lie.
        reached: is told of each step of a change, once it is on the disk.
    """

    def __init__(self, folder: Path, reached: Callable[[str], None] = lambda step: None) -> None:
        self._folder, self._reached = folder, reached
        self._bundles, self._pointer = folder / "bundles", folder / "current.json"

    def path(self, digest: str) -> Path:
        """The folder of a bundle, whether it is there or not."""
        return self._bundles / digest

    def pointer(self) -> Pointer | None:
        """Which one is used; None before there is any.

        Raises:
            EaglerayError: when the file can't be read.
        """
        try:
            return Pointer.model_validate_json(self._pointer.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise EaglerayError(
                "the pointer to the current bundle was changed by something else",
                "take it away, and install a bundle: eagleray edge update BUNDLE",
                str(self._pointer),
            ) from error

    @contextmanager
    def locked(self) -> Generator[None]:
        """Be the only one who changes anything; another waits."""
        self._bundles.mkdir(parents=True, exist_ok=True)
        with (self._folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @contextmanager
    def staged(self, files: Mapping[str, tuple[str | None, Chunks]]) -> Generator[Path]:
        """A folder of files that are on the disk, and that is gone afterwards unless `keep` took it.

        Args:
            files: name → sha256 that its content must have, None for any, and the content.

        Raises:
            EaglerayError: when one has another content.
        """
        staging = self._bundles / ".staging"
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        try:
            for name, (wanted, chunks) in files.items():
                if _write(staging / name, chunks) != wanted and wanted is not None:
                    raise EaglerayError(
                        f"the bundle's {name} was changed after it was written, or on its way",
                        "get it anew from who exported it",
                    )
                self._reached(f"staged {name}")
            sync(staging)
            self._reached("staged")
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def keep(self, staging: Path, digest: str) -> None:
        """Give a staged bundle its name."""
        os.rename(staging, self.path(digest))
        sync(self._bundles)
        self._reached("kept")

    def add(self, digest: str, name: str, content: bytes) -> None:
        """Put a file into a bundle's folder, in one step."""
        beside = self._bundles / ".added"
        _write(beside, iter([content]))
        os.replace(beside, self.path(digest) / name)
        sync(self.path(digest))

    def point(self, pointer: Pointer) -> None:
        """Make it the pointer, in one step."""
        beside = self._pointer.with_suffix(".new")
        _write(beside, iter([pointer.model_dump_json().encode()]))
        self._reached("pointer written")
        os.replace(beside, self._pointer)
        sync(self._folder)
        self._reached("pointer replaced")

    def sweep(self) -> None:
        """Take away the bundles that nothing refers to."""
        pointer = self.pointer()
        kept = {pointer.current, pointer.before} if pointer else set[str | None]()
        for path in self._bundles.iterdir():
            if path.name not in kept:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        self._reached("swept")

    def go_back(self, wrong: str | None = None) -> Pointer:
        """Use the bundle from before.

        Args:
            wrong: the one that is gone back from; nothing changes when another has taken its place.

        Raises:
            EaglerayError: when there is none.
        """
        with self.locked():
            pointer = self.pointer()
            if pointer is not None and wrong not in (None, pointer.current):
                return pointer
            if pointer is None or pointer.before is None:
                raise EaglerayError(
                    "there is no bundle to go back to", "install one: eagleray edge update BUNDLE"
                )
            back = Pointer(current=pointer.before, proven=True)
            self.point(back)
            return back

    def attempt(self) -> Pointer:
        """The pointer to what is about to be opened; what has ended its process each time is gone back from.

        Raises:
            EaglerayError: when there is no bundle.
        """
        with self.locked():
            pointer = self.pointer()
            if pointer is None:
                raise EaglerayError(
                    "this device has no bundle yet",
                    "install one: eagleray edge update BUNDLE",
                    str(self._folder),
                )
            if pointer.proven:
                return pointer
            tried = pointer.model_copy(update={"attempts": pointer.attempts + 1})
            if tried.attempts > MOST_ATTEMPTS and pointer.before is not None:
                tried = Pointer(current=pointer.before, proven=True)
            self.point(tried)
            return tried

    def prove(self, digest: str) -> None:
        """Remember that a bundle could be opened."""
        with self.locked():
            pointer = self.pointer()
            if pointer is not None and pointer.current == digest and not pointer.proven:
                self.point(pointer.model_copy(update={"proven": True}))


def _write(path: Path, chunks: Chunks) -> str:
    """Write a file to the disk; the sha256 of its content."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for chunk in chunks:
            digest.update(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def sync(folder: Path) -> None:
    """Put the names of a folder's files on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
