"""MVTec AD's layout: normal and defective pictures, masks, published splits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eagleray.pipelines.media import masks
from eagleray.pipelines.preparing import RECORD, REFUSAL
from eagleray.pipelines.sources import mvtec_ad
from eagleray.pipelines.sources.mvtec_ad import MvtecAdSpec
from eagleray.pipelines.spec import Splits
from eagleray.pipelines.splitting import split_of
from eagleray.pipelines.stages.preprocess import PreprocessSpec

from ..conftest import PREPARATION, png

SIZE = (40, 30)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for place in ("nut/train/good/000", "nut/train/good/001", "nut/test/good/000", "nut/test/crack/000",
                  "wood/train/good/000", "wood/test/hole/000"):  # fmt: skip
        path = tmp_path / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png((90, 20 + len(place), 9), SIZE))
    for place in ("nut/ground_truth/crack", "wood/ground_truth/hole"):
        mask = np.zeros((SIZE[1], SIZE[0]), np.uint8)
        mask[4:9, 10:12] = mask[20:22, 30:37] = 255
        (tmp_path / place).mkdir(parents=True)
        Image.fromarray(mask).save(tmp_path / place / "000_mask.png")
    (tmp_path / "readme.txt").write_text("MVTec AD")
    return tmp_path


def test_a_defect_has_a_mask_and_boxes_and_a_normal_picture_an_empty_mask(folder, read_source):
    reading = read_source(mvtec_ad.SOURCE, MvtecAdSpec(), folder)
    assert len(reading.records) == 6
    assert reading.refusals == []
    crack = reading.records["nut/test/crack/000.png"]
    assert crack["category"] == "defective"
    assert crack["mask"]["labels"] == ["crack"]
    assert masks.read(crack["mask"], *SIZE).sum() == 10 + 14
    assert crack["boxes"] == [
        {"label": "crack", "left": 10, "top": 4, "width": 2, "height": 5},
        {"label": "crack", "left": 30, "top": 20, "width": 7, "height": 2},
    ]
    good = reading.records["nut/test/good/000.png"]
    assert good["category"] == "normal"
    assert good["boxes"] == []
    assert not masks.read(good["mask"], *SIZE).any()


def test_groups_are_named_after_the_published_split(folder, read_source):
    reading = read_source(mvtec_ad.SOURCE, MvtecAdSpec(), folder)
    for name, row in reading.records.items():
        assert row["group"].startswith("train/" if "/train/" in name else "test/")
    assert len({row["group"] for row in reading.records.values()}) == 6


def test_one_objects_folder_and_a_choice_of_objects(folder, read_source):
    assert set(read_source(mvtec_ad.SOURCE, MvtecAdSpec(objects=("wood",)), folder).records) == {
        "wood/train/good/000.png",
        "wood/test/hole/000.png",
    }
    alone = read_source(mvtec_ad.SOURCE, MvtecAdSpec(), folder / "nut")
    assert alone.records["test/crack/000.png"]["group"] == "test/crack/000"
    assert alone.records["test/crack/000.png"]["category"] == "defective"


def test_a_defect_without_its_mask_and_a_mask_that_is_none_are_refused(folder, read_source):
    (folder / "nut/ground_truth/crack/000_mask.png").unlink()
    (folder / "wood/ground_truth/hole/000_mask.png").write_bytes(b"nothing")
    reading = read_source(mvtec_ad.SOURCE, MvtecAdSpec(), folder)
    assert len(reading.records) == 4
    assert reading.refusals == [
        ("nut/test/crack/000.png", "missing-file"),
        ("wood/test/hole/000.png", "bad-mask"),
    ]


def test_prepared_masks_have_the_stored_size_and_lie_in_the_published_splits(folder, prepare_source):
    mask = np.zeros((9, 9), np.uint8)
    Image.fromarray(mask).save(folder / "wood/ground_truth/hole/000_mask.png")  # not the picture's size
    source = {"kind": "mvtec-ad", "path": str(folder)}
    prepared = prepare_source(PreprocessSpec.model_validate({"source": source, "preparation": PREPARATION}))
    rows = {row["id"]: row for row in prepared if row["event"] == RECORD}
    assert len(rows) == 5
    assert [row["refusal"]["reason"] for row in prepared if row["event"] == REFUSAL] == ["bad-mask"]
    splits = Splits(by_group={"train/*": "train", "test/*": "test"})
    for name, row in rows.items():
        assert split_of(row["group"], splits) == ("train" if "/train/" in name else "test")
        marked = masks.decode(row["mask"]["content"], (20, 20))
        assert np.unique(marked).tolist() == ([0, 1] if row["category"] == "defective" else [0])
