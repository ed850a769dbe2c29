from __future__ import annotations

import copy
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from workflow_harness import CHAIN, KINDS, parse

from eagleray.workflows.artifacts import Checkpoint
from eagleray.workflows.document import SpecError
from eagleray.workflows.errors import EaglerayError
from eagleray.workflows.loading import load_workflow, parse_workflow
from eagleray.workflows.spec import StageSpec

PLACED = re.compile(r"(flow\.yaml:\d+:\d+|--set [^:]*): ")


class Loop(StageSpec):
    kind: str = "loop"


def problems(text: str, *overrides: str, env: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(SpecError) as caught:
        parse(text, *overrides, env=env)
    return list(caught.value.problems)


def one_stage(field: str) -> str:
    return f"version: 1\nname: one\nstages:\n  corpus:\n    kind: write\n    {field}\n"


def test_a_checked_workflow_has_its_stages_in_the_files_order() -> None:
    workflow = parse(CHAIN)
    assert workflow.name == "chain"
    assert list(workflow.stages) == ["corpus", "capitals", "report"]
    assert workflow.stages["report"].inputs == {"corpus": "corpus", "checkpoint": "capitals"}
    assert workflow.text == CHAIN


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: x\nstages: {a: {kind: write}}\n", "flow.yaml:1:1: version: is required"),
        ("version: 1\nstages: {a: {kind: write}}\n", "flow.yaml:1:1: name: is required"),
        ("version: 1\nname: x\n", "flow.yaml:1:1: stages: is required"),
        (
            "version: 2\nname: x\nstages: {a: {kind: write}}\n",
            "flow.yaml:1:1: version: unknown value 2; valid here: 1",
        ),
        ('version: 1\nname: "a\\0b"\nstages: {a: {kind: write}}\n', "flow.yaml:2:1: name: string should"),
        ("version: 1\nname: x\nstages: {}\n", "flow.yaml:3:1: stages: dictionary should have at least 1"),
        ("version: 1\nname: x\nstages: [a]\n", "flow.yaml:3:1: stages: should be a valid dictionary"),
        ("version: 1\nname: x\nstages:\n", "flow.yaml:3:1: stages: should be a valid dictionary, got None"),
        (
            "version: 1\nname: 5\nstages: {a: {kind: write}}\n",
            "flow.yaml:2:1: name: should be a valid string, got 5",
        ),
        (
            "version: 1\nname: x\nstage: {}\nstages: {a: {kind: write}}\n",
            "flow.yaml:3:1: stage: unknown key; did you mean 'stages'?",
        ),
        (
            "version: 1\nname: x\nstages: {Bad Name: {kind: write}}\n",
            "flow.yaml:3:10: stages.Bad Name: a stage's name is a letter, then at most 99 of a-z, 0-9",
        ),
        ("version: 1\nname: x\nstages: {a: write}\n", "flow.yaml:3:10: stages.a: expected a mapping with"),
        ("version: 1\nname: x\nstages: {a: }\n", "flow.yaml:3:10: stages.a: expected a mapping with"),
        ("version: 1\nname: x\nstages: {a: {text: b}}\n", "flow.yaml:3:10: stages.a: has no `kind`; valid"),
        (
            "version: 1\nname: x\nstages: {a: {kind: wrte}}\n",
            "flow.yaml:3:14: stages.a.kind: unknown kind 'wrte'; did you mean 'write'?",
        ),
        (
            "version: 1\nname: x\nstages: {a: {kind: [write]}}\n",
            "flow.yaml:3:14: stages.a.kind: unknown kind ['write']",
        ),
    ],
)  # fmt: skip
def test_a_workflow_of_the_wrong_shape_is_refused(text: str, expected: str) -> None:
    assert any(problem.startswith(expected) for problem in problems(text)), problems(text)


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("txet: a", "6:5: stages.corpus.txet: unknown key; did you mean 'text'?"),
        ("text: 5", "6:5: stages.corpus.text: should be a valid string, got 5"),
        ("text:", "6:5: stages.corpus.text: should be a valid string, got None"),
        ("times: many", "6:5: stages.corpus.times: should be a valid integer"),
        ("times: '5'", "6:5: stages.corpus.times: should be a valid integer, got '5'"),
        ("times: 5.0", "6:5: stages.corpus.times: should be a valid integer, got 5.0"),
        ("times: true", "6:5: stages.corpus.times: should be a valid integer, got True"),
        ("times: 0", "6:5: stages.corpus.times: should be greater than or equal to 1, got 0"),
        ("times: " + "9" * 5000, "6:5: stages.corpus.times: should be a valid integer"),
        ("times: " + "9" * 900, "6:5: stages.corpus.times: should be less than or equal to 1000, got 99"),
        ("times: 0x" + "f" * 5000, "6:5: stages.corpus.times: should be a valid integer"),
        ("ratio: half", "6:5: stages.corpus.ratio: should be a valid number"),
        ("ratio: .inf", "6:5: stages.corpus.ratio: should be a valid number"),
        ("ratio: " + "9" * 900, "6:5: stages.corpus.ratio: should be a valid number"),
        ("shout: yes", "6:5: stages.corpus.shout: should be a valid boolean"),
        ("shout: 1", "6:5: stages.corpus.shout: should be a valid boolean, got 1"),
        ("size: smal", "6:5: stages.corpus.size: unknown value 'smal'; did you mean 'small'?"),
        ("tags: [a, 5]", "6:15: stages.corpus.tags.1: should be a valid string, got 5"),
        ("tags: a", "6:5: stages.corpus.tags: should be a valid tuple"),
        ("limits: {a: b}", "6:14: stages.corpus.limits.a: should be a valid integer"),
        ("options: {dept: 2}", "6:15: stages.corpus.options.dept: unknown key; did you mean 'depth'?"),
        ("options: {depth: 0}", "6:15: stages.corpus.options.depth: should be greater than or equal to 1"),
        ("options: 5", "6:5: stages.corpus.options: "),
        ("shape: {kind: sqare}", "6:5: stages.corpus.shape: unknown value 'sqare'; did you mean 'square'?"),
        ("shape: {kind: circle, radus: 2}", "6:27: stages.corpus.shape.radus: unknown key; did you mean"),
        ("shape: {kind: circle, radius: x}", "6:27: stages.corpus.shape.radius: should be a valid number"),
        ("run: {retrys: 2}", "6:11: stages.corpus.run.retrys: unknown key; did you mean 'retries'?"),
        ("run: {timeout_s: 0}", "6:11: stages.corpus.run.timeout_s: should be greater than 0, got 0"),
        ("{shout: true, text: ''}", None),
        ("inputs: {corpus: corpus}", "6:14: stages.corpus.inputs.corpus: `write` takes no such input; "),
        ("inputs: [corpus]", "6:5: stages.corpus.inputs: should be a valid dictionary"),
        ("inputs: {a: 5}", "6:14: stages.corpus.inputs.a: should be a valid string, got 5"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_refused_with_its_place_and_what_was_expected(
    field: str, expected: str | None
) -> None:
    if expected is None:
        field, expected = "shout: true\n    text: ''", "4:3: stages.corpus: there is nothing to shout"
    found = problems(one_stage(field))
    assert [f"flow.yaml:{expected}" in problem for problem in found].count(True) == 1, found
    assert len(found) == 1


def test_all_problems_are_told_at_once() -> None:
    text = CHAIN.replace("text: hello", "txt: hello\n    times: many").replace(
        "kind: compare", "kind: compar"
    )
    assert len(problems(text, "capitals.run.retries=-1", "nothing.x=1")) == 5


def test_an_input_that_no_stage_gives_is_refused_with_the_nearest_stage() -> None:
    [problem] = problems(CHAIN.replace("inputs: {corpus: corpus}", "inputs: {corpus: corpsu}"))
    assert (
        problem
        == "flow.yaml:9:14: stages.capitals.inputs.corpus: there is no stage 'corpsu'; did you mean 'corpus'?"
    )


def test_an_input_of_the_wrong_type_is_refused_with_the_stages_that_fit() -> None:
    [problem] = problems(CHAIN.replace("checkpoint: capitals", "checkpoint: corpus"))
    assert problem == (
        "flow.yaml:12:30: stages.report.inputs.checkpoint: expected a Checkpoint, but 'corpus' "
        "gives a Corpus; stages that give one: capitals"
    )


def test_a_missing_input_is_refused_with_what_to_write() -> None:
    [problem] = problems(CHAIN.replace(", checkpoint: capitals", ""))
    assert problem == (
        "flow.yaml:10:3: stages.report: input 'checkpoint' (a Checkpoint) is missing; "
        "add `inputs: {checkpoint: capitals}`"
    )


def test_an_input_that_may_be_left_out_has_a_type_all_the_same() -> None:
    text = CHAIN.replace("inputs: {corpus: corpus}", "inputs: {corpus: corpus, before: report}")
    expected = "stages.capitals.inputs.before: expected a Corpus, but 'report' gives a Report"
    assert any(expected in problem for problem in problems(text))
    parse(text.replace("before: report", "before: corpus"))


def test_an_input_given_as_a_number_is_not_also_called_missing() -> None:
    [problem] = problems(CHAIN.replace("inputs: {corpus: corpus}", "inputs: {corpus: 5}"))
    assert "stages.capitals.inputs.corpus: should be a valid string, got 5" in problem


def test_a_cycle_is_refused_with_the_way_around() -> None:
    text = """\
version: 1
name: ring
stages:
  first: {kind: loop, inputs: {checkpoint: second}}
  second: {kind: loop, inputs: {checkpoint: first}}
"""
    kinds = {"loop": replace(KINDS["upper"], name="loop", spec=Loop, takes={"checkpoint": Checkpoint})}
    with pytest.raises(SpecError) as caught:
        parse_workflow(text, "flow.yaml", [], kinds, {})
    [problem] = caught.value.problems
    assert re.fullmatch(
        r"flow\.yaml:[45]:\d+: stages\.(first|second)\.inputs: "
        r"a cycle: (first reads second reads first|second reads first reads second)",
        problem,
    )
    with pytest.raises(SpecError, match="a cycle: first reads first"):
        parse_workflow(text.replace("second", "first", 1).replace("  second", "  third"), "f", [], kinds, {})


# ── overrides ──────────────────────────────────────────────────────────────────────────────────────


def test_an_override_is_typed_by_the_field_it_sets() -> None:
    spec: Any = parse(
        CHAIN, "corpus.times=3", "corpus.text=no", "corpus.options.depth=2", "corpus.tags=[a, b]"
    ).stages
    assert (spec["corpus"].times, spec["corpus"].text) == (3, "no")
    assert (spec["corpus"].options.depth, spec["corpus"].tags) == (2, ("a", "b"))


def test_the_last_of_two_overrides_holds() -> None:
    spec: Any = parse(CHAIN, "corpus.times=3", "corpus.times=4").stages["corpus"]
    assert spec.times == 4


def test_a_value_may_hold_an_equals_sign() -> None:
    spec: Any = parse(CHAIN, "corpus.text=a=b=c").stages["corpus"]
    assert spec.text == "a=b=c"


def test_an_override_can_mend_what_the_file_has_wrong() -> None:
    assert parse(CHAIN.replace("text: hello", "text: 5"), "corpus.text=fine").stages["corpus"]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("corpus.times=many", "stages.corpus.times: should be a valid integer"),
        ("corpus.times=", "stages.corpus.times: should be a valid integer"),
        ("corpus.tmes=3", "stages.corpus.tmes: unknown key; did you mean 'times'?"),
        ("corps.times=3", "there is no stage 'corps'; did you mean 'corpus'?"),
        ("corpus=3", "expected STAGE.FIELD=VALUE"),
        ("corpus.times", "expected STAGE.FIELD=VALUE"),
        ("corpus..times=3", "expected STAGE.FIELD=VALUE"),
        ("", "expected STAGE.FIELD=VALUE"),
        ("=", "expected STAGE.FIELD=VALUE"),
        ("corpus.text.length=3", "stages.corpus.text: is not a mapping, so nothing can be set in it"),
        ("capitals.inputs.corpus=report", "expected a Corpus, but 'report' gives a Report"),
        ("corpus.kind=upper", "stages.corpus.kind: "),
        ("corpus.text=\udcff", "is not UTF-8 text"),
        ("corpus.text={a: 1, a: 2}", "stages.corpus.text.a: stands here a second time"),
        ("corpus.text=${env:HOME", "expected ${env:NAME}"),
    ],
)
def test_a_wrong_override_is_refused_by_its_own_name(override: str, expected: str) -> None:
    shown = override.encode(errors="backslashreplace").decode()
    if override == "corpus.kind=upper":  # another kind: what it lacks and what it does not know is told
        found = problems(CHAIN, override)
        assert any("stages.corpus.text: unknown key" in problem for problem in found)
        return
    found = problems(CHAIN, override)
    assert any(p.startswith(f"--set {shown}: ") and expected in p for p in found), found
    "\n".join(found).encode()  # can be printed


