"""What a source of records is. Its modules lie in `sources/`; `catalog` finds them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, Field

from ..workflows.errors import EaglerayError
from ..workflows.spec import Runtime, Spec
from .quarantine import Refusal

if TYPE_CHECKING:
    import pyarrow as pa

Log = Callable[[str], None]

# Workers run elsewhere than the command that was typed, so a path is made absolute where it is read.
LocalFolder = Annotated[Path, AfterValidator(lambda path: Path(os.path.abspath(path.expanduser())))]


class SourceSpec(Spec):
    """Base of every source's spec."""

    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    """sha256 of the unpacked files, as `tree_digest` computes it."""
    path: LocalFolder | None = Runtime(None)
    """Folder of an unpacked copy, instead of fetching one."""


@dataclass(frozen=True)
class Listing:
    """What a source holds.

    Attributes:
        records: table of the schema `contracts.RECORDS`, sorted by id.
        refusals: what could not be listed.
    """

    records: pa.Table
    refusals: tuple[Refusal, ...]


@dataclass(frozen=True)
class Source:
    """A registered source; a module in `sources/` declares one.

    Attributes:
        spec: the source's spec model; the default of its `kind` names it.
        summary: one line.
        licence: of the data.
        origin: where it comes from.
        size_bytes: of the download.
        modalities: what its records have.
        fetch: `(spec, cache, log)` → folder with a verified, unpacked copy.
        content_digest: `spec` → digest of the data, part of the stage's identity.
        list_records: folder → what it holds.
    """

    spec: type[SourceSpec]
    summary: str
    licence: str
    origin: str
    size_bytes: int
    modalities: tuple[str, ...]
    fetch: Callable[[Any, Path, Log], Path]
    content_digest: Callable[[Any], str]
    list_records: Callable[[Path], Listing]

    @property
    def name(self) -> str:
        """The source's kind."""
        return self.spec.model_fields["kind"].default


def tree_digest(folder: Path) -> str:
    """sha256, hex, over the sorted relative paths of all files, each followed by its content's sha256."""
    total = hashlib.sha256()
    for path in sorted(_files(folder)):
        with open(folder / path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{path}\0{content}\n".encode("utf-8", "surrogateescape"))
    return total.hexdigest()


def verify(folder: Path, expected: str) -> None:
    """Check that a folder holds the pinned content.

    Raises:
        EaglerayError: when its digest is another one.
    """
    found = tree_digest(folder)
    if found != expected:
        raise EaglerayError(
            f"the files are not the pinned ones: their digest is {found}, source.digest is {expected}",
            f"use an unchanged copy, or set source.digest to {found} if these are the files you mean",
            str(folder),
        )


def _files(folder: Path) -> list[str]:
    found: list[str] = []
    for parent, _, names in os.walk(folder):
        relative = os.path.relpath(parent, folder)
        found += [name if relative == "." else f"{relative}/{name}" for name in names]
    return found
