"""DeepPCB (Tang et al. 2019): scans of boards in two tones, each with a template and boxes around defects."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from typing import Any, Literal

from ..files import Files
from ..quarantine import Refusal, Refuse, Refused
from ..source import Row, Source, SourceSpec, Unit
from ..spec import Preparation
from .coco import box_row, is_inside

KINDS = ("open", "short", "mouse-bite", "spur", "spurious-copper", "pin-hole")
"""Its types from 1 on, named as those of `circuit-boards`."""
LISTS = {"trainval.txt": "train", "test.txt": "test"}
TEST, TEMPLATE = "_test.jpg", "_temp.jpg"


class DeepPcbSpec(SourceSpec):
    """A copy of DeepPCB: 1,500 scans of boards with six kinds of defects, and a template of each."""

    kind: Literal["deeppcb"] = "deeppcb"
    templates: bool = True
    """Templates are records too, without defects."""
    groups: Literal["published", "board"] = "published"
    """What no two splits share: a scan, in a group named train/… or test/… as the lists say, or a board."""


def list_units(spec: DeepPcbSpec, files: Files) -> Iterator[Unit | Refusal]:
    """One unit for each scan, with its template and its boxes."""
    splits = _published(files)
    for path in files.entries:
        if not path.endswith(TEST):
            continue
        stem = path.removesuffix(TEST)
        folder, name = posixpath.split(stem)
        beside = (f"{stem}{TEMPLATE}", f"{folder}_not/{name}.txt")
        missing = next((one for one in beside if not files.holds(one)), None)
        if missing is not None or not files.holds(path):
            message = f"its {posixpath.basename(missing or path)} is not there"
            yield Refusal(path, path, "deeppcb", "missing-file", message)
            continue
        board = next((part for part in folder.split("/") if part.startswith("group")), folder)
        split = splits.get(name)
        group = board if spec.groups == "board" or split is None else f"{split}/{board}/{name}"
        yield Unit(stem, (path, *beside), {"group": group})


def _published(files: Files) -> dict[str, str]:
    """Name of a scan → the split that a list names it in."""
    found: dict[str, str] = {}
    for path in files.entries:
        split = LISTS.get(posixpath.basename(path))
        if split is not None:
            lines = files.read(path).decode("utf-8", "replace").splitlines()
            found |= {
                posixpath.basename(line.split()[0]).partition(".")[0]: split for line in lines if line.strip()
            }
    return found


def read(
    spec: DeepPcbSpec, files: Files, unit: Unit, preparation: Preparation, refuse: Refuse
) -> Iterator[Row]:
    """The records of a scan and of its template. What differs from the template in a box is marked, or all of
    a box in which nothing does.
    """
    import numpy as np

    from ..media import masks

    path, template, annotation = unit.files
    picture, other = files.read(path), files.read(template)
    differs = masks.differing(picture, other)
    height, width = differs.shape
    mask = np.zeros((height, width), np.uint8)
    reference = {"reference": {"address": template, "content": other}}
    boxes: list[Row] = []
    for number, line in enumerate(files.read(annotation).decode("utf-8", "replace").splitlines(), 1):
        if not line.strip():
            continue
        found = _box(line)
        if found is None or not is_inside(found[0], width, height):
            refuse(Refused("bad-box", f"line {number} is no box in the picture: {line[:80]!r}"), annotation)
            continue
        box, kind = found
        boxes.append(box)
        left, top = (max(0, round(box[side])) for side in ("left", "top"))
        window = (slice(top, top + round(box["height"])), slice(left, left + round(box["width"])))
        changed = differs[window]
        mask[window][changed if changed.any() else np.ones_like(changed)] = kind
    found = _record(unit, path, picture, "defective" if boxes else "normal", masks.encode(mask), boxes)
    yield found | reference
    if spec.templates:
        blank = masks.encode(np.zeros_like(mask))
        yield _record(unit, template, other, "normal", blank, []) | reference


def _box(line: str) -> tuple[Row, int] | None:
    """A box and its type; None where a line has none."""
    numbers = re.findall(r"-?\d+", line)
    if len(numbers) != 5 or not 1 <= int(numbers[4]) <= len(KINDS):
        return None
    left, top, right, bottom = (float(one) for one in numbers[:4])
    kind = int(numbers[4])
    return box_row(KINDS[kind - 1], left, top, right - left, bottom - top), kind


def _record(
    unit: Unit, path: str, content: bytes, category: str, mask: bytes, boxes: list[Row]
) -> dict[str, Any]:
    return {
        "id": path,
        "group": unit.fields["group"],
        "category": category,
        "picture": {"address": path, "content": content},
        "mask": {"labels": list(KINDS), "content": mask},
        "boxes": boxes,
    }


SOURCE = Source(
    spec=DeepPcbSpec,
    summary="DeepPCB's scans of boards with boxes around defects, and their templates",
    columns=lambda spec: ("category", "picture", "reference", "mask", "boxes"),
    list_units=list_units,
    read=read,
)