# ── references to the environment ──────────────────────────────────────────────────────────────────


def test_a_reference_stays_one_in_the_spec_and_its_value_lies_apart() -> None:
    workflow = parse(
        CHAIN, "corpus.text=x-${env:TOKEN}-${env:OTHER}", env={"TOKEN": "t0p", "OTHER": "", "NOT": "n"}
    )
    spec: Any = workflow.stages["corpus"]
    assert spec.text == "x-${env:TOKEN}-${env:OTHER}"
    assert workflow.secrets == {"TOKEN": "t0p", "OTHER": ""}
    assert "t0p" not in repr(workflow)


def test_a_variable_that_is_not_set_is_refused_by_name() -> None:
    [problem] = problems(one_stage("tags: [a, '${env:TOKEN}']"), env={"TOKE": "x"})
    assert problem == (
        "flow.yaml:6:15: stages.corpus.tags.1: the environment has no variable TOKEN; set it before the run"
    )


@pytest.mark.parametrize(
    "text", ["${TOKEN}", "${env:}", "${env:1}", "${env:A", "${env:A}${", "${ env:A }", "${env:A-B}"]
)
def test_half_a_reference_is_refused(text: str) -> None:
    [problem] = problems(one_stage(f"text: '{text}'"), env={"A": "x", "TOKEN": "x"})
    assert problem.startswith("flow.yaml:6:5: stages.corpus.text: expected ${env:NAME} in ")


