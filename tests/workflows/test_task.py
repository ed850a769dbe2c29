from __future__ import annotations

import pickle
import threading
import traceback
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from workflow_harness import CHAIN, KINDS, Home, parse

from eagleray.workflows.errors import EaglerayError
from eagleray.workflows.fingerprint import identity
from eagleray.workflows.secrets import redact, resolve
from eagleray.workflows.task import RedactedEmit, plain, run_task

TOKEN = "p@ss'wörd\\n/1"
TROUBLE = """\
version: 1
name: trouble
stages:
  trouble:
    kind: trouble
    token: ${env:TOKEN}
"""


def trouble(how: str, token: str = TOKEN) -> Any:
    return parse(TROUBLE, f"trouble.how={how}", "trouble.run.retries=0", env={"TOKEN": token})


def traces(folder: Path, secret: str) -> list[str]:
    """Files below a folder that hold a text, or are named by it."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    return [str(p) for p in found if secret.encode() in p.read_bytes() or secret in str(p)]


# ── what an attempt does ───────────────────────────────────────────────────────────────────────────


def test_an_attempt_makes_the_artifact_and_its_record(home: Home) -> None:
    record = home.attempt(parse(CHAIN), "corpus")
    assert (record.type, record.stage, record.kind, record.run_id) == ("Corpus", "corpus", "write", "r1")
    assert record.facts == {"letters": 5}
    assert record.spec == identity(parse(CHAIN).stages["corpus"])
    assert (home.store.open(record).path / "text.txt").read_text() == "hello"
    assert home.store.find(record.fingerprint) == record


def test_an_attempt_finds_its_inputs_opened_and_records_where_they_are_from(home: Home) -> None:
    corpus = home.attempt(parse(CHAIN), "corpus")
    capitals = home.attempt(parse(CHAIN), "capitals")
    report = home.attempt(parse(CHAIN), "report")
    assert report.facts == {"changed": 5}
    assert report.parents == {"corpus": corpus.digest, "checkpoint": capitals.digest}
    assert report.inputs == {"corpus": corpus.fingerprint, "checkpoint": capitals.fingerprint}


def test_an_input_that_may_be_left_out_is_opened_where_it_is_given(home: Home) -> None:
    text = CHAIN.replace("inputs: {corpus: corpus}", "inputs: {corpus: corpus, before: corpus}")
    home.attempt(parse(text), "corpus")
    without = home.attempt(parse(CHAIN), "capitals")
    capitals = home.attempt(parse(text), "capitals")
    assert (home.store.open(without).path / "text.txt").read_text() == "HELLO"
    assert (home.store.open(capitals).path / "text.txt").read_text() == "HELLOHELLO"
    assert set(capitals.inputs) == {"corpus", "before"}


def test_what_was_made_of_other_inputs_is_not_taken_over(home: Home) -> None:
    said: list[str] = []
    for text in (CHAIN, CHAIN.replace("text: hello", "text: others")):
        home.attempt(parse(text), "corpus")
        home.attempt(parse(text), "capitals", lambda _, **fields: said.append(str(fields.get("message"))))
    assert [line for line in said if line.startswith("upper")] == ["upper has begun, after None"] * 2


def test_what_was_made_meanwhile_is_not_made_again(home: Home) -> None:
    planned = home.plan(parse(CHAIN))["corpus"]
    task = home.task(planned, {}, "r1", {})
    first = run_task(task, lambda *_, **__: None)
    assert run_task(task, lambda *_, **__: None) == first
    assert home.written() == ["corpus"]


def test_of_two_attempts_at_the_same_one_waits_for_the_other(home: Home, tmp_path: Path) -> None:
    held = parse(CHAIN, f"corpus.hold_until={tmp_path / 'go'}")
    said: list[tuple[str, dict[str, Any]]] = []
    records: list[Any] = []
    waits = threading.Event()

    def emit(event: str, /, **fields: Any) -> None:
        said.append((event, fields))
        if str(fields.get("message", "")).startswith("waiting"):
            waits.set()

    threads = [
        threading.Thread(target=lambda: records.append(home.attempt(held, "corpus", emit))) for _ in "ab"
    ]
    for thread in threads:
        thread.start()
    assert waits.wait(20)
    (tmp_path / "go").touch()
    for thread in threads:
        thread.join(20)
    assert records[0] == records[1]
    assert home.written() == ["corpus"]


def test_partial_work_outlives_a_failed_attempt_and_half_an_output_does_not(home: Home) -> None:
    workflow = trouble("flaky")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="ConnectionError: the line is bad"):
            home.attempt(workflow, "trouble")
    record = home.attempt(workflow, "trouble")  # its function checks that its output begins empty
    assert record.facts == {"tries": 3}
    assert not (home.path / "scratch" / record.fingerprint).exists()


def test_what_is_done_for_its_effect_is_done_each_time(home: Home) -> None:
    text = f"{CHAIN}  tell:\n    kind: announce\n    inputs: {{report: report}}\n"
    home.carry_out(parse(text))
    assert [home.attempt(parse(text), "tell").facts["announced"] for _ in range(2)] == [2, 3]


def test_numbers_of_numpy_are_numbers_in_events_and_facts(home: Home) -> None:
    said: list[dict[str, Any]] = []
    record = home.attempt(trouble("numpy"), "trouble", lambda _, /, **fields: said.append(fields))
    assert record.facts == {"loss": 0.25, "rows": 3, "where": "x"}
    assert said == [{"step": 1, "total": 2, "metrics": {"loss": 0.5}}]


def test_what_json_lacks_is_told_as_text() -> None:
    assert plain({1: Path("/a"), "b": (1, {"c"})}) == {"1": "/a", "b": [1, "{'c'}"]}


def test_a_place_that_can_not_be_written_stops_an_attempt_before_its_work(home: Home) -> None:
    (home.path / "store").mkdir()
    (home.path / "store" / "content").write_text("")
    with pytest.raises(EaglerayError, match="the artifact store can't be used"):
        home.attempt(parse(CHAIN), "corpus")
    assert home.written() == []


# ── secrets ────────────────────────────────────────────────────────────────────────────────────────


def test_a_stage_is_given_the_secret_itself(home: Home) -> None:
    record = home.attempt(trouble("none"), "trouble")
    assert (home.store.open(record).path / "length.txt").read_text() == str(len(TOKEN))


@pytest.mark.parametrize("how", ["log", "metric", "facts", "key"])
def test_what_a_stage_tells_has_the_reference_instead(home: Home, how: str) -> None:
    said: list[Any] = []
    record = home.attempt(trouble(how), "trouble", lambda event, /, **fields: said.append((event, fields)))
    told = repr((said, record))
    assert TOKEN not in told
    assert repr(TOKEN)[1:-1] not in told
    assert "${env:TOKEN}" in repr((said, record.facts))
    assert not traces(home.path, TOKEN)


@pytest.mark.parametrize("how", ["file", "json", "late"])
def test_a_file_with_a_secret_becomes_no_artifact(home: Home, how: str) -> None:
    with pytest.raises(EaglerayError, match="holds the value of the environment variable TOKEN"):
        home.attempt(trouble(how), "trouble")
    assert home.store.list() == []
    assert not traces(home.path / "store", TOKEN)


def test_a_file_named_by_a_secret_becomes_no_artifact(home: Home) -> None:
    with pytest.raises(EaglerayError, match="holds the value of the environment variable TOKEN") as caught:
        home.attempt(trouble("name", "hunter22"), "trouble")
    assert "hunter22" not in str(caught.value)


@pytest.mark.parametrize("how", ["error", "repr", "explained", "exit"])
def test_what_goes_wrong_is_told_with_the_reference_instead(home: Home, how: str) -> None:
    with pytest.raises((RuntimeError, EaglerayError)) as caught:
        home.attempt(trouble(how), "trouble")
    shipped = pickle.dumps(caught.value)  # as it leaves the process
    shown = "".join(traceback.format_exception(caught.value))
    for form in (TOKEN, repr(TOKEN)[1:-1]):
        assert form not in shown
        assert form.encode() not in shipped
    assert "${env:TOKEN}" in shown


def test_a_secret_stays_out_of_every_file_of_a_run(home: Home) -> None:
    said: list[Any] = []
    for how in ("log", "metric", "facts", "error", "file"):
        home.carry_out(trouble(how, "hunter22"), on_event=lambda *event: said.append(event))
    assert "hunter22" not in repr(said)
    kept = [path for path in traces(home.path, "hunter22") if "scratch" not in path]
    assert kept == []


def test_the_secrets_of_a_task_stand_in_no_representation(home: Home) -> None:
    workflow = trouble("none", "hunter22")
    task = home.task(home.plan(workflow)["trouble"], {}, "r1", workflow.secrets)
    emit = RedactedEmit(lambda *_, **__: None, workflow.secrets)
    assert "hunter22" not in repr((workflow, task, emit))


SECRETS = st.dictionaries(st.sampled_from("ABC"), st.text('abc$"\\é\udcff', max_size=4), max_size=3)


@given(SECRETS, st.text('abc$"\\é \udcff', max_size=20))
def test_no_secret_is_left_in_a_text_but_for_its_reference(secrets: dict[str, str], text: str) -> None:
    left = redact({"x": [text]}, secrets)["x"][0]
    for name in secrets:
        left = left.replace(f"${{env:{name}}}", "\0")
    assert not [secret for secret in secrets.values() if secret and secret in left]


def test_of_two_secrets_that_begin_alike_the_longer_is_blotted_out_whole() -> None:
    assert redact("abcdef", {"SHORT": "abc", "LONG": "abcdef"}) == "${env:LONG}"


@given(st.text("ab", min_size=1, max_size=3), st.lists(st.text("ab${}", max_size=3), max_size=3))
def test_references_are_resolved_wherever_text_stands(value: str, tags: list[str]) -> None:
    spec: Any = KINDS["write"].spec.model_validate(
        {
            "kind": "write",
            "text": "x${env:A}y",
            "tags": ["${env:A}", "b"],
            "shape": {"kind": "circle", "radius": 2},
        }
    )
    resolved: Any = resolve(spec, {"A": value})
    assert (resolved.text, resolved.tags) == (f"x{value}y", (value, "b"))
    assert resolved.shape == spec.shape
    assert resolve(spec, {}) == spec
