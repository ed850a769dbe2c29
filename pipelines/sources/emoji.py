"""Emoji as pictures with their names and keywords."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

from ..files import Files
from ..packages import Package
from ..quarantine import Refusal, Refuse, file_missing
from ..source import Row, Source, SourceSpec, Unit
from ..spec import Preparation

PICTURES = Package(
    manager="npm",
    name="@lobehub/fluent-emoji-3d",
    version="1.1.0",
    sha256="c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
)
NAMES = Package(
    manager="npm",
    name="emojibase-data",
    version="17.0.0",
    sha256="d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
)
TABLE = "en/data.json"


class EmojiSpec(SourceSpec):
    """Fluent emoji, each with its name and keywords; tones of skin and hair of one are in one split."""

    kind: Literal["emoji"] = "emoji"


def list_units(spec: EmojiSpec, files: Files) -> Iterator[Unit | Refusal]:
    """One unit for each picture that has a name."""
    table = next((path for path in files.entries if path.endswith(TABLE)), None)
    if table is None:
        yield file_missing("emoji", TABLE)
        return
    named = dict(_names(json.loads(files.read(table))))
    for path in files.entries:
        stem, _, extension = path.rpartition("/")[2].partition(".")
        if extension == "webp" and stem in named:
            yield Unit(stem, (path,), named[stem])


def read(
    spec: EmojiSpec, files: Files, unit: Unit, preparation: Preparation, refuse: Refuse
) -> Iterator[Row]:
    """The record of a picture: its name is the first caption, name and keywords the second."""
    (path,) = unit.files
    name, tags = unit.fields["name"], unit.fields["tags"]
    said = [name, f"{name}: {', '.join(tags)}"] if tags else [name]
    yield {
        "id": unit.name,
        "group": unit.fields["group"],
        "captions": [{"language": "en", "text": text} for text in said],
        "picture": {"address": path, "content": files.read(path)},
    }


def _names(table: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Code → name, keywords, and the code of which it is a tone."""
    for emoji in table:
        for one in (emoji, *emoji.get("skins", [])):
            fields = {"name": one["label"], "tags": emoji.get("tags", []), "group": emoji["hexcode"]}
            yield one["hexcode"].lower(), fields


SOURCE = Source(
    spec=EmojiSpec,
    summary="Fluent emoji with their names and keywords",
    columns=lambda spec: ("captions", "picture"),
    list_units=list_units,
    read=read,
    licence="MIT (both packages)",
    size_bytes=22_500_000,
    packages={"pictures": PICTURES, "names": NAMES},
)
