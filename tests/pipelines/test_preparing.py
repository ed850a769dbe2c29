"""Preparing units: in this process, and on Ray Data."""

from __future__ import annotations

import json
import time

import pyarrow as pa
import pytest

from eagleray.pipelines import preparing
from eagleray.pipelines.files import Files
from eagleray.pipelines.operator import Operator, OperatorSpec
from eagleray.pipelines.preparing import END, RECORD, REFUSAL, UNITS, Recipe
from eagleray.pipelines.quarantine import Refused
from eagleray.pipelines.source import Source, SourceSpec, Unit
from eagleray.pipelines.spec import Preparation
from eagleray.workflows.errors import EaglerayError


class CountSpec(SourceSpec):
    kind: str = "count"


class ChangeSpec(OperatorSpec):
    kind: str = "change"


for spec in (CountSpec, ChangeSpec):
    spec.__module__ = "__main__"  # workers get the class itself: tests are no package


@pytest.fixture
def recipe(tmp_path):
    """A recipe of a source that counts, with an operator."""

    def make(read, apply=lambda row, refuse: None, gives=("category",), own=None) -> Recipe:
        source = Source(CountSpec, "counts", lambda spec: ("category",), lambda spec, files: iter(()), read)
        operator = Operator(
            spec=ChangeSpec,
            summary="changes",
            needs=lambda spec: (),
            start=lambda spec, preparation: apply,
            gives=lambda spec: gives,
            own=lambda spec: own or {},
        )
        chain = ((operator, ChangeSpec()),)
        return Recipe(source, CountSpec(), Files(str(tmp_path), tmp_path), chain, Preparation())

    return make


def units(*names: str) -> pa.Table:
    rows = [Unit(name, (f"{name}.txt",), {"name": name}) for name in names]
    return pa.Table.from_pylist(
        [
            {
                "key": one.name.encode().ljust(16),
                "name": one.name,
                "files": one.files,
                "fields": json.dumps(one.fields),
            }
            for one in rows
        ],
        UNITS,
    )


def count(spec, files, unit, preparation, refuse):
    yield from ({"id": f"{unit.name}{i}", "category": str(i)} for i in range(3))


def rows_of(units: pa.Table, recipe: Recipe) -> list[dict]:
    return [row for block in preparing.prepare(units, recipe) for row in block.to_pylist()]


def test_records_come_with_their_place_and_every_unit_has_an_end(recipe):
    rows = rows_of(units("a", "b"), recipe(count))
    assert [(row["event"], row["id"], row["row"]) for row in rows] == [
        *((RECORD, f"a{i}", i) for i in range(3)),
        (END, None, 3),
        *((RECORD, f"b{i}", i) for i in range(3)),
        (END, None, 3),
    ]
    assert {row["unit"] for row in rows} == {b"a".ljust(16), b"b".ljust(16)}


def test_a_refused_record_is_a_row_with_its_reason_and_still_counts(recipe):
    def apply(row, refuse):
        if row["id"] == "a1":
            raise Refused("odd", "1 is odd", wanted=True)

    rows = rows_of(units("a"), recipe(count, apply))
    assert [row["event"] for row in rows] == [RECORD, REFUSAL, RECORD, END]
    assert rows[1]["refusal"] == {
        "id": "a1", "address": "a.txt", "operator": "change", "reason": "odd", "message": "1 is odd",
        "wanted": True, "whole": True, "size_bytes": -1, "content": None,
    }  # fmt: skip
    assert rows[3]["row"] == 3


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Refused("torn", "it is torn"), "torn"),
        (OSError(5, "gone"), "unreadable-file"),
        (KeyError("x"), "failed"),
    ],
)
def test_a_unit_that_breaks_off_keeps_what_came_before(recipe, error, reason):
    def read(spec, files, unit, preparation, refuse):
        yield {"id": "first", "category": "0"}
        raise error

    rows = rows_of(units("a", "b"), recipe(read))
    assert [row["event"] for row in rows] == [RECORD, REFUSAL, END] * 2
    assert {row["refusal"]["reason"] for row in rows if row["event"] == REFUSAL} == {reason}


def test_a_part_that_is_refused_leaves_the_record(recipe):
    def apply(row, refuse):
        refuse(Refused("torn", "it is torn"), "side.wav", b"1234")

    rows = rows_of(units("a"), recipe(count, apply))
    assert sum(row["event"] == RECORD for row in rows) == 3
    refused = [row["refusal"] for row in rows if row["event"] == REFUSAL]
    assert [(one["whole"], one["address"], one["size_bytes"], one["content"]) for one in refused] == [
        (False, "side.wav", 4, b"1234")
    ] * 3


def test_one_record_can_become_several(recipe):
    def apply(row, refuse):
        return [{"category": f"{row['category']}.{i}"} for i in range(2)]

    rows = rows_of(units("a"), recipe(count, apply))
    assert [row["id"] for row in rows[:-1]] == [f"a{i}#{j:04d}" for i in range(3) for j in range(2)]
    assert [row["row"] for row in rows] == [*range(6), 6]
    assert [row["group"] for row in rows[:-1]] == [f"id a{i}" for i in range(3) for _ in range(2)]


def test_a_value_of_another_type_is_shown_with_the_record_and_who_gave_it(recipe):
    def apply(row, refuse):
        return {"category": 7 if row["id"] == "a1" else "fine"}

    with pytest.raises(EaglerayError) as error:
        rows_of(units("a"), recipe(count, apply))
    assert "the operator change gave category = 7 to the record a1, declared is string" in error.value.cause


def test_a_value_that_does_not_fit_an_own_column_is_shown(recipe):
    with pytest.raises(
        EaglerayError, match="the operator change gave hash = -1 to the record a0, declared is uint64"
    ):
        rows_of(units("a"), recipe(count, lambda row, refuse: {"hash": -1}, (), {"hash": "uint64"}))


def test_memory_holds_a_block_at_a_time_however_large_the_unit(recipe):
    alive = 0

    def read(spec, files, unit, preparation, refuse):
        nonlocal alive
        for i in range(5000):
            alive += 1
            yield {"id": str(i), "category": "x"}

    for block in preparing.prepare(units("a"), recipe(read)):
        assert alive <= preparing.BLOCK_ROWS
        alive = 0
        assert block.num_rows <= preparing.BLOCK_ROWS


def test_what_is_ready_is_not_kept_back_by_what_was_listed_before_it(ray_cluster, recipe, tmp_path):
    def read(spec, files, unit, preparation, refuse):
        ready = tmp_path / "the last one is ready"
        while unit.name == "0" and not ready.exists():
            time.sleep(1)
        yield {"id": unit.name, "category": None}
        ready.touch()

    blocks = list(preparing.run(units("0", "1"), recipe(read), parallelism=2, block_units=1))
    assert [block["id"].drop_null().to_pylist() for block in blocks] == [["1"], ["0"]]


@pytest.mark.parametrize(("num_units", "tasks"), [(1, 1), (3, 8), (1000, 4), (50_000, 4), (1_000_000, 64)])
def test_every_unit_is_in_one_block_and_the_last_blocks_are_small(num_units, tasks):
    sizes = preparing._sizes(num_units, tasks)
    assert sum(sizes) == num_units
    assert sizes == sorted(sizes, reverse=True)
    assert max(sizes) <= preparing.MAX_BLOCK_UNITS
    assert len(sizes) <= num_units / preparing.MAX_BLOCK_UNITS + 20 * tasks


def test_no_units_need_no_cluster(recipe):
    assert list(preparing.run(units(), recipe(count), None, 1)) == []
