"""Jane Austen's six novels, as the R package janeaustenr carries them."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from typing import Any, Literal

from ..files import Files
from ..packages import Package
from ..quarantine import Refusal, Refuse, Refused, file_missing
from ..source import Row, Source, SourceSpec, Unit
from ..spec import Preparation

NOVELS = Package(
    manager="apt",
    name="r-cran-janeaustenr",
    version="1.0.0-1",
    sha256="df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95",
    inside="usr/lib/R/site-library/janeaustenr/data",
)
INDEX, DATABASE = "Rdata.rdx", "Rdata.rdb"
UNREADABLE = (zlib.error, EOFError, ValueError, TypeError, NotImplementedError)


class JaneAustenSpec(SourceSpec):
    """Jane Austen's six novels, each one document."""

    kind: Literal["janeausten"] = "janeausten"


def list_units(spec: JaneAustenSpec, files: Files) -> Iterator[Unit | Refusal]:
    """One unit for each novel, with where it lies in R's database of lazily loaded objects."""
    missing = [name for name in (INDEX, DATABASE) if name not in files.entries]
    if missing:
        yield file_missing("janeausten", missing[0])
        return
    try:
        places = _r_object(gzip.decompress(files.read(INDEX)))["variables"]
    except (OSError, *UNREADABLE, LookupError) as error:
        message = f"it is no index of R objects: {error}"
        yield Refusal(INDEX, INDEX, "janeausten", "not-an-index", message)
        return
    for name, (start, size) in sorted(places.items()):
        yield Unit(str(name), (DATABASE,), {"start": int(start), "size": int(size)})


def read(
    spec: JaneAustenSpec, files: Files, unit: Unit, preparation: Preparation, refuse: Refuse
) -> Iterator[Row]:
    """The record of a novel, line breaks as they were printed."""
    start, size = unit.fields["start"], unit.fields["size"]
    # four bytes of the size unpacked come first
    packed = files.read(DATABASE)[start + 4 : start + size]
    try:
        text = "\n".join(_r_object(zlib.decompress(packed)))
    except UNREADABLE as error:
        raise Refused("not-a-text", f"it is no vector of strings: {error}") from error
    yield {"id": unit.name, "text": text}


def _r_object(data: bytes) -> Any:  # noqa: ANN401 - whatever R has
    """An object of R's serialisation."""
    from rdata.conversion import convert
    from rdata.parser import parse_data

    return convert(parse_data(data, extension=".rds"))


SOURCE = Source(
    spec=JaneAustenSpec,
    summary="Jane Austen's six novels",
    columns=lambda spec: ("text",),
    list_units=list_units,
    read=read,
    licence="public domain (the novels), MIT (the package)",
    size_bytes=1_626_392,
    package=NOVELS,
)
