from __future__ import annotations

import json
from collections.abc import Mapping
from enum import Enum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_stages.text import WriteSpec
from workflow_harness import KINDS

from eagleray.workflows.fingerprint import changes, digest_of, fingerprint, identity
from eagleray.workflows.spec import Spec

WRITE = KINDS["write"]
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "text": st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    "times": st.integers(1, 1000),
    "ratio": st.floats(allow_nan=False, allow_infinity=False),
    "size": st.sampled_from(["small", "large"]),
    "tags": st.lists(st.text("ab", max_size=3), max_size=3),
    "limits": st.dictionaries(st.text("ab", max_size=3), st.integers(), max_size=3),
    "shape": st.fixed_dictionaries({"kind": st.just("circle"), "radius": st.floats(0, 9)}),
    "options": st.fixed_dictionaries({"depth": st.integers(1, 9)}),
}
SPECS = st.fixed_dictionaries({}, optional=FIELDS).map(WriteSpec.model_validate)
RUNTIME = st.fixed_dictionaries(
    {
        "workers": st.integers(1, 99),
        "outside": st.text("ab"),
        "run": st.fixed_dictionaries({"retries": st.integers(0, 9), "num_cpus": st.floats(0.1, 9)}),
    }
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text("ab", max_size=2),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=2),
    max_leaves=6,
)


def mark(spec: WriteSpec, inputs: Mapping[str, str] | None = None, outside: str | None = None) -> str:
    return fingerprint(WRITE, spec, inputs or {}, outside)


def test_the_fingerprint_of_a_known_stage_stays_what_it_is() -> None:
    # Who changes this hash makes everyone train anew: raise FORMAT, and say so in the changelog.
    spec = WriteSpec(text="é", times=3, ratio=1.0, tags=("b", "a"), limits={"y": 1, "x": 2})
    assert (
        mark(spec, {"corpus": "f0"}, "d0")
        == "85ab6958f0a058773d16cac714f9aa316b700fd220d98d064999f10ed526d7c8"
    )


@given(SPECS, RUNTIME)
def test_how_a_stage_runs_is_no_part_of_what_it_makes(spec: WriteSpec, runtime: dict[str, Any]) -> None:
    other = WriteSpec.model_validate({**spec.model_dump(), **runtime})
    lanes = spec.options.model_copy(update={"lanes": 7})
    assert mark(other) == mark(spec) == mark(spec.model_copy(update={"options": lanes}))


@given(SPECS, SPECS)
def test_two_specs_have_one_fingerprint_only_if_they_say_the_same(one: WriteSpec, other: WriteSpec) -> None:
    assert (mark(one) == mark(other)) == (one == other)


@given(SPECS, st.sampled_from(sorted(FIELDS)), st.data())
def test_changing_any_field_changes_the_fingerprint(spec: WriteSpec, name: str, data: st.DataObject) -> None:
    value = data.draw(FIELDS[name])
    other = WriteSpec.model_validate({**spec.model_dump(), name: value})
    same = getattr(other, name) == getattr(spec, name)
    assert (mark(other) == mark(spec)) == same
    assert bool(changes(identity(spec), identity(other))) != same


@given(SPECS)
def test_a_spec_that_was_stored_as_json_has_the_same_fingerprint(spec: WriteSpec) -> None:
    assert mark(WriteSpec.model_validate_json(spec.model_dump_json())) == mark(spec)
    assert digest_of(json.loads(json.dumps(identity(spec)))) == digest_of(identity(spec))


@given(st.dictionaries(st.text("abc"), st.integers(), min_size=1), st.randoms())
def test_the_order_of_keys_decides_nothing(limits: dict[str, int], random: Any) -> None:
    shuffled = list(limits.items())
    random.shuffle(shuffled)
    assert mark(WriteSpec(limits=dict(shuffled))) == mark(WriteSpec(limits=limits))


def test_the_order_of_a_list_decides_something() -> None:
    assert mark(WriteSpec(tags=("a", "b"))) != mark(WriteSpec(tags=("b", "a")))


def test_one_is_one_as_a_whole_number_and_as_a_decimal_one() -> None:
    assert mark(WriteSpec(ratio=1)) == mark(WriteSpec(ratio=1.0))
    assert mark(WriteSpec(ratio=-0.0)) == mark(WriteSpec(ratio=0.0))


def test_names_of_stages_are_no_part_and_fingerprints_of_inputs_are() -> None:
    named = WriteSpec(inputs={"corpus": "here"}), WriteSpec(inputs={"corpus": "there"})
    assert mark(named[0], {"corpus": "f1"}) == mark(named[1], {"corpus": "f1"})
    assert mark(named[0], {"corpus": "f1"}) != mark(named[0], {"corpus": "f2"})
    assert mark(named[0], {"corpus": "f1"}) != mark(named[0], {"text": "f1"})


def test_outside_data_and_the_kind_are_part() -> None:
    spec = WriteSpec()
    assert len({mark(spec), mark(spec, outside="d1"), mark(spec, outside="d2")}) == 3
    assert fingerprint(KINDS["upper"], KINDS["upper"].spec(kind="upper"), {}) != fingerprint(
        KINDS["compare"], KINDS["compare"].spec(kind="compare"), {}
    )


class Colour(Enum):
    RED = "red"


class Free(Spec):
    value: Any


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), {1, 2}, b"bytes", object(), {1: "a"}, [float("nan")]]
)
def test_what_has_no_canonical_encoding_is_refused_by_name(value: Any) -> None:
    with pytest.raises(TypeError, match="value"):
        identity(Free(value=value))


def test_an_enumeration_is_its_value_and_a_tuple_a_list() -> None:
    assert identity(Free(value=(Colour.RED, {"a": 2.0}))) == {"value": ["red", {"a": 2}]}


@given(JSON, JSON)
def test_changes_are_named_exactly_where_two_values_differ(old: Any, new: Any) -> None:
    assert changes(old, old, "x") == []
    assert bool(changes({"x": old}, {"x": new})) == (
        json.dumps(old, sort_keys=True) != json.dumps(new, sort_keys=True)
    )


def test_a_change_is_told_by_its_path_with_both_values() -> None:
    old = {"steps": 300, "model": {"width": 64, "depth": 2}, "gone": "x" * 100}
    new = {"steps": 200, "model": {"width": 64, "depth": 3}, "fresh": None}
    assert changes(old, new) == [
        "fresh: nothing → null",
        f'gone: "{"x" * 36}… → nothing',
        "model.depth: 2 → 3",
        "steps: 300 → 200",
    ]
