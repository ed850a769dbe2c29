"""Photographs of bare circuit boards, normal and defective, composed of the layers of real boards.

`media/boards.py` renders and composes, `media/board_defects.py` says what defects there are and their sizes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from hashlib import sha256
from math import floor
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from ..files import Files
from ..media.board_kinds import (
    DEFECT_KINDS,
    LAYER_KINDS,
    DefectKind,
    Finish,
    LayerKind,
    SolderMask,
)
from ..packages import Package
from ..quarantine import Refusal, Refuse, Refused, file_missing
from ..source import Row, Source, SourceSpec, Unit
from ..spec import Preparation
from .coco import box_row

if TYPE_CHECKING:
    import numpy as np

    from ..media.board_defects import Damage
    from ..media.board_survey import Survey
    from ..media.boards import Layers

PACKAGE = Package(
    manager="npm",
    name="@tracespace/fixtures",
    version="4.2.7",
    sha256="3ecf54bd4f415137dbf2acf6a71d6ae4652fa9e1672d6260155e0cc94aedd67d",
    inside="package/boards",
)
MANIFEST = "manifest.json"
SIDES = ("top", "bottom")
Contents = tuple[tuple[LayerKind, tuple[bytes, ...]], ...]


class CircuitBoardsSpec(SourceSpec):
    """Photographs of bare boards, normal and defective, composed of real layers; each defect is marked."""

    kind: Literal["circuit-boards"] = "circuit-boards"
    boards: tuple[str, ...] | None = None
    """Folders of the boards, each with a manifest.json that says which file is which layer; null for all."""
    variants: int = Field(default=20, ge=1)
    """Pictures of each side of a board."""
    defective: float = Field(default=0.5, ge=0, le=1)
    """Share of them that have defects."""
    defects: tuple[int, int] = (1, 3)
    """Least and most defects of one that has any."""
    kinds: tuple[DefectKind, ...] = Field(default=DEFECT_KINDS, min_length=1)
    """Kinds of defects, each as likely; also the labels of the mask, in this order."""
    pixels_per_mm: float = Field(default=10.0, ge=4, le=40)
    """Scale."""
    scratch_mm: float = Field(default=0.2, ge=0.1, le=2)
    """Width of a scratch."""
    misalignment_mm: float = Field(default=0.1, ge=0, le=1)
    """How far solder mask and silkscreen may lie off to each side, each by itself, on normal boards too."""
    solder_masks: tuple[SolderMask, ...] = Field(default=("green",), min_length=1)
    """Colours of the solder mask, each as likely."""
    finishes: tuple[Finish, ...] = Field(default=("gold",), min_length=1)
    """What copper that is open is covered with, each as likely."""
    lighting: float = Field(default=0.15, ge=0, le=0.5)
    """Strength of gradients, exposure, gamma, tints and grain; 0 for none."""
    blur_mm: float = Field(default=0.04, ge=0, le=1)
    """Standard deviation of the camera's blur."""
    registration_mm: float = Field(default=0.05, ge=0, le=1)
    """How far a picture's reference, a photograph of a board of that kind without defects, lies off."""
    seed: int = Field(default=0, ge=0)
    """Of all that is drawn by lot."""

    @model_validator(mode="after")
    def _ranges(self) -> CircuitBoardsSpec:
        low, high = self.defects
        if not 1 <= low <= high:
            raise ValueError(f"defects must be a least and a most number from 1 on, not {low} and {high}")
        if len(set(self.kinds)) < len(self.kinds):
            raise ValueError("kinds must name each kind once")
        return self


def list_units(spec: CircuitBoardsSpec, files: Files) -> Iterator[Unit | Refusal]:
    """One unit for each variant of a side of a board."""
    found = [path.removesuffix(f"/{MANIFEST}") for path in files.entries if path.endswith(f"/{MANIFEST}")]
    for board in found if spec.boards is None else spec.boards:
        manifest = f"{board}/{MANIFEST}"
        if not files.holds(manifest):
            yield file_missing("circuit-boards", manifest)
            continue
        try:
            layers = [
                (one["type"], one["side"], f"{board}/{one['name']}") for one in _layers(files, manifest)
            ]
        except (ValueError, KeyError, TypeError) as error:
            message = f"it lists no layers with name, side and type: {error}"
            yield Refusal(manifest, manifest, "circuit-boards", "corrupt-manifest", message)
            continue
        for side in SIDES:
            of_side = [(kind, path) for kind, where, path in layers if where in (side, "all")]
            paths = {kind: [path for one, path in of_side if one == kind] for kind in LAYER_KINDS}
            missing = [path for group in paths.values() for path in group if not files.holds(path)]
            if missing or not paths["copper"]:
                yield file_missing("circuit-boards", missing[0] if missing else f"{board}: copper, {side}")
                continue
            for variant in range(spec.variants):
                name = f"{board}/{side}/{variant:04d}"
                fields = {"board": board, "side": side, "variant": variant, "layers": paths}
                yield Unit(name, tuple(path for group in paths.values() for path in group), fields)


def _layers(files: Files, manifest: str) -> list[Any]:
    return json.loads(files.read(manifest))["layers"]


