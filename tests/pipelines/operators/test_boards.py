"""Cutting pictures into tiles."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from eagleray.pipelines.media import masks
from eagleray.pipelines.operator import check_chain
from eagleray.pipelines.operators.boards import TILE, TileImageSpec, clip_box, tile_image
from eagleray.pipelines.operators.decode import DECODE_IMAGE, DecodeImageSpec
from eagleray.pipelines.operators.duplicates import EXACT, NEAR_IMAGES, ExactDuplicatesSpec
from eagleray.pipelines.operators.duplicates import NearDuplicateImagesSpec as NearSpec
from eagleray.pipelines.quarantine import Refused
from eagleray.pipelines.shards import open_split
from eagleray.pipelines.spec import Preparation
from eagleray.pipelines.stages.preprocess import PreprocessSpec
from eagleray.workflows.errors import EaglerayError

from ..conftest import PREPARATION


def board(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def encode(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def box(left: float, top: float, width: float, height: float, label: str = "chip") -> dict:
    return {"label": label, "left": left, "top": top, "width": width, "height": height}


def tiles(picture: Image.Image, boxes: list[dict] | None = None, parts=lambda *args: None, **options) -> list:
    row = {"id": "b", "picture": {"address": "b.png", "content": encode(picture)}}
    if boxes is not None:
        row["boxes"] = boxes
    apply = tile_image(TileImageSpec(**options), Preparation(image_size=32, stored_image_size=32))
    return apply(row, parts) or []


def test_every_box_is_where_it_was_on_the_tile_that_shows_it():
    whole = board(100, 70)
    for left, top in ((0, 0), (40, 20), (70, 50), (88, 58)):
        whole.paste((255, 0, 0), (left, top, left + 12, top + 12))
    boxes = [box(left, top, 12, 12) for left, top in ((0, 0), (40, 20), (70, 50), (88, 58))]
    found = tiles(whole, boxes, size=32, overlap=12)
    seen = 0
    for tile in found:
        assert (tile["image"]["width"], tile["image"]["height"]) == (32, 32)
        pixels = np.frombuffer(tile["image"]["pixels"], np.uint8).reshape(32, 32, 3)
        for one in tile["boxes"]:
            left, top, right, bottom = (
                one["left"], one["top"], one["left"] + one["width"], one["top"] + one["height"],
            )  # fmt: skip
            assert (pixels[top:bottom, left:right] == (255, 0, 0)).all()
            seen += one["width"] * one["height"] == 144
    assert seen >= 4  # each is whole on one tile at least: the overlap is as large as they are


sides = st.floats(0, 200)


@given(st.tuples(sides, sides, st.floats(1, 50), st.floats(1, 50)), st.floats(0.01, 1))
def test_a_box_on_a_tile_lies_in_it_and_has_the_least_share_of_its_area(place, share):
    whole = box(*place)
    seen = clip_box(whole, 60, 40, 80, 64, share)
    if seen is None:
        width = max(0.0, min(place[0] + place[2], 140) - max(place[0], 60))
        height = max(0.0, min(place[1] + place[3], 104) - max(place[1], 40))
        assert width * height < share * place[2] * place[3] * (1 + 1e-9) or width * height == 0
        return
    assert seen["label"] == "chip"
    assert 0 <= seen["left"] < seen["left"] + seen["width"] <= 80 + 1e-9
    assert 0 <= seen["top"] < seen["top"] + seen["height"] <= 64 + 1e-9
    assert seen["width"] * seen["height"] >= share * place[2] * place[3]
    assert seen["left"] + 60 == pytest.approx(max(place[0], 60))


def test_a_record_without_boxes_gets_none_and_one_with_no_box_an_empty_list():
    assert all("boxes" not in tile for tile in tiles(board(40, 40), size=32, overlap=0))
    assert [tile["boxes"] for tile in tiles(board(32, 32), [], size=32, overlap=0)] == [[]]


def test_a_tile_has_the_same_part_of_the_reference_and_one_of_another_size_is_refused():
    row = {"id": "a", "picture": {"address": "a", "content": encode(board(80, 48, 1))}}
    reference = {"address": "golden", "content": encode(board(80, 48, 2))}
    apply = tile_image(TileImageSpec(size=32, overlap=0), Preparation(image_size=32, stored_image_size=32))
    found = apply({**row, "reference": reference}, lambda *given: None)
    alone = apply(
        {**row, "picture": {**row["picture"], "content": reference["content"]}}, lambda *given: None
    )
    assert len(found) == len(alone) == 6
    for tile, other in zip(found, alone, strict=True):
        shown = np.asarray(Image.open(io.BytesIO(tile["reference"]["content"])))
        assert shown.tobytes() == other["image"]["pixels"]
        assert tile["reference"]["address"] == "golden"
        assert tile["image"]["pixels"] != other["image"]["pixels"]
    small = {"address": "golden", "content": encode(board(64, 48, 2))}
    with pytest.raises(Refused, match="the reference is 64x48, the picture 80x48"):
        apply({**row, "reference": small}, lambda *given: None)


def test_tiles_of_one_colour_are_left_out():
    whole = Image.new("RGB", (64, 32), (0, 90, 0))
    whole.paste(board(32, 32), (0, 0))
    refused: list[tuple[str, bool, str]] = []
    note = lambda one, address: refused.append((one.reason, one.wanted, one.message))  # noqa: E731
    assert len(tiles(whole, parts=note, size=32, overlap=0)) == 1
    assert refused == [("blank-tile", True, "the tile at 32, 0 has one colour")]
    assert len(tiles(whole, size=32, overlap=0, keep_blank=True)) == 2
    with pytest.raises(Refused, match="every tile"):
        tiles(Image.new("RGB", (64, 32)), size=32, overlap=0)


def test_an_overlap_of_a_whole_tile_is_no_spec():
    with pytest.raises(ValidationError, match="not smaller"):
        TileImageSpec(size=64, overlap=64)


def test_what_decides_stands_after_tiling_and_looks_at_tiles():
    tile, near, exact = (TILE, TileImageSpec()), (NEAR_IMAGES, NearSpec()), (EXACT, ExactDuplicatesSpec())
    given = ("picture", "image")
    assert "perceptual_hash" in check_chain(given, (tile, near), "pictures")
    with pytest.raises(EaglerayError, match="of one that near-duplicate-images looked at") as error:
        check_chain(given, (near, tile), "pictures")
    assert error.value.remedy == "put near-duplicate-images after it"
    with pytest.raises(EaglerayError, match="exact-duplicates needs picture"):
        check_chain(given, (tile, exact), "pictures")


def test_the_tiles_of_a_board_are_records_of_one_split(build, tmp_path):
    for number in range(12):
        (tmp_path / f"{number:02d}.png").write_bytes(encode(board(80, 48, number)))
    spec = {
        "source": {"kind": "pictures", "path": str(tmp_path)},
        "preparation": PREPARATION,
        "operators": [{"kind": "tile-image", "size": 48, "overlap": 16}],
        "splits": {"train": 0.5, "val": 0.2, "test": 0.3},
    }
    built = build(PreprocessSpec.model_validate(spec))
    split_of = {
        name: split
        for split in ("train", "val", "test")
        for name in open_split(built.folder, split).column("id")["id"].to_pylist()
    }
    assert sorted(split_of) == [f"{number:02d}.png#{part:04d}" for number in range(12) for part in range(2)]
    assert all(split_of[f"{i:02d}.png#0000"] == split_of[f"{i:02d}.png#0001"] for i in range(12))
    assert len(set(split_of.values())) == 3


def marked(mask: np.ndarray, *labels: str) -> dict:
    return {"labels": list(labels), "content": masks.encode(mask)}


def test_a_tile_has_its_part_of_the_mask():
    mask = np.zeros((70, 100), np.uint8)
    mask[10:20, 30:45], mask[60:70, 95:100] = 1, 2
    row = {"id": "b", "picture": {"address": "b.png", "content": encode(board(100, 70))}}
    row["mask"] = marked(mask, "crack", "chip")
    preparation = Preparation(image_size=32, stored_image_size=32)
    decoded = row | DECODE_IMAGE.begin(DecodeImageSpec(), preparation, None)(row, lambda *args: None)
    assert masks.decode(decoded["mask"]["content"]).shape == (32, 32)
    tiling = tile_image(TileImageSpec(size=32, overlap=12), preparation)
    for record in (row, decoded):  # decoded first, as a corpus does it, or not
        found = tiling(record, lambda *args: None)
        places = [(left, top) for top in (0, 20, 38) for left in (0, 20, 40, 60, 68)]
        assert len(found) == len(places)
        for tile, (left, top) in zip(found, places, strict=True):
            assert tile["mask"]["labels"] == ["crack", "chip"]
            part = masks.decode(tile["mask"]["content"])
            assert np.array_equal(part, mask[top : top + 32, left : left + 32])


def test_a_mask_of_another_size_than_its_picture_is_refused_and_a_turned_picture_counts_as_upright():
    preparation = Preparation(image_size=32, stored_image_size=32, fit="crop")
    decode = DECODE_IMAGE.begin(DecodeImageSpec(), preparation, None)
    whole = board(100, 70)
    exif = whole.getexif()
    exif[0x0112] = 6  # rows are columns
    buffer = io.BytesIO()
    whole.save(buffer, "JPEG", exif=exif)
    mask = np.zeros((100, 70), np.uint8)
    mask[:30] = 1
    row = {"picture": {"address": "b", "content": buffer.getvalue()}, "mask": marked(mask, "sky")}
    stored = masks.decode(decode(row, lambda *args: None)["mask"]["content"])
    assert stored[:6].all()  # 15 pixels are cut off above; of 70 that are left, 15 are marked
    assert not stored[8:].any()
    wrong = row | {"mask": marked(mask.T, "sky")}
    for apply in (decode, tile_image(TileImageSpec(size=32, overlap=0), preparation)):
        with pytest.raises(Refused, match="100x70, its picture 70x100") as refused:
            apply(wrong, lambda *args: None)
        assert refused.value.reason == "bad-mask"


def test_a_record_without_a_mask_gets_none():
    decode = DECODE_IMAGE.begin(DecodeImageSpec(), Preparation(), None)
    row = {"picture": {"address": "b", "content": encode(board(40, 40))}}
    assert set(decode(row, lambda *args: None)) == {"image"}
    assert set(decode(row | {"mask": None}, lambda *args: None)) == {"image"}
    assert decode({"picture": None, "mask": marked(np.ones((2, 2)), "a")}, lambda *args: None) == {
        "image": None,
        "mask": None,
    }
    assert all("mask" not in tile for tile in tiles(board(40, 40), size=32, overlap=0))


def test_a_share_of_the_tiles_without_marks_is_kept_always_the_same():
    mask = np.zeros((640, 640), np.uint8)
    mask[5, 5] = 1
    picture = {"address": "b", "content": encode(board(640, 640))}
    record = {"id": "b", "picture": picture, "mask": marked(mask, "crack")}

    def kept(share: float) -> list[bytes]:
        spec = TileImageSpec(size=32, overlap=0, unmarked_share=share, keep_blank=True)
        tiling = tile_image(spec, Preparation(image_size=32, stored_image_size=32))
        return [tile["mask"]["content"] for tile in tiling(record, lambda *args: None)]

    assert len(kept(1.0)) == 400
    assert [masks.decode(one).any() for one in kept(0.0)] == [True]
    some = kept(0.3)
    assert 80 < len(some) < 160
    assert some == kept(0.3)
