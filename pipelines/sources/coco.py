"""Pictures with boxes in COCO's JSON (Lin et al. 2014), and captions if there are any."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any, Literal

from ...workflows.errors import EaglerayError
from ..files import OUTSIDE, Files
from ..quarantine import Refusal, Refuse, Refused, link_outside
from ..source import Row, Source, SourceSpec, Unit
from ..spec import Preparation


class CocoSpec(SourceSpec):
    """Pictures with boxes and captions in COCO's JSON."""

    kind: Literal["coco"] = "coco"
    pictures: str = "images"
    """Folder of the pictures."""
    instances: str | None = "annotations/instances.json"
    """The JSON file of boxes; null for none."""
    captions: str | None = None
    """The JSON file of captions; none by default."""
    language: str = "en"
    """Of the captions."""
    category: Literal["none", "most-frequent"] = "none"
    """What a picture's category is: none, or the label that most of its boxes have."""


def list_units(spec: CocoSpec, files: Files) -> Iterator[Unit | Refusal]:
    """One unit for each picture that a JSON file names."""
    instances = _load(files, spec.instances) if spec.instances else {}
    captions = _load(files, spec.captions) if spec.captions else {}
    labels = {one["id"]: one["name"] for one in instances.get("categories", [])}
    boxes: dict[Any, list[Any]] = defaultdict(list)
    for one in instances.get("annotations", []):
        boxes[one["image_id"]].append([labels.get(one["category_id"], str(one["category_id"])), *one["bbox"]])
    said: dict[Any, list[str]] = defaultdict(list)
    for one in captions.get("annotations", []):
        said[one["image_id"]].append(one["caption"])
    named = {one["id"]: one for one in (*instances.get("images", []), *captions.get("images", []))}
    seen: set[str] = set()
    for number, one in named.items():
        path = f"{spec.pictures}/{one['file_name']}" if spec.pictures else one["file_name"]
        if path in seen:
            yield Refusal(path, path, "coco", "duplicate-id", "two pictures have the same file")
        elif path not in files.entries:
            yield Refusal(path, path, "coco", "missing-file", "the annotations name it, it is not there")
        elif files.entries[path].version == OUTSIDE:
            yield link_outside("coco", path)
        else:
            size = [one.get("width"), one.get("height")]
            yield Unit(path, (path,), {"boxes": boxes[number], "captions": said[number], "size": size})
        seen.add(path)


def read(spec: CocoSpec, files: Files, unit: Unit, preparation: Preparation, refuse: Refuse) -> Iterator[Row]:
    """The record of a picture; a box without an area, or outside the picture, is refused."""
    (path,) = unit.files
    width, height = unit.fields["size"]
    boxes: list[Row] = []
    for label, *sides in unit.fields["boxes"]:
        box = box_row(label, *(float(side) for side in sides))
        if is_inside(box, width, height):
            boxes.append(box)
        else:
            refuse(Refused("bad-box", f"the box of {label} is {sides}, the picture {width}x{height}"), path)
    labels = Counter(box["label"] for box in boxes).most_common(1)
    yield {
        "id": path,
        "category": labels[0][0] if labels and spec.category == "most-frequent" else None,
        "captions": [{"language": spec.language, "text": text} for text in unit.fields["captions"]],
        "picture": {"address": path, "content": files.read(path)},
        "boxes": boxes,
    }


def box_row(label: str, left: float, top: float, width: float, height: float) -> Row:
    """A box as `contracts.COLUMNS` has it."""
    return {"label": label, "left": left, "top": top, "width": width, "height": height}


def is_inside(box: Row, width: float | None, height: float | None) -> bool:
    """Whether a box has an area, all in the picture (if its size is known), but for a pixel of rounding."""
    if not (box["width"] > 0 and box["height"] > 0 and box["left"] > -1 and box["top"] > -1):
        return False
    right, bottom = box["left"] + box["width"], box["top"] + box["height"]
    return (width is None or right < width + 1) and (height is None or bottom < height + 1)


def _load(files: Files, path: str) -> dict[str, Any]:
    if path not in files.entries:
        raise EaglerayError(f"there is no {path}", "correct the source's options", files.shown)
    try:
        found = json.loads(files.read(path))
        if not isinstance(found, dict) or not isinstance(found.get("images"), list):
            raise ValueError("it has no list of images")
    except ValueError as error:
        raise EaglerayError(f"{path} is no COCO file: {error}", "mend it", files.shown) from error
    return found


SOURCE = Source(
    spec=CocoSpec,
    summary="pictures with boxes and captions in COCO's JSON",
    columns=lambda spec: ("category", "captions", "picture", "boxes"),
    list_units=list_units,
    read=read,
)
