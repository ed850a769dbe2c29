"""Scenes composed of Tux Paint's stamps, with questions whose answers are known."""

from __future__ import annotations

import io
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from ..files import Files
from ..quarantine import Refusal, Refuse
from ..source import Row, Source, SourceSpec, Unit
from ..spec import Preparation
from .tuxpaint import PACKAGE, parse_captions

SIDE = 64
GRID = 4
"""Cells along a side; a thing has one for itself."""
COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 170, 50),
    "blue": (40, 70, 225),
    "yellow": (235, 210, 40),
    "purple": (150, 50, 185),
    "orange": (240, 130, 30),
}
NUMBERS = ("one", "two", "three", "four", "five")
_NOUN = re.compile(r"An? ([a-z]{3,12})\.")


class ScenesSpec(SourceSpec):
    """Tinted stamps on a plain background: what colour, where, how many. A scene is in one split only."""

    kind: Literal["scenes"] = "scenes"
    scenes: int = Field(default=2_000, ge=1)
    """How many are composed; each has three questions."""
    things: int = Field(default=12, ge=2)
    """Stamps that are told apart."""
    seed: int = Field(default=0, ge=0)
    """Of the composition."""


def list_units(spec: ScenesSpec, files: Files) -> Iterator[Unit | Refusal]:
    """One unit for each scene."""
    draw = random.Random(spec.seed)
    things = nouns(files)
    if len(things) > spec.things:
        things = draw.sample(things, spec.things)
    if len(things) < 2:
        yield Refusal("scenes", files.shown, "scenes", "missing-file", "fewer than two stamps are one thing")
        return
    for number in range(spec.scenes):
        many, one = draw.sample(things, 2)
        count = draw.randint(1, len(NUMBERS))
        cells = draw.sample(range(GRID * GRID), count + 1)
        colours = draw.sample(sorted(COLOURS), 2)
        fields = {
            "many": {"noun": many[0], "colour": colours[0], "cells": cells[:count]},
            "one": {"noun": one[0], "colour": colours[1], "cells": cells[count:]},
            "background": [draw.randint(200, 255) for _ in range(3)],
            "asked": draw.choice(("many", "one")),
        }
        yield Unit(f"{number:06}", (many[1], one[1]), fields)


def read(
    spec: ScenesSpec, files: Files, unit: Unit, preparation: Preparation, refuse: Refuse
) -> Iterator[Row]:
    """The records of a scene's three questions."""
    many, one = unit.fields["many"], unit.fields["one"]
    picture = compose(unit.fields, [files.read(path) for path in unit.files])
    asked = unit.fields[unit.fields["asked"]]
    is_one = len(asked["cells"]) == 1
    cell = one["cells"][0]
    where = (
        f"{'top' if cell // GRID < GRID // 2 else 'bottom'} {'left' if cell % GRID < GRID // 2 else 'right'}"
    )
    questions = (
        ("colour", f"What colour {'is' if is_one else 'are'} the {_plural(asked, is_one)}?", asked["colour"]),
        ("location", f"Where is the {one['noun']}?", where),
        ("count", f"How many {_plural(many, False)} are there?", NUMBERS[len(many["cells"]) - 1]),
    )
    for kind, question, answer in questions:
        yield {
            "id": f"{unit.name}/{kind}",
            "group": unit.name,
            "category": kind,
            "captions": [{"language": "en", "text": question}],
            "answer": answer,
            "picture": {"address": unit.name, "content": picture},
        }


def nouns(files: Files) -> list[tuple[str, str]]:
    """Things and their stamps, sorted: captions `A noun.` of one PNG only."""
    found: dict[str, list[str]] = {}
    for path in files.entries:
        beside = f"{path.removesuffix('.png')}.txt"
        if path.endswith(".png") and not path.endswith("_mirror.png") and beside in files.entries:
            try:
                caption = parse_captions(files.read(beside)).get("en", "")
            except (OSError, UnicodeDecodeError):
                continue
            if match := _NOUN.fullmatch(caption):
                found.setdefault(match[1], []).append(path)
    return [(noun, paths[0]) for noun, paths in sorted(found.items()) if len(paths) == 1]


def compose(fields: Mapping[str, Any], stamps: Sequence[bytes]) -> bytes:
    """A PNG of a scene, SIDE pixels square."""
    from PIL import Image, ImageOps

    cell = SIDE // GRID
    scene = Image.new("RGB", (SIDE, SIDE), tuple(fields["background"]))
    for name, content in zip(("many", "one"), stamps, strict=True):
        thing = fields[name]
        with Image.open(io.BytesIO(content)) as opened:
            stamp = ImageOps.contain(opened.convert("RGBA"), (cell, cell), Image.Resampling.LANCZOS)
        grey = ImageOps.grayscale(stamp.convert("RGB"))
        colour = COLOURS[thing["colour"]]
        dark, light = (tuple(c // 4 for c in colour), tuple(153 + c * 2 // 5 for c in colour))
        tinted = ImageOps.colorize(grey, dark, light, colour)  # what was black or white has the colour too
        for place in thing["cells"]:
            left = place % GRID * cell + (cell - stamp.width) // 2
            top = place // GRID * cell + (cell - stamp.height) // 2
            scene.paste(tinted, (left, top), stamp.getchannel("A"))
    encoded = io.BytesIO()
    scene.save(encoded, "PNG")
    return encoded.getvalue()


def _plural(thing: Mapping[str, Any], is_one: bool) -> str:
    noun = thing["noun"]
    if is_one:
        return noun
    return f"{noun}es" if noun.endswith(("s", "x", "ch", "sh")) else f"{noun}s"


SOURCE = Source(
    spec=ScenesSpec,
    summary="scenes composed of Tux Paint's stamps, with questions: what colour, where, how many",
    columns=lambda spec: ("category", "captions", "answer", "picture"),
    list_units=list_units,
    read=read,
    package=PACKAGE,
    licence="GPL-2, as Tux Paint's stamps (see docs/corpora.md)",
    size_bytes=161_000_000,
)
