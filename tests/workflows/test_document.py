from __future__ import annotations

import json
import pickle
import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from eagleray.workflows.document import Document, SpecError, nearest

# PyYAML writes these three as they are, and reads them as line breaks.
CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\x85\u2028\u2029")
TEXT = st.text(CHARACTERS, max_size=12)
# YAML 1.2 has numbers such as 1e3, which PyYAML, of version 1.1, writes without quotation marks as text.
EXPONENT = re.compile(r"[-+]?[0-9.]+[eE][-+]?[0-9]+")
WORDS = TEXT.filter(lambda text: not EXPONENT.fullmatch(text))
KEYS = WORDS.filter(lambda key: key != "<<")
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | WORDS
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=12,
)
MAPPINGS = st.dictionaries(KEYS, VALUES, max_size=4)
YAMLISH = st.text(st.sampled_from("ab:1-[]{},&*!|>'\"%@#?<~\\ \n\t\x00\ufeffé"), max_size=40)


@given(MAPPINGS, st.booleans())
def test_what_yaml_writes_is_read_as_it_was(data: dict[str, object], flow: bool) -> None:
    text = yaml.safe_dump(data, default_flow_style=flow, allow_unicode=True)
    document = Document(text, "f.yaml")
    assert document.data == data
    assert not document.problems


@given(st.dictionaries(st.text("abc", min_size=1), st.integers() | st.floats(0, 1e300) | st.booleans()))
def test_json_is_read_as_it_was(data: dict[str, object]) -> None:
    assert Document(json.dumps(data), "f.yaml").data == data


@given(YAMLISH)
def test_any_text_is_read_or_refused_with_its_place(text: str) -> None:
    try:
        problems = Document(text, "f.yaml").problems
    except SpecError as error:
        problems = list(error.problems)
    assert all(re.match(r"f\.yaml:\d+:\d+: ", problem) for problem in problems)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("True", True),
        ("false", False),
        ("tRUE", "tRUE"),
        ("1e-3", 1e-3),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("012", 12),
        ("0o17", 15),
        ("0x1F", 31),
        ("-3", -3),
        ("1_000", "1_000"),
        ("12:30:45", "12:30:45"),
        ("2024-01-01", "2024-01-01"),
        ("~", None),
        ("", None),
        ("'5'", "5"),
        ("!!str 5", "5"),
        ("!!float 5", 5.0),
        ("=", "="),
        ("1e999", "1e999"),
        (".inf", ".inf"),
        ("9" * 5000, "9" * 5000),
        ("0x" + "f" * 5000, "0x" + "f" * 5000),
    ],
)
def test_scalars_mean_what_yaml_1_2_says(text: str, value: object) -> None:
    read = Document(f"key: {text}", "f.yaml").data["key"]
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "place", "says"),
    [
        ("", "1:1", "expected a mapping"),
        ("# only a comment\n", "1:1", "expected a mapping"),
        ("- a\n- b\n", "1:1", "expected a mapping"),
        ("just text", "1:1", "expected a mapping"),
        ("a: 1\nb: [1, 2\n", "3:1", "expected ',' or ']'"),
        ("a: 1\n\tb: 2\n", "2:1", "cannot start any token"),
        ("a: 1\n---\nb: 2\n", "2:1", "another document"),
        ("a: &x [*x]\n", "1:4", "an alias stands inside"),
        ("a: *nowhere\n", "1:4", "undefined alias"),
        ("a: !!python/object:os.system {}\n", "1:4", "is not supported"),
        ("a: !secret x\n", "1:4", "'!secret' is not supported"),
        ("? [a, b]\n: 1\n", "1:3", "a key must be text"),
        ("a: {<<: {b: 1}}\n", "1:5", "merge keys"),
        ("a: 1\nb: \x07\n", "2:4", "0x0007 is not allowed"),
        ('a: "\\ud800"\n', "1:4", "half a character"),
        ('a: "\\UFFFFFFFF"\n', "1:1", "not YAML that can be read"),
        ("a: " + "[" * 70 + "]" * 70, "1:68", "64 levels"),
        ("a: " + "[" * 9000, "1:1", "nested too deeply"),
    ],
)
def test_what_is_no_yaml_mapping_is_refused_with_its_place(text: str, place: str, says: str) -> None:
    with pytest.raises(SpecError, match=re.escape(says)) as caught:
        Document(text, "f.yaml")
    assert f"f.yaml:{place}: " in str(caught.value)


def test_a_few_aliases_cannot_stand_for_billions_of_values() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    with pytest.raises(SpecError, match="100,000 values"):
        Document("\n".join(lines), "f.yaml")


def test_an_alias_used_twice_is_read_twice() -> None:
    assert Document("a: &x {b: 1}\nc: *x\n", "f.yaml").data == {"a": {"b": 1}, "c": {"b": 1}}


def test_a_key_that_stands_twice_is_a_problem_at_its_second_place() -> None:
    document = Document("a: 1\nb:\n  c: 1\n  c: 2\n", "f.yaml")
    assert document.problems == ["f.yaml:4:3: b.c: stands here a second time"]


def test_a_mark_at_the_beginning_and_windows_line_ends_are_no_obstacle() -> None:
    assert Document("\ufeffa: 1\r\nb: é\r\n", "f.yaml").data == {"a": 1, "b": "é"}


def test_a_missing_part_has_the_place_of_what_it_is_missing_in() -> None:
    document = Document("a:\n  b: 1\n", "f.yaml")
    document.problem(("a", "c", "d"), "is required")
    document.problem((), "is odd")
    assert document.problems == ["f.yaml:1:1: a.c.d: is required", "f.yaml:1:1: : is odd"]


def test_an_override_is_read_as_yaml_and_has_its_own_place() -> None:
    document = Document("a: {b: 1, c: {d: 2}}\n", "f.yaml")
    document.override(("a", "b"), "[1, x]", "--set a.b=[1, x]")
    document.override(("a", "new", "e"), "no", "--set a.new.e=no")
    document.override(("a", "c"), "@daily", "--set a.c=@daily")
    assert document.data == {"a": {"b": [1, "x"], "new": {"e": "no"}, "c": "@daily"}}
    document.problem(("a", "b", 1), "is odd")
    document.problem(("a", "c", "d"), "is odd")
    assert document.problems == ["--set a.b=[1, x]: a.b.1: is odd", "--set a.c=@daily: a.c.d: is odd"]


def test_nothing_can_be_set_inside_a_scalar_or_a_list() -> None:
    document = Document("a: {b: 1, c: [1]}\n", "f.yaml")
    document.override(("a", "b", "x"), "1", "--set a.b.x=1")
    document.override(("a", "c", "0"), "1", "--set a.c.0=1")
    assert document.data == {"a": {"b": 1, "c": [1]}}
    assert [problem.partition(":")[0] for problem in document.problems] == ["--set a.b.x=1", "--set a.c.0=1"]


def test_problems_survive_the_way_from_another_process() -> None:
    error = pickle.loads(pickle.dumps(SpecError(["a", "b"], "f.yaml")))
    assert (error.problems, error.filename) == (("a", "b"), "f.yaml")
    assert "2 problems in f.yaml" in str(error)


@given(st.lists(st.text("abcdef", min_size=1), min_size=1, unique=True), st.data())
def test_a_valid_name_is_nearest_to_itself(valid: list[str], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(valid))
    assert nearest(name, valid) == f"did you mean {name!r}?"


def test_where_no_name_is_near_all_are_named() -> None:
    assert nearest("zzz", ["b", "a"]) == "valid here: a, b"
    assert nearest("zzz", []) == "nothing is valid here"