def read(
    spec: CircuitBoardsSpec, files: Files, unit: Unit, preparation: Preparation, refuse: Refuse
) -> Iterator[Row]:
    """The record of a variant."""
    from ..media import image, masks

    layers: dict[LayerKind, list[str]] = unit.fields["layers"]
    contents = tuple((kind, tuple(files.read(path) for path in paths)) for kind, paths in layers.items())
    survey = survey_of(contents, unit.fields["side"] == "bottom", spec.pixels_per_mm)
    is_defective = has_defects(spec, unit.name, unit.fields["variant"])
    damage = damaged(spec, unit.name, survey, is_defective)
    if is_defective and not damage.defects:
        raise Refused("no-room", f"there is no room for {' or '.join(spec.kinds)} on this side")
    mask, boxes = marks(spec, damage)
    yield {
        "id": unit.name,
        "group": unit.fields["board"],
        "category": "defective" if is_defective else "normal",
        "picture": {"address": unit.name, "content": image.encode(picture_of(spec, unit.name, damage))},
        "reference": {"address": unit.name, "content": image.encode(reference_of(spec, unit.name, survey))},
        "mask": {"labels": list(spec.kinds), "content": masks.encode(mask)},
        "boxes": boxes,
    }


@lru_cache(maxsize=2)  # units come side by side; at 10 pixels per mm a side is some 20 MB
def survey_of(contents: Contents, is_bottom: bool, pixels_per_mm: float) -> Survey:
    """A side, rendered and looked over; the slow part, which all its variants share."""
    from ..media.board_survey import survey
    from ..media.boards import render

    return survey(render(dict(contents), is_bottom, pixels_per_mm), pixels_per_mm)


def has_defects(spec: CircuitBoardsSpec, name: str, variant: int) -> bool:
    """Whether a variant has defects: of any number of first ones, the wanted share does."""
    side = name.rpartition("/")[0]
    start = _random(spec, side, "share").random()
    return floor(start + (variant + 1) * spec.defective) > floor(start + variant * spec.defective)


def damaged(spec: CircuitBoardsSpec, name: str, survey: Survey, is_defective: bool) -> Damage:
    """A variant's side with its misalignment, and its defects if it has any."""
    from ..media.board_defects import Damage

    damage = Damage(survey, _misaligned(spec, name, survey), spec.scratch_mm)
    random = _random(spec, name, "defects")
    for _ in range(int(random.integers(spec.defects[0], spec.defects[1] + 1)) if is_defective else 0):
        # One that finds no place gives way to another kind.
        any(damage.insert(spec.kinds[number], random) for number in random.permutation(len(spec.kinds)))
    return damage


def reference_of(spec: CircuitBoardsSpec, name: str, survey: Survey) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """What a variant is compared with (height, width, 3): another board of its kind, without defects, with a
    misalignment of its own, in other light, a little off.
    """
    from ..media.board_defects import Damage
    from ..media.boards import moved

    damage = Damage(survey, _misaligned(spec, f"{name}/reference", survey), spec.scratch_mm)
    reach = spec.registration_mm * spec.pixels_per_mm
    rows, columns = _random(spec, name, "registration").uniform(-reach, reach, 2).tolist()
    return moved(picture_of(spec, name, damage, "reference light"), rows, columns)


def _misaligned(spec: CircuitBoardsSpec, name: str, survey: Survey) -> Layers:
    random = _random(spec, name, "misalignment")
    reach = spec.misalignment_mm * spec.pixels_per_mm
    openings, silkscreen = random.uniform(-reach, reach, (2, 2)).round().astype(int).tolist()
    return survey.layers.misaligned(openings, silkscreen)


def picture_of(
    spec: CircuitBoardsSpec, name: str, damage: Damage, light: str = "light"
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A variant's photograph (height, width, 3): in the same light with its defects and without."""
    from ..media.boards import materials, palette, photograph

    random = _random(spec, name, "colours")
    mask = spec.solder_masks[random.integers(len(spec.solder_masks))]
    finish = spec.finishes[random.integers(len(spec.finishes))]
    random = _random(spec, name, light)
    colours = palette(mask, finish, random, spec.lighting)
    return photograph(
        materials(damage.layers, damage.copper, damage.bare),
        damage.copper,
        colours,
        random,
        spec.lighting,
        spec.blur_mm * spec.pixels_per_mm,
        spec.pixels_per_mm,
    )


def marks(spec: CircuitBoardsSpec, damage: Damage) -> tuple[np.ndarray[Any, np.dtype[np.uint8]], list[Row]]:
    """The mask of a variant's defects, and a box around each."""
    import numpy as np

    mask = np.zeros(damage.copper.shape, np.uint8)
    found: list[Row] = []
    for defect in damage.defects:
        mask[defect.window][defect.seen] = spec.kinds.index(defect.kind) + 1
        rows, columns = (np.flatnonzero(defect.seen.any(axis=axis)) for axis in (1, 0))
        top, left = (one.start + ends[0] for one, ends in zip(defect.window, (rows, columns), strict=True))
        height, width = (ends[-1] - ends[0] + 1 for ends in (rows, columns))
        found.append(box_row(defect.kind, float(left), float(top), float(width), float(height)))
    return mask, found


def _random(spec: CircuitBoardsSpec, name: str, purpose: str) -> np.random.Generator:
    """A generator of its own for each purpose, so that one draw more in one moves nothing in another."""
    import numpy as np

    return np.random.default_rng(int.from_bytes(sha256(f"{spec.seed}/{name}/{purpose}".encode()).digest()))


SOURCE = Source(
    spec=CircuitBoardsSpec,
    summary="photographs of eight bare boards, normal and defective, composed of real layers",
    columns=lambda spec: ("category", "picture", "reference", "mask", "boxes"),
    list_units=list_units,
    read=read,
    package=PACKAGE,
    licence="each board its own: CC BY-SA, GPL-2, GPL-3 or CERN OHL 1.1 (see docs/corpora.md)",
    size_bytes=890_000,
)
