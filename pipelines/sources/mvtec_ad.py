"""MVTec AD (Bergmann et al. 2021): pictures of objects and textures, normal to train on, defects masked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

from ..files import Files
from ..quarantine import Refusal, Refuse
from ..source import Row, Source, SourceSpec, Unit
from ..spec import Preparation
from .coco import box_row

GOOD = "good"
_PICTURE = re.compile(
    r"(?:(?P<object>.+)/)?(?P<split>train|test)/(?P<defect>[^/]+)/(?P<name>[^/]+)\.(?:png|jpe?g|bmp|tiff?)",
    re.IGNORECASE,
)


class MvtecAdSpec(SourceSpec):
    """Pictures in MVTec AD's layout: one object's folder, or a folder of several."""

    kind: Literal["mvtec-ad"] = "mvtec-ad"
    objects: tuple[str, ...] | None = None
    """Folders of the objects that are read; null for all."""


def list_units(spec: MvtecAdSpec, files: Files) -> Iterator[Unit | Refusal]:
    """One unit for each picture, with the mask of its defect. Its group is named train/… or test/…."""
    for path in files.entries:
        found = _PICTURE.fullmatch(path)
        if found is None or (spec.objects is not None and found["object"] not in spec.objects):
            continue
        defect = None if found["defect"] == GOOD else found["defect"]
        folder = f"{found['object']}/" if found["object"] else ""
        mask = f"{folder}ground_truth/{defect}/{found['name']}_mask.png"
        if not files.holds(path) or (defect is not None and not files.holds(mask)):
            yield Refusal(path, path, "mvtec-ad", "missing-file", f"there is no {mask if defect else path}")
            continue
        group = f"{found['split']}/{folder}{found['defect']}/{found['name']}"
        yield Unit(path, (path, mask) if defect else (path,), {"group": group, "defect": defect})


def read(
    spec: MvtecAdSpec, files: Files, unit: Unit, preparation: Preparation, refuse: Refuse
) -> Iterator[Row]:
    """The record of a picture; what is not black in the mask is the defect."""
    import numpy as np

    from ..media import image, masks

    path, *drawn = unit.files
    content, defect = files.read(path), unit.fields["defect"]
    if drawn:
        marked = masks.white(files.read(drawn[0]))
    else:
        width, height = image.size_of(content) or (1, 1)  # of what is no picture, decoding tells
        marked = np.zeros((height, width), np.bool_)
    yield {
        "id": path,
        "group": unit.fields["group"],
        "category": "normal" if defect is None else "defective",
        "picture": {"address": path, "content": content},
        "mask": {
            "labels": [] if defect is None else [defect],
            "content": masks.encode(marked.astype(np.uint8)),
        },
        "boxes": [box_row(defect or GOOD, *sides) for sides in masks.boxes(marked)],
    }


SOURCE = Source(
    spec=MvtecAdSpec,
    summary="pictures in MVTec AD's layout: normal ones, and defective ones with masks",
    columns=lambda spec: ("category", "picture", "mask", "boxes"),
    list_units=list_units,
    read=read,
)
