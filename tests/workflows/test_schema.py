from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from workflow_harness import CHAIN, KINDS, parse

from eagleray.session import STAGE_PACKAGES
from eagleray.workflows.document import SpecError
from eagleray.workflows.schema import schema
from eagleray.workflows.stage import discover_kinds

jsonschema = pytest.importorskip("jsonschema")
EXAMPLES = sorted((Path(__file__).parents[2] / "examples").rglob("*.yaml"))
SCHEMA = json.loads(json.dumps(schema(KINDS)))


def accepts(document: Any, against: dict[str, Any] = SCHEMA) -> bool:
    return jsonschema.Draft202012Validator(against).is_valid(document)


def changed(*path: str, to: Any) -> dict[str, Any]:
    document = copy.deepcopy(yaml.safe_load(CHAIN))
    parent = document
    for part in path[:-1]:
        parent = parent.setdefault(part, {})
    parent[path[-1]] = to
    return document


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_fits_the_schema(path: Path) -> None:
    ours = schema(discover_kinds(STAGE_PACKAGES))
    jsonschema.Draft202012Validator.check_schema(ours)
    assert accepts(yaml.safe_load(path.read_text()), ours)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_a_typo_in_an_example_does_not_fit(path: Path) -> None:
    ours = schema(discover_kinds(STAGE_PACKAGES))
    for name in yaml.safe_load(path.read_text())["stages"]:
        document = yaml.safe_load(path.read_text())
        document["stages"][name]["stepz"] = 1
        assert not accepts(document, ours)


def test_there_are_examples() -> None:
    assert EXAMPLES


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("stages", "corpus", "txet"), "a"),
        (("stages", "corpus", "times"), "5"),
        (("stages", "corpus", "times"), 0),
        (("stages", "corpus", "size"), "smal"),
        (("stages", "corpus", "options", "dept"), 1),
        (("stages", "corpus", "shape"), {"kind": "circle", "side": 1}),
        (("stages", "corpus", "kind"), "wrte"),
        (("stages", "corpus", "run", "retrys"), 1),
        (("stages", "capitals", "inputs"), {}),
        (("stages", "capitals", "inputs"), {"corpsu": "corpus"}),
        (("stages", "Bad Name"), {"kind": "write"}),
        (("stages",), {}),
        (("version",), 2),
        (("nam",), "x"),
    ],
)
def test_what_is_wrong_fits_neither_the_schema_nor_the_loader(path: tuple[str, ...], value: Any) -> None:
    document = changed(*path, to=value)
    assert not accepts(document)
    with pytest.raises(SpecError):
        parse(yaml.safe_dump(document))


VALUES = st.sampled_from(
    [None, True, 1, 5, -1, 0.5, "a", "small", [], ["a"], [1], {}, {"a": 1}, {"depth": 2}]
)
FIELDS = st.sampled_from(["text", "times", "ratio", "shout", "size", "tags", "limits", "options", "run", "x"])


@settings(max_examples=150)
@given(st.dictionaries(FIELDS, VALUES, max_size=3))
def test_what_the_loader_takes_fits_the_schema_and_the_other_way_round(fields: dict[str, Any]) -> None:
    document = {"version": 1, "name": "one", "stages": {"corpus": {"kind": "write", **fields}}}
    try:
        parse(yaml.safe_dump(document))
        taken = True
    except SpecError:
        taken = False
    assert accepts(document) == taken


def test_editors_are_told_what_each_kind_does_and_where_its_inputs_come_from() -> None:
    definitions = SCHEMA["$defs"]
    for kind in KINDS.values():
        body = definitions[kind.spec.__name__]
        assert body["description"] == kind.summary
        assert set(body["properties"]["inputs"]["properties"]) == set(kind.inputs)
