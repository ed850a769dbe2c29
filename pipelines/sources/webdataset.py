"""Tar shards of samples, as webdataset lays them out: `KEY.jpg`, `KEY.txt`, … lie beside each other."""

from __future__ import annotations

import json
import os
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from tarfile import HeaderError
from typing import Literal

from pydantic import Field

from ..files import OUTSIDE, Files
from ..quarantine import Refusal, Refuse, Refused, link_outside
from ..source import Row, Source, SourceSpec, Unit
from ..spec import Preparation

SUFFIXES = (".tar", ".tar.gz", ".tgz")
PICTURES = ("bmp", "gif", "jpeg", "jpg", "png", "tif", "tiff", "webp")
RECORDINGS = ("flac", "mp3", "ogg", "wav")
CLASSES = ("cls", "cls.txt")
END_OF_TAR = "end of file header"
"""What `tarfile` says of the two blocks of zeros that every whole tar ends with."""


class WebdatasetSpec(SourceSpec):
    """Tar shards of pictures, captions, recordings and classes."""

    kind: Literal["webdataset"] = "webdataset"
    language: str = "en"
    """Of captions and recordings."""
    caption: str = "txt"
    """Ending of the member that holds a caption: text, or JSON where it ends in `json`."""
    caption_key: str = "caption"
    """Key of the caption in a JSON member."""
    group_key: str | None = None
    """Key, in a member that ends in `json`, of what no two splits may share."""
    max_member_bytes: int = Field(default=256 << 20, ge=1)
    """Size from which on a member is refused without being read."""


@dataclass
class Sample:
    """Members of one key, as they come."""

    key: str
    members: dict[str, bytes] = field(default_factory=dict[str, bytes])
    refused: tuple[Refused, str] | None = None


class Header(tarfile.TarInfo):
    """A member's header; what keeps one from being read is noted, since `tarfile` takes it for the end."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Header:
        """The next member's header."""
        try:
            return super().fromtarfile(tarfile)
        except HeaderError as error:
            if isinstance(tarfile, Archive) and str(error) != END_OF_TAR:
                tarfile.fault = error
            raise


class Archive(tarfile.TarFile):
    """A tar that knows whether it was read to its end."""

    tarinfo = Header
    fault: HeaderError | None = None


def list_units(spec: WebdatasetSpec, files: Files) -> Iterator[Unit | Refusal]:
    """One unit for each tar."""
    for path, entry in files.entries.items():
        if not path.lower().endswith(SUFFIXES):
            continue
        if entry.version == OUTSIDE:
            yield link_outside("webdataset", path)
        else:
            yield Unit(path, (path,))


def read(
    spec: WebdatasetSpec, files: Files, unit: Unit, preparation: Preparation, refuse: Refuse
) -> Iterator[Row]:
    """The samples of a tar, read once from its beginning to its end; what came before a fault is kept."""
    (path,) = unit.files
    seen: set[str] = set()
    with files.open(path) as file:
        for sample in _samples(file, path, spec, refuse):
            if sample.refused is not None:
                refuse(*sample.refused, whole=True)
            elif sample.key in seen:
                again = Refused("duplicate-id", "another sample of the tar has the same key")
                refuse(again, f"{path}/{sample.key}", whole=True)
            else:
                seen.add(sample.key)
                yield _record(spec, path, sample, refuse)


def _samples(file: object, path: str, spec: WebdatasetSpec, refuse: Refuse) -> Iterator[Sample]:
    """Group the members of a tar by their key."""
    sample: Sample | None = None
    try:
        with Archive.open(fileobj=file, mode="r|*") as archive:  # pyright: ignore[reportArgumentType, reportCallIssue]
            for member in archive:
                if member.isdir():
                    continue
                address = f"{path}/{member.name}"
                fault = _fault(member, spec.max_member_bytes)
                folder, _, name = member.name.rpartition("/")
                stem, _, ending = name.partition(".")
                key = f"{folder}/{stem}" if folder else stem
                if sample is None or sample.key != key:
                    if sample is not None:
                        yield sample
                    sample = Sample(key)
                if fault is not None:
                    sample.refused = (fault, address)
                    continue
                content = archive.extractfile(member)
                assert content is not None
                sample.members[ending.lower()] = content.read()
                archive.members.clear()  # pyright: ignore[reportAttributeAccessIssue] - it keeps every header
            if isinstance(archive, Archive) and archive.fault is not None:
                raise archive.fault
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        cut = isinstance(error, EOFError) or any(
            word in str(error) for word in ("end of", "truncated", "empty")
        )
        broken = "truncated" if cut else "corrupt"
        refuse(Refused(f"{broken}-archive", f"the tar ends or breaks off early: {error}"), path)
        return  # the sample at hand may lack members
    if sample is not None:
        yield sample


def _fault(member: tarfile.TarInfo, max_bytes: int) -> Refused | None:
    """Why a member is not read."""
    if os.path.isabs(member.name) or ".." in member.name.split("/"):
        return Refused("path-traversal", f"the member's name leads out of the tar: {member.name!r}")
    if not member.isfile():
        return Refused("link-outside", "the member is a link or a device, not a file")
    if member.size > max_bytes:
        return Refused("file-too-large", f"the member has {member.size:,} bytes, over {max_bytes:,}")
    return None


def _record(spec: WebdatasetSpec, path: str, sample: Sample, refuse: Refuse) -> Row:
    members = sample.members
    address = f"{path}/{sample.key}"
    pictures = [ending for ending in members if ending.rpartition(".")[2] in PICTURES]
    recordings = [ending for ending in members if ending.rpartition(".")[2] in RECORDINGS]
    classes = [ending for ending in CLASSES if ending in members]
    description = _description(members, address, refuse)
    caption = _caption(spec, members, description, address, refuse)
    return {
        "id": address,
        "group": str(description[spec.group_key]) if spec.group_key in description else None,
        "category": members[classes[0]].decode("utf-8", "replace").strip() if classes else None,
        "captions": [{"language": spec.language, "text": caption}] if caption else [],
        "picture": _file(address, pictures[0], members) if pictures else None,
        "recordings": [{"language": spec.language, **_file(address, one, members)} for one in recordings],
    }


def _file(address: str, ending: str, members: dict[str, bytes]) -> Row:
    return {"address": f"{address}.{ending}", "content": members[ending]}


def _description(members: dict[str, bytes], address: str, refuse: Refuse) -> Row:
    """What the sample's JSON member says."""
    if "json" not in members:
        return {}
    try:
        found = json.loads(members["json"])
    except ValueError as error:
        refuse(
            Refused("corrupt-json", f"the JSON can't be read: {error}"), f"{address}.json", members["json"]
        )
        return {}
    return found if isinstance(found, dict) else {}


def _caption(
    spec: WebdatasetSpec, members: dict[str, bytes], description: Row, address: str, refuse: Refuse
) -> str | None:
    if spec.caption == "json":
        found = description.get(spec.caption_key)
        return str(found) if found is not None else None
    content = members.get(spec.caption)
    if content is None:
        return None
    try:
        return content.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        message = f"the caption is not UTF-8: byte 0x{content[error.start]:02x} at {error.start}"
        refuse(Refused("caption-not-utf8", message), f"{address}.{spec.caption}", content)
        return None


SOURCE = Source(
    spec=WebdatasetSpec,
    summary="tar shards of pictures, captions, recordings and classes, as webdataset lays them out",
    columns=lambda spec: ("category", "captions", "picture", "recordings"),
    list_units=list_units,
    read=read,
)