def test_a_reference_where_a_number_is_wanted_is_refused_without_its_value() -> None:
    found = problems(one_stage("times: ${env:COUNT}"), env={"COUNT": "12345"})
    assert "12345" not in "\n".join(found)
    assert "should be a valid integer" in found[0]


# ── files ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_file_is_read_as_its_text_is(tmp_path: Path) -> None:
    path = tmp_path / "flöw.yaml"
    path.write_text(CHAIN, encoding="utf-8")
    workflow = load_workflow(path, [], KINDS, {})
    assert (workflow.text, workflow.filename) == (CHAIN, str(path))


def test_a_file_whose_name_is_no_text_can_be_named_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"b\xff.yaml")
    path.write_text(CHAIN)
    assert load_workflow(path, [], KINDS, {}).filename == f"{tmp_path}/b\\xff.yaml"


def test_a_file_that_is_not_there_is_refused_with_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "quickstart.yaml").write_text(CHAIN)
    with pytest.raises(EaglerayError, match=r"no such file\n.*did you mean .*quickstart\.yaml\?"):
        load_workflow(tmp_path / "quikstart.yaml", [], KINDS, {})
    with pytest.raises(EaglerayError, match="no such file"):
        load_workflow(tmp_path / "no" / "folder" / "x.yaml", [], KINDS, {})


