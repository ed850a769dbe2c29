"""Records from tables: Parquet files, and datasets saved to disk."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eagleray.pipelines.sources import huggingface, parquet
from eagleray.pipelines.sources.huggingface import HuggingfaceSpec
from eagleray.pipelines.sources.parquet import ParquetSpec
from eagleray.workflows.errors import EaglerayError

from ..conftest import png, sound

FILE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
TABLE = pa.table(
    {
        "key": [f"k{i}" for i in range(150)],
        "image": pa.array(
            [{"bytes": png((i, 0, 0)), "path": f"{i}.png"} if i != 7 else None for i in range(150)], FILE
        ),
        "said": [[f"Number {i}.", "One more."] if i % 2 else None for i in range(150)],
        "audio": pa.array([sound(200, 0.05, "WAV") if i < 3 else None for i in range(150)], pa.binary()),
        "label": list(range(150)),
        "who": ["ann", "bob", None] * 50,
    }
)
OPTIONS = {
    "id_column": "key",
    "group_column": "who",
    "category_column": "label",
    "picture_column": "image",
    "caption_columns": (("en", "said"),),
    "recording_columns": (("fr", "audio"),),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


def write_stream(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        for batch in table.to_batches(max_chunksize=100):
            writer.write_batch(batch)


def check(reading) -> None:
    assert list(reading.records) == [f"k{i}" for i in range(150)]
    assert reading.records["k7"]["picture"] is None
    row = reading.records["k1"]
    assert row["picture"]["content"] == png((1, 0, 0))
    assert row["captions"] == [{"language": "en", "text": text} for text in ("Number 1.", "One more.")]
    assert row["category"] == "1"
    assert row["group"] == "bob"
    assert [one["language"] for one in row["recordings"]] == ["fr"]
    assert reading.records["k10"]["captions"] == reading.records["k10"]["recordings"] == []
    assert reading.refusals == []


def test_parquet_is_read_by_row_groups(folder, read_source):
    pq.write_table(TABLE, folder / "a.parquet", row_group_size=70)
    reading = read_source(parquet.SOURCE, ParquetSpec(**OPTIONS), folder)
    assert [unit.name for unit in reading.units] == [f"a.parquet:{i:06d}" for i in range(3)]
    check(reading)


def test_a_saved_dataset_is_read_as_its_stream(folder, read_source):
    write_stream(folder / "train/data-00000-of-00001.arrow", TABLE)
    write_stream(folder / "test/data-00000-of-00001.arrow", TABLE)
    write_stream(folder / "train/cache-0123.arrow", TABLE)
    check(read_source(huggingface.SOURCE, HuggingfaceSpec(splits=("train",), **OPTIONS), folder))


def test_without_ids_rows_have_their_place(folder, read_source):
    pq.write_table(TABLE, folder / "a.parquet", row_group_size=70)
    records = read_source(parquet.SOURCE, ParquetSpec(text_column="key"), folder).records
    assert list(records) == [f"a.parquet#{i}" for i in range(150)]
    assert records["a.parquet#149"]["text"] == "k149"


@pytest.mark.parametrize(
    ("options", "cause"), [({}, "names no column"), ({"text_column": "body"}, "no column 'body'")]
)
def test_a_column_that_is_not_there_is_told_with_those_that_are(folder, read_source, options, cause):
    pq.write_table(TABLE, folder / "a.parquet")
    with pytest.raises(EaglerayError, match=cause) as error:
        read_source(parquet.SOURCE, ParquetSpec(**options), folder)
    assert "key, image, said" in error.value.remedy


def test_a_broken_table_is_refused_and_the_others_are_read(folder, read_source):
    pq.write_table(TABLE, folder / "a.parquet")
    (folder / "b.parquet").write_bytes((folder / "a.parquet").read_bytes()[:-50])
    reading = read_source(parquet.SOURCE, ParquetSpec(text_column="key"), folder)
    assert len(reading.records) == 150
    assert reading.refusals == [("b.parquet", "corrupt-table")]


def test_a_stream_that_breaks_off_keeps_what_came_before(folder, read_source):
    write_stream(folder / "whole.arrow", TABLE)
    (folder / "cut.arrow").write_bytes((folder / "whole.arrow").read_bytes()[:-6000])
    (folder / "none.arrow").write_bytes(b"no stream")
    (folder / "whole.arrow").unlink()
    reading = read_source(huggingface.SOURCE, HuggingfaceSpec(text_column="key"), folder)
    assert list(reading.records) == [f"cut.arrow#{i}" for i in range(100)]
    assert sorted(reading.refusals) == [("cut.arrow", "corrupt-table"), ("none.arrow", "corrupt-table")]


def test_a_row_without_anything_is_refused(folder, read_source):
    pq.write_table(TABLE, folder / "a.parquet")
    reading = read_source(parquet.SOURCE, ParquetSpec(picture_column="image"), folder)
    assert len(reading.records) == 149
    assert reading.refusals == [("a.parquet#7", "empty-record")]


def test_what_is_no_picture_column_is_refused_row_by_row(folder, read_source):
    pq.write_table(TABLE, folder / "a.parquet")
    reading = read_source(parquet.SOURCE, ParquetSpec(picture_column="key"), folder)
    assert not reading.records
    assert {reason for _, reason in reading.refusals} == {"not-bytes"}


def test_a_class_has_its_name(read_source, folder):
    described = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    table = pa.table({"label": [1, 0, None, -1], "text": ["a", "b", "c", "d"]})
    write_stream(folder / "data.arrow", table.replace_schema_metadata({"huggingface": json.dumps(described)}))
    spec = HuggingfaceSpec(text_column="text", category_column="label")
    reading = read_source(huggingface.SOURCE, spec, folder)
    assert [record["category"] for record in reading.records.values()] == ["dog", "cat", None, None]
