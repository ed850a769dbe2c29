"""Pictures with boxes in Pascal VOC's XML, one file for each (Everingham et al. 2010)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from ..files import OUTSIDE, Files
from ..quarantine import Refusal, Refuse, Refused, link_outside
from ..source import Row, Source, SourceSpec, Unit
from ..spec import Preparation
from .coco import box_row, is_inside


class VocSpec(SourceSpec):
    """Pictures with boxes in Pascal VOC's XML."""

    kind: Literal["voc"] = "voc"
    pictures: str = "JPEGImages"
    """Folder of the pictures."""
    annotations: str = "Annotations"
    """Folder of the XML files."""


def list_units(spec: VocSpec, files: Files) -> Iterator[Unit | Refusal]:
    """One unit for each picture, with the XML of its name if there is one."""
    pictures = {}
    for path, entry in files.entries.items():
        folder, _, name = path.rpartition("/")
        if folder != spec.pictures:
            continue
        if entry.version == OUTSIDE:
            yield link_outside("voc", path)
        else:
            pictures[name.rpartition(".")[0]] = path
    for path in files.entries:
        folder, _, name = path.rpartition("/")
        if folder == spec.annotations and name.endswith(".xml") and name[:-4] not in pictures:
            yield Refusal(path, path, "voc", "missing-file", "there is no picture of that name")
    for stem, path in pictures.items():
        annotation = f"{spec.annotations}/{stem}.xml"
        yield Unit(path, (path, annotation) if files.holds(annotation) else (path,))


def read(spec: VocSpec, files: Files, unit: Unit, preparation: Preparation, refuse: Refuse) -> Iterator[Row]:
    """The record of a picture; without boxes where its XML can't be read."""
    picture, *annotations = unit.files
    boxes: list[Row] = []
    for annotation in annotations:
        boxes += _boxes(files.read(annotation), annotation, refuse)
    yield {
        "id": picture,
        "picture": {"address": picture, "content": files.read(picture)},
        "boxes": boxes,
    }


def _boxes(content: bytes, address: str, refuse: Refuse) -> list[Row]:
    from xml.etree.ElementTree import Element, ParseError

    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import fromstring

    try:
        root: Element = fromstring(content)
    except (ParseError, DefusedXmlException, ValueError) as error:
        refuse(Refused("corrupt-annotation", f"the XML can't be read: {error}"), address, content)
        return []
    size = [root.findtext(f"size/{side}") for side in ("width", "height")]
    width, height = (float(side) if side else None for side in size)
    boxes: list[Row] = []
    for one in root.iter("object"):
        label = one.findtext("name") or ""
        try:
            left, top, right, bottom = (
                float(one.findtext(f"bndbox/{side}") or "nan") for side in ("xmin", "ymin", "xmax", "ymax")
            )
        except ValueError:
            left = top = right = bottom = float("nan")
        # VOC counts pixels from 1, and both corners belong to the box.
        box = box_row(label, left - 1, top - 1, right - left + 1, bottom - top + 1)
        if is_inside(box, width, height):
            boxes.append(box)
        else:
            message = (
                f"the box of {label} is {left:g} {top:g} {right:g} {bottom:g}, the picture {width}x{height}"
            )
            refuse(Refused("bad-box", message), address)
    return boxes


SOURCE = Source(
    spec=VocSpec,
    summary="pictures with boxes in Pascal VOC's XML",
    columns=lambda spec: ("picture", "boxes"),
    list_units=list_units,
    read=read,
)