def test_what_can_not_be_read_as_text_is_refused_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes("name: é".encode("latin-1"))
    for path in (tmp_path, tmp_path / "latin.yaml", tmp_path / "nul\0.yaml"):
        with pytest.raises(EaglerayError, match="can't be read") as caught:
            load_workflow(path, [], KINDS, {})
        assert caught.value.where == str(path)


# ── anything at all ────────────────────────────────────────────────────────────────────────────────

ANYTHING = st.recursive(
    st.sampled_from([None, True, 0, -1, 10**40, 0.5, "", "a", "write", "${env:X}", "é"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["kind", "a", "text"]), inner, max_size=2)
    ),
    max_leaves=4,
)


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, item in items for found in paths(item, (*path, key)))]


BASE = yaml.safe_load(CHAIN)
BASE["stages"]["corpus"] |= {"tags": ["a"], "shape": {"kind": "circle", "radius": 2}, "options": {"depth": 1}}


@settings(max_examples=200)
@given(st.data())
def test_whatever_is_wrong_is_told_with_its_place(data: st.DataObject) -> None:
    changed = copy.deepcopy(BASE)
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from([p for p in paths(changed) if p]))
        parent = changed
        for part in path[:-1]:
            parent = parent[part]
        if data.draw(st.booleans()):
            parent[path[-1]] = data.draw(ANYTHING)
        elif isinstance(parent, dict):
            parent[data.draw(st.sampled_from(["extra", "text", "tims"]))] = parent.pop(path[-1])
    text = yaml.safe_dump(changed, sort_keys=False, allow_unicode=True)
    try:
        found = list(parse(text).stages)
    except SpecError as error:
        found = [problem for problem in error.problems if not PLACED.match(problem)]
        expected: list[str] = []
    else:
        expected = list(changed["stages"])
    assert found == expected
