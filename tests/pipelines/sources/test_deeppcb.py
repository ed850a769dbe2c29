"""DeepPCB: scans, templates, boxes, published splits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eagleray.pipelines.media import masks
from eagleray.pipelines.sources import deeppcb
from eagleray.pipelines.sources.deeppcb import KINDS, DeepPcbSpec

SIZE = (80, 60)
STEM = "PCBData/group00041/00041/{}"


def template() -> np.ndarray:
    """A trace and a pad, white on black."""
    picture = np.zeros((SIZE[1], SIZE[0]), np.uint8)
    picture[20:26, 5:75] = picture[40:50, 30:40] = 255
    return picture


def write_scan(folder: Path, name: str, scan: np.ndarray, lines: str) -> None:
    stem = folder / STEM.format(name)
    stem.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(scan).save(f"{stem}_test.jpg", quality=95)
    Image.fromarray(template()).save(f"{stem}_temp.jpg", quality=95)
    notes = folder / f"PCBData/group00041/00041_not/{name}.txt"
    notes.parent.mkdir(exist_ok=True)
    notes.write_text(lines)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    scan = template()
    scan[20:26, 40:46] = 0  # an open
    scan[5:9, 60:66] = 255  # spurious copper
    write_scan(tmp_path, "00041000", scan, "36 18 50 28 1\n58,3,68,11,5\n")
    write_scan(tmp_path, "00041001", template(), "36 18 50 28 6\n")
    lists = tmp_path / "PCBData"
    lists.joinpath("trainval.txt").write_text(
        "group00041/00041/00041000.jpg group00041/00041_not/00041000.txt\n"
    )
    lists.joinpath("test.txt").write_text("group00041/00041/00041001.jpg group00041/00041_not/00041001.txt\n")
    return tmp_path


def test_a_scan_has_boxes_and_a_mask_of_what_differs_in_them(folder, read_source):
    reading = read_source(deeppcb.SOURCE, DeepPcbSpec(), folder)
    assert reading.refusals == []
    record = reading.records[f"{STEM.format('00041000')}_test.jpg"]
    assert record["boxes"] == [
        {"label": "open", "left": 36, "top": 18, "width": 14, "height": 10},
        {"label": "spurious-copper", "left": 58, "top": 3, "width": 10, "height": 8},
    ]
    assert record["category"] == "defective"
    assert record["mask"]["labels"] == list(KINDS)
    mask = masks.read(record["mask"], *SIZE)
    expected = np.zeros_like(mask)
    expected[20:26, 40:46], expected[5:9, 60:66] = 1, 5
    assert np.count_nonzero(mask != expected) <= 12  # JPEG rounds edges off
    assert set(np.unique(mask)) == {0, 1, 5}


def test_a_box_in_which_nothing_differs_is_marked_whole(folder, read_source):
    record = read_source(deeppcb.SOURCE, DeepPcbSpec(), folder).records[f"{STEM.format('00041001')}_test.jpg"]
    mask = masks.read(record["mask"], *SIZE)
    assert (mask[18:28, 36:50] == 6).all()
    assert np.count_nonzero(mask) == 10 * 14


def test_templates_are_normal_and_share_their_scans_split(folder, read_source):
    reading = read_source(deeppcb.SOURCE, DeepPcbSpec(), folder)
    for name, split in (("00041000", "train"), ("00041001", "test")):
        scan, normal = (reading.records[f"{STEM.format(name)}_{one}.jpg"] for one in ("test", "temp"))
        assert scan["group"] == normal["group"] == f"{split}/group00041/{name}"
        assert scan["reference"]["content"] == normal["picture"]["content"] == normal["reference"]["content"]
        assert normal["category"] == "normal"
        assert normal["boxes"] == []
        assert not masks.read(normal["mask"], *SIZE).any()
    assert len(read_source(deeppcb.SOURCE, DeepPcbSpec(templates=False), folder).records) == 2


def test_a_board_is_one_group_if_asked_for_or_if_no_list_names_it(folder, read_source):
    reading = read_source(deeppcb.SOURCE, DeepPcbSpec(groups="board"), folder)
    assert {row["group"] for row in reading.records.values()} == {"group00041"}
    for name in ("trainval.txt", "test.txt"):
        (folder / "PCBData" / name).unlink()
    reading = read_source(deeppcb.SOURCE, DeepPcbSpec(), folder)
    assert {row["group"] for row in reading.records.values()} == {"group00041"}


@pytest.mark.parametrize("line", ["1 2 3 4", "1 2 9 9 7", "1 2 9 9 0", "9 9 1 2 1", "1 2 500 9 1", "what"])
def test_a_line_that_is_no_box_is_refused_and_the_others_stay(folder, read_source, line):
    scan = "00041000"
    write_scan(folder, scan, template(), f"{line}\n36 18 50 28 2\n\n")
    reading = read_source(deeppcb.SOURCE, DeepPcbSpec(), folder)
    assert [box["label"] for box in reading.records[f"{STEM.format(scan)}_test.jpg"]["boxes"]] == ["short"]
    assert reading.refusals == [("PCBData/group00041/00041_not/00041000.txt", "bad-box")]


def test_a_scan_without_its_template_or_of_another_size_is_refused(folder, read_source):
    first, second = (folder / f"{STEM.format(name)}_temp.jpg" for name in ("00041000", "00041001"))
    first.unlink()
    Image.new("L", (9, 9)).save(second)
    reading = read_source(deeppcb.SOURCE, DeepPcbSpec(), folder)
    assert reading.records == {}
    assert reading.refusals == [
        (f"{STEM.format('00041000')}_test.jpg", "missing-file"),
        (f"{STEM.format('00041001')}_test.jpg", "bad-template"),
    ]
