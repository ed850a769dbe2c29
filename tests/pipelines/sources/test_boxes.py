"""Pictures with boxes: COCO's JSON and VOC's XML."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eagleray.pipelines.shards import open_split
from eagleray.pipelines.sources import coco, voc
from eagleray.pipelines.sources.coco import CocoSpec
from eagleray.pipelines.sources.voc import VocSpec
from eagleray.pipelines.stages.preprocess import PreprocessSpec
from eagleray.workflows.errors import EaglerayError

from ..conftest import PREPARATION, png


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    for name in ("a", "b", "c"):
        for place in ("images", "JPEGImages"):
            (folder / place).mkdir(parents=True, exist_ok=True)
            (folder / place / f"{name}.png").write_bytes(png((90, ord(name), 9)))
    (folder / "annotations").mkdir()
    (folder / "Annotations").mkdir()
    return folder


def write_coco(folder: Path, boxes: list[tuple[int, int, list[float]]]) -> None:
    images = [
        {"id": i, "file_name": f"{name}.png", "width": 40, "height": 30} for i, name in enumerate("abc")
    ]
    images.append({"id": 3, "file_name": "gone.png", "width": 1, "height": 1})
    annotations = [{"image_id": i, "category_id": label, "bbox": box} for i, label, box in boxes]
    categories = [{"id": 7, "name": "disc"}, {"id": 8, "name": "dot"}]
    instances = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations/instances.json").write_text(json.dumps(instances))
    said = [{"image_id": 0, "caption": "One."}, {"image_id": 0, "caption": "Two."}]
    (folder / "annotations/captions.json").write_text(json.dumps({"images": images, "annotations": said}))


def test_coco_gives_boxes_labels_and_captions(folder, read_source):
    write_coco(
        folder, [(0, 7, [1, 2, 30, 20]), (0, 7, [0, 0, 5, 5]), (0, 8, [3, 3, 1, 1]), (1, 8, [0, 0, 40, 30])]
    )
    spec = CocoSpec(captions="annotations/captions.json", category="most-frequent")
    reading = read_source(coco.SOURCE, spec, folder)
    first = reading.records["images/a.png"]
    assert first["boxes"][0] == {"label": "disc", "left": 1, "top": 2, "width": 30, "height": 20}
    assert [box["label"] for box in first["boxes"]] == ["disc", "disc", "dot"]
    assert first["category"] == "disc"
    assert [one["text"] for one in first["captions"]] == ["One.", "Two."]
    assert reading.records["images/c.png"]["boxes"] == []
    assert reading.records["images/c.png"]["category"] is None
    assert reading.refusals == [("images/gone.png", "missing-file")]


@pytest.mark.parametrize("box", [[0, 0, 0, 5], [0, 0, 5, -1], [30, 0, 20, 5], [-5, 0, 9, 9], [0, 25, 5, 9]])
def test_a_box_that_is_none_is_refused_and_the_others_stay(folder, read_source, box):
    write_coco(folder, [(0, 7, box), (0, 7, [1, 1, 2, 2])])
    reading = read_source(coco.SOURCE, CocoSpec(), folder)
    assert len(reading.records["images/a.png"]["boxes"]) == 1
    assert ("images/a.png", "bad-box") in reading.refusals


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}"])
def test_what_is_no_coco_file_says_so(folder, read_source, content):
    (folder / "annotations/instances.json").write_bytes(content)
    with pytest.raises(EaglerayError, match="is no COCO file"):
        read_source(coco.SOURCE, CocoSpec(), folder)


def annotation(*boxes: tuple[str, int, int, int, int]) -> str:
    objects = "".join(
        f"<object><name>{n}</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax></bndbox></object>"
        for n, a, b, c, d in boxes
    )
    return f"<annotation><size><width>40</width><height>30</height></size>{objects}</annotation>"


def test_voc_counts_pixels_from_one(folder, read_source):
    (folder / "Annotations/a.xml").write_text(annotation(("dog", 1, 1, 40, 30), ("cat", 5, 6, 5, 6)))
    reading = read_source(voc.SOURCE, VocSpec(), folder)
    assert reading.records["JPEGImages/a.png"]["boxes"] == [
        {"label": "dog", "left": 0, "top": 0, "width": 40, "height": 30},
        {"label": "cat", "left": 4, "top": 5, "width": 1, "height": 1},
    ]
    assert reading.records["JPEGImages/b.png"]["boxes"] == []
    assert reading.refusals == []


BOMB = """<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;&a;">]>
<annotation><object><name>&b;</name></object></annotation>"""


@pytest.mark.parametrize(
    ("content", "reason"),
    [("<annotation>", "corrupt-annotation"), (BOMB, "corrupt-annotation"),
     (annotation(("dog", 9, 9, 3, 3)), "bad-box"), (annotation(("dog", 1, 1, 99, 9)), "bad-box"),
     ("<annotation><object><name>x</name></object></annotation>", "bad-box")],
)  # fmt: skip
def test_a_broken_annotation_leaves_the_picture(folder, read_source, content, reason):
    (folder / "Annotations/a.xml").write_text(content)
    (folder / "Annotations/gone.xml").write_text(annotation())
    reading = read_source(voc.SOURCE, VocSpec(), folder)
    assert reading.records["JPEGImages/a.png"]["boxes"] == []
    assert sorted(reading.refusals) == [
        ("Annotations/a.xml", reason),
        ("Annotations/gone.xml", "missing-file"),
    ]


def test_boxes_lie_in_the_corpus(folder, build):
    write_coco(folder, [(0, 7, [1, 2, 30, 20])])
    source = {"kind": "coco", "path": str(folder)}
    spec = {
        "source": source,
        "preparation": PREPARATION,
        "error_budget": 1,
        "splits": {"train": 1, "val": 0, "test": 0},
    }
    built = build(PreprocessSpec.model_validate(spec))
    rows = open_split(built.folder, "train").column("id", "boxes").to_pylist()
    assert rows[0] == {
        "id": "images/a.png",
        "boxes": [{"label": "disc", "left": 1.0, "top": 2.0, "width": 30.0, "height": 20.0}],
    }
