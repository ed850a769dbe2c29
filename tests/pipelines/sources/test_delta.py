"""Delta tables: a version's files, partitions, growth, and what a file alone can't say."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from eagleray.pipelines.sources.delta import SOURCE, DeltaSpec
from eagleray.pipelines.stages.preprocess import PreprocessSpec
from eagleray.workflows.errors import EaglerayError

SPEC = DeltaSpec(id_column="key", text_column="text", category_column="day", group_column="who")


def rows(start: int, stop: int) -> pa.Table:
    numbers = range(start, stop)
    return pa.table(
        {
            "key": [f"k{i}" for i in numbers],
            "text": [f"text number {i}" for i in numbers],
            "who": [f"w{i % 5}" for i in numbers],
            "day": ["mon day" if i % 2 else None for i in numbers],
        }
    )


@pytest.fixture
def table(tmp_path: Path) -> Path:
    folder = tmp_path / "table"
    write_deltalake(str(folder), rows(0, 10), partition_by=["day"])
    return folder


def test_the_newest_version_is_read_with_its_partitions(read_source, table):
    write_deltalake(str(table), rows(10, 16), mode="append")
    DeltaTable(str(table)).delete("key = 'k3'")
    reading = read_source(SOURCE, SPEC, table)
    assert reading.refusals == []
    assert set(reading.records) == {f"k{i}" for i in range(16) if i != 3}
    assert reading.records["k5"]["category"] == "mon day"
    assert reading.records["k4"]["category"] is None
    assert reading.records["k4"]["group"] == "w4"


def test_an_older_version_can_be_named(read_source, table):
    write_deltalake(str(table), rows(10, 16), mode="overwrite")
    assert set(read_source(SOURCE, SPEC, table).records) == {f"k{i}" for i in range(10, 16)}
    old = SPEC.model_copy(update={"version": 0})
    assert set(read_source(SOURCE, old, table).records) == {f"k{i}" for i in range(10)}
    with pytest.raises(EaglerayError, match="can't be opened"):
        read_source(SOURCE, SPEC.model_copy(update={"version": 9}), table)


def test_a_table_that_grew_is_read_where_it_grew(build, table):
    options = SPEC.model_dump(exclude_unset=True) | {"kind": "delta", "path": str(table)}
    fields = {"source": options, "preparation": {"vocab_size": 300}}
    before = build(PreprocessSpec.model_validate(fields))
    write_deltalake(str(table), rows(10, 12), mode="append")
    after = build(PreprocessSpec.model_validate(fields), earlier=before)
    fresh = build(PreprocessSpec.model_validate(fields))
    assert (before.num_prepared, after.num_prepared, fresh.num_prepared) == (2, 2, 4)
    assert after.contents == fresh.contents


def test_a_file_that_was_vacuumed_is_refused(read_source, table):
    gone = next(table.glob("day=mon*/*.parquet"))
    gone.unlink()
    reading = read_source(SOURCE, SPEC, table)
    assert [reason for _, reason in reading.refusals] == ["missing-file"]
    assert set(reading.records) == {f"k{i}" for i in range(0, 10, 2)}


@pytest.mark.parametrize("feature", ["deletionVectors", "columnMapping"])
def test_a_table_whose_files_say_something_else_is_refused(read_source, table, feature):
    log = table / "_delta_log" / "00000000000000000000.json"
    actions = [json.loads(line) for line in log.read_text().splitlines()]
    for action in actions:
        if "protocol" in action:
            features = {"readerFeatures": [feature], "writerFeatures": [feature]}
            action["protocol"] = {"minReaderVersion": 3, "minWriterVersion": 7, **features}
        if "metaData" in action and feature == "columnMapping":
            action["metaData"]["configuration"]["delta.columnMapping.mode"] = "name"
    log.write_text("\n".join(map(json.dumps, actions)))
    with pytest.raises(EaglerayError, match=r"deletion vectors|column mapping|can't be opened"):
        read_source(SOURCE, SPEC, table)


def test_what_is_no_delta_table_is_refused(read_source, tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(EaglerayError, match="no _delta_log"):
        read_source(SOURCE, SPEC, tmp_path / "x")


def test_a_table_in_object_storage_is_read(read_source, table, s3_uri):
    from eagleray.workflows.filesystem import open_filesystem

    uri = s3_uri()
    remote, root = open_filesystem(uri)
    for path in table.rglob("*"):
        if path.is_file():
            with remote.open_output_stream(f"{root}/{path.relative_to(table)}") as stream:
                stream.write(path.read_bytes())
    assert len(read_source(SOURCE, SPEC, uri).records) == 10
