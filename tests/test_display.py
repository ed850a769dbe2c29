"""What is shown: at any width, with any text, on a terminal or in a file."""

from __future__ import annotations

import io
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from eagleray.actors.stages.pretrain import PretrainSpec
from eagleray.display import RunView, field_rows, print_table, seconds, status_table
from eagleray.pipelines.stages.preprocess import PreprocessSpec
from eagleray.workflows.events import Event, RunStatus, StageStatus
from eagleray.workflows.state import State


def console(width: int = 80, terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=terminal, markup=False, soft_wrap=True)


def text_of(console: Console) -> str:
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def status() -> RunStatus:
    progress = {"step": 4361, "total": 4997, "metrics": {"loss": 0.123456, "left_s": 75.0}}
    stages = {
        "corpus": StageStatus("preprocess", State.HIT, "made by run 20261125-024219-687f"),
        "pretrain": StageStatus(
            "pretrain", State.RUNNING, attempt=2, started_s=time.time() - 3725, progress=progress
        ),
        "evaluate": StageStatus("evaluate"),
    }
    return RunStatus(State.RUNNING, stages=stages)


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
def test_a_status_table_keeps_to_its_width_and_loses_no_state(width: int) -> None:
    shown = console(width)
    shown.print(status_table(status(), width))
    lines = text_of(shown).splitlines()
    assert max(map(len, lines)) <= width
    for word in ("corpus", "hit", "pretrain", "running", "evaluate", "waiting"):
        assert any(word in line.split() for line in lines), word


def test_on_80_columns_a_stage_is_one_line_with_its_step_loss_and_time_left() -> None:
    shown = console(80)
    shown.print(status_table(status(), 80))
    line = next(line for line in text_of(shown).splitlines() if line.startswith("pretrain"))
    for words in ("attempt 2", "4361/4997", "loss 0.1235", "1 min 15 s"):
        assert words in line


@given(st.floats(0, 1e7, allow_nan=False))
def test_a_duration_has_no_part_above_its_unit(value: float) -> None:
    words = seconds(value).split()
    parts = dict(zip(words[1::2], map(int, words[::2]), strict=True))
    units = {"s": 1, "min": 60, "h": 3600}
    assert abs(sum(number * units[unit] for unit, number in parts.items()) - value) <= max(0.5, value / 60)
    assert all(number < 60 for unit, number in parts.items() if unit != "h")


def test_markup_in_data_is_shown_as_it_is() -> None:
    shown = console()
    print_table(shown, [{"name": "[red]x[/red] [/]", "empty": ""}], as_json=False, empty="none")
    assert "[red]x[/red] [/]" in text_of(shown)
    assert "empty" not in text_of(shown)  # a column in which nothing stands


def test_json_is_one_list_even_of_nothing() -> None:
    for rows in ([], [{"a": "é", "b": None, "c": 1.5}]):
        shown = console(20)
        print_table(shown, rows, as_json=True, empty="none")
        assert json.loads(text_of(shown)) == rows


def test_fields_below_a_runtime_field_decide_how_it_runs() -> None:
    rows = {row["field"]: row for row in field_rows(PreprocessSpec)}
    assert rows["run.retries"]["decides"] == "how it runs"
    assert rows["block_units"]["decides"] == "how it runs"
    assert rows["preparation.image_size"]["decides"] == "what is made"


def test_fields_of_a_part_that_may_be_left_out_are_shown() -> None:
    rows = {row["field"]: row for row in field_rows(PretrainSpec)}
    assert rows["batching"]["default"] == "None"
    assert rows["batching.tokens"]["default"] == "4096"
    assert rows["batching.fill"]["decides"] == "how it runs"
    assert rows["optimizer.compression.density"]["default"] == "required"
    assert "model.vision" not in rows  # it is there unless it is left out
    assert rows["model.vision.image_size"]["default"] == "64"
    assert rows["objective.contrastive"]["default"] == "1.0"  # of this stage, not of every objective


def test_a_file_gets_a_line_for_each_state_and_little_progress() -> None:
    shown = console()
    with RunView(shown, ["one"]) as view:
        view.show(None, "plan", {"stages": {"one": "trial"}})
        view.show("one", "state", {"state": "running"})
        for step in range(1000):
            view.show("one", "progress", {"step": step, "total": 1000, "metrics": {}})
        view.show("one", "log", {"message": "[half] done"})
        view.show("one", "state", {"state": "failed", "reason": "it broke"})
    lines = [line.strip() for line in text_of(shown).splitlines()]
    assert lines == ["one running", "one 0/1000", "one [half] done", "one failed it broke"]


def test_a_terminal_is_left_with_the_last_state_of_every_stage() -> None:
    shown = console(100, terminal=True)
    with RunView(shown, ["one", "two"]) as view:
        view.show("one", "state", {"state": "running"})
        view.show("one", "progress", {"step": 5, "total": 10, "metrics": {"loss": 1.0}})
        view.show("one", "state", {"state": "succeeded", "facts": {}})
    last = text_of(shown).rsplit("stage", 1)[-1]
    assert "succeeded" in last
    assert "waiting" in last


def test_what_was_interrupted_does_not_seem_to_go_on() -> None:
    stage = StageStatus("trial")
    stage.apply(Event(1, 5.0, "one", "state", {"state": "running"}))
    stage.state = State.INTERRUPTED
    shown = console()
    shown.print(status_table(RunStatus(State.INTERRUPTED, stages={"one": stage}), 80))
    assert " s" not in text_of(shown).splitlines()[-1]
