"""Cutting large pictures, such as boards and their layouts, into tiles on which details can be seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator

from ..operator import Apply, Operator, OperatorSpec
from ..quarantine import Refuse, Refused
from ..source import Row
from ..spec import Preparation


class TileImageSpec(OperatorSpec):
    """Cut a picture into tiles at its own size; each becomes a record with its boxes, mask and reference."""

    kind: Literal["tile-image"] = "tile-image"
    size: int = Field(default=512, ge=16)
    """Side of a tile, in pixels of the original."""
    overlap: int = Field(default=64, ge=0)
    """Pixels that neighbouring tiles have in common, at least."""
    pixels_per_mm: float | None = Field(default=None, gt=0, le=1000)
    """Scale at which vector pictures are rendered before they are cut; else each is one tile."""
    min_box_share: float = Field(default=0.25, gt=0, le=1)
    """Least share of a box's area that lies in a tile for the tile to have it."""
    keep_blank: bool = False
    """Keep tiles of one colour."""
    unmarked_share: float = Field(default=1.0, ge=0, le=1)
    """Share of the tiles that is kept of those with a mask on which nothing is marked; they are drawn by lot,
    always the same."""

    @model_validator(mode="after")
    def _advancing(self) -> TileImageSpec:
        if self.overlap >= self.size:
            raise ValueError(f"overlap {self.overlap} is not smaller than size {self.size}")
        return self


def tile_image(spec: TileImageSpec, preparation: Preparation) -> Apply:
    """`picture` → a record for each tile, with `image`, and the `boxes`, `mask` and `reference` there are."""
    from ..media import image, masks, patches

    def cut_up(content: bytes) -> list[image.Tile]:
        return list(image.read_tiles(content, spec.size, spec.overlap, side, spec.pixels_per_mm))

    side = preparation.stored_image_size

    def apply(row: Row, refuse: Refuse) -> list[Row] | None:
        if row["picture"] is None:
            return None
        address: str = row["picture"]["address"]
        tiles: list[Row] = []
        content = row["picture"]["content"]
        cut = cut_up(content)
        marked = row.get("source_mask") or row.get("mask")  # the one of the picture's own size
        last = cut[-1]  # ends with the picture
        whole = marked and masks.read(marked, last.left + last.width, last.top + last.height)
        compared = row.get("source_reference") or row.get("reference")
        references: Sequence[image.Tile | None] = [None] * len(cut)
        if compared is not None:
            references = cut_up(compared["content"])
            end = references[-1]
            image.check_alike(
                end.left + end.width, end.top + end.height, last.left + last.width, last.top + last.height
            )
        for tile, reference in zip(cut, references, strict=True):
            if not spec.keep_blank and (tile.pixels == tile.pixels[0, 0]).all():
                message = f"the tile at {tile.left}, {tile.top} has one colour"
                refuse(Refused("blank-tile", message, wanted=True), address)
                continue
            boxes = row.get("boxes")
            shown = boxes and [
                one
                for box in boxes
                if (one := clip_box(box, tile.left, tile.top, tile.width, tile.height, spec.min_box_share))
            ]
            part = None
            if whole is not None:
                part = masks.crop(whole, tile.left, tile.top, tile.width, tile.height)
                place = f"{row['id']} {tile.left} {tile.top}"
                if not part.any() and patches.lot(place).random() >= spec.unmarked_share:
                    refuse(Refused("unmarked-tile", "nothing is marked on the tile", wanted=True), address)
                    continue
            columns: Row = {
                "image": {
                    "address": address,
                    "width": tile.width,
                    "height": tile.height,
                    "pixels": tile.pixels.tobytes(),
                }
            }
            if boxes is not None:
                columns["boxes"] = shown
            if marked is not None and part is not None:
                stored = masks.encode(masks.fit(part, side))
                columns["mask"] = {"labels": marked["labels"], "content": stored}
            if compared is not None and reference is not None:
                columns["reference"] = {**compared, "content": image.encode(reference.pixels)}
            tiles.append(columns)
        if not tiles:
            message = "every tile of the picture has one colour, or is one of those without marks that go"
            raise Refused("blank-image", message, wanted=True)
        return tiles

    return apply


def clip_box(box: Row, left: int, top: int, width: int, height: int, min_share: float) -> Row | None:
    """A box as seen from a tile at `left`, `top`; None where less than `min_share` of its area is in it."""
    start_x, start_y = max(box["left"], left), max(box["top"], top)
    end_x = min(box["left"] + box["width"], left + width)
    end_y = min(box["top"] + box["height"], top + height)
    if start_x >= end_x or start_y >= end_y:
        return None
    seen = {"left": start_x - left, "top": start_y - top, "width": end_x - start_x, "height": end_y - start_y}
    if seen["width"] * seen["height"] < min_share * box["width"] * box["height"]:
        return None
    return {**box, **seen}


TILE = Operator(
    spec=TileImageSpec,
    summary="cut a picture into tiles, with their boxes, masks and references",
    needs=lambda spec: ("picture",),
    gives=lambda spec: ("image",),
    start=tile_image,
    splits=True,
)
