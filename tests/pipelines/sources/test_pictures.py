"""A folder of pictures with a table of captions."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eagleray.pipelines.sources.pictures import SOURCE, PicturesSpec
from eagleray.workflows.errors import EaglerayError

from ..conftest import png

ROWS = [
    {"path": "cats/a.png", "caption": 'A cat, "asleep".', "gato": "Un gato", "who": "p1"},
    {"path": "cats/b.PNG", "caption": "Another cat\nin two lines", "gato": "", "who": "p2"},
    {"path": "dogs/c.png", "caption": "A dog", "gato": "Un perro", "who": "p1"},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    for row in ROWS:
        path = folder / row["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png())
    (folder / "notes.txt").write_text("no picture")
    return folder


def write_table(folder: Path, name: str) -> None:
    path = folder / name
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif name.endswith(".jsonl"):
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    else:
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, ROWS[0], delimiter="\t" if name.endswith("tsv") else ",")
            writer.writeheader()
            writer.writerows(ROWS)


@pytest.mark.parametrize("name", ["captions.csv", "captions.tsv", "captions.jsonl", "captions.parquet"])
def test_a_table_of_any_kind_gives_the_same_captions(folder, read_source, name):
    write_table(folder, name)
    spec = PicturesSpec(
        captions=name, caption_columns=(("en", "caption"), ("es", "gato")), group_column="who"
    )
    records = read_source(SOURCE, spec, folder).records
    assert list(records) == [row["path"] for row in ROWS]
    for row in ROWS:
        record = records[row["path"]]
        assert record["captions"] == [
            {"language": language, "text": row[column]}
            for language, column in (("en", "caption"), ("es", "gato"))
            if row[column]
        ]
        assert record["group"] == row["who"]
        assert record["category"] == row["path"].split("/")[0]
        assert record["picture"] == {"address": row["path"], "content": (folder / row["path"]).read_bytes()}


def test_several_rows_are_several_captions(folder, read_source):
    lines = ["path,caption", "cats/a.png,One.", "cats/a.png,Two."]
    (folder / "captions.csv").write_text("\n".join(lines))
    records = read_source(SOURCE, PicturesSpec(captions="captions.csv"), folder).records
    assert [one["text"] for one in records["cats/a.png"]["captions"]] == ["One.", "Two."]
    assert len(records) == 1


def test_without_a_table_there_are_pictures_without_captions(folder, read_source):
    records = read_source(SOURCE, PicturesSpec(category="none"), folder).records
    assert len(records) == 3
    assert all(record["captions"] == [] and record["category"] is None for record in records.values())


def test_what_a_table_names_and_is_not_there_is_refused_and_so_are_links_out(folder, read_source, tmp_path):
    (tmp_path / "secret.png").write_bytes(png())
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    lines = ["path,caption", "cats/a.png,A cat", "gone.png,Gone", "../secret.png,Up", "link.png,Link"]
    (folder / "captions.csv").write_text("\n".join(lines))
    reading = read_source(SOURCE, PicturesSpec(captions="captions.csv"), folder)
    assert list(reading.records) == ["cats/a.png"]
    assert sorted(reading.refusals) == [
        ("../secret.png", "missing-file"),
        ("gone.png", "missing-file"),
        ("link.png", "link-outside"),
    ]


def test_a_table_without_the_column_names_those_it_has(folder, read_source):
    (folder / "captions.csv").write_text("file,text\na,b\n")
    with pytest.raises(
        EaglerayError, match=r"row 1 of captions\.csv has no caption, path; it has file, text"
    ):
        read_source(SOURCE, PicturesSpec(captions="captions.csv"), folder)


@pytest.mark.parametrize("content", [b"path,caption\na.png,\xff\n", b"\x00"])
def test_a_table_that_is_no_table_is_one_error(folder, read_source, content):
    (folder / "captions.csv").write_bytes(content)
    with pytest.raises(EaglerayError, match=r"captions\.csv"):
        read_source(SOURCE, PicturesSpec(captions="captions.csv"), folder)


def test_a_changed_caption_is_another_unit_and_no_other_is(folder, tmp_path):
    from eagleray.pipelines.files import Files

    def keys():
        files = Files(str(folder), tmp_path / "digests")
        units = SOURCE.list_units(PicturesSpec(captions="captions.csv"), files)
        return {unit.name: unit.key(files) for unit in units}

    write_table(folder, "captions.csv")
    before = keys()
    text = (folder / "captions.csv").read_text(encoding="utf-8")
    (folder / "captions.csv").write_text(text.replace("A dog", "The dog"), encoding="utf-8")
    after = keys()
    assert {name for name in before if before[name] != after[name]} == {"dogs/c.png"}
