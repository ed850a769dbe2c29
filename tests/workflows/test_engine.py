from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from workflow_harness import (
    CHAIN,
    KINDS,
    Attempt,
    Clock,
    Home,
    ScriptedExecutor,
    ThreadExecutor,
    parse,
    record_of,
)

from eagleray.workflows import engine
from eagleray.workflows.engine import Update, execute
from eagleray.workflows.events import derive_status
from eagleray.workflows.graph import topological_order
from eagleray.workflows.plan import Decision, Plan, PlannedStage
from eagleray.workflows.runs import RunLog, TakenError
from eagleray.workflows.spec import RunOptions, StageSpec
from eagleray.workflows.state import TABLE, State
from eagleray.workflows.store import Record
from eagleray.workflows.task import StageTask

NAMES = [f"s{i}" for i in range(6)]


class AnySpec(StageSpec):
    kind: str = "any"


def planned(name: str, reads: Sequence[str] = (), hit: bool = False, **run: Any) -> PlannedStage:
    options = RunOptions(**{"backoff_s": 0.0, **run})
    spec = AnySpec(inputs={f"from-{source}": source for source in reads}, run=options)
    decision, record = (Decision.HIT, record_of(name)) if hit else (Decision.RUN, None)
    return PlannedStage(name, KINDS["write"], spec, decision, "why", f"f-{name}", options.num_cpus, record)


class Played:
    """What came of a plan that followed a script."""

    def __init__(
        self,
        plan: Plan,
        script: Mapping[str, Sequence[Attempt]] | None = None,
        num_cpus: float = 4.0,
        executor: Callable[..., ScriptedExecutor] = ScriptedExecutor,
        on_event: Callable[[Played, str | None, str, Mapping[str, Any]], None] | None = None,
    ) -> None:
        self.plan = plan
        self.clock = Clock()
        self.executor = executor(self.clock, script or {}, num_cpus)
        self.log = RunLog("sqlite://")
        self.run_id = self.log.create(parse(CHAIN))
        self.told: list[Any] = []
        self.tasks: list[StageTask] = []
        self.on_event = on_event
        self.log.claim(self.run_id)

    def play(self) -> State:
        real, engine.time = engine.time, self.clock
        try:
            return execute(self.plan, self.run_id, self.log, self._opened, self._task, self._tell)
        finally:
            engine.time = real

    @property
    def states(self) -> dict[str, State]:
        return {name: stage.state for name, stage in self.status.stages.items()}

    @property
    def status(self) -> Any:
        return derive_status(self.log.events(self.run_id))

    @contextmanager
    def _opened(self) -> Generator[ScriptedExecutor]:
        yield self.executor

    def _task(self, stage: PlannedStage, inputs: Mapping[str, Record]) -> StageTask:
        assert set(inputs) == set(stage.spec.inputs)
        assert all(record.stage == stage.spec.inputs[key] for key, record in inputs.items())
        return StageTask("r1", stage.name, stage.spec, stage.fingerprint, inputs, (), "", Path(), {})

    def _tell(self, *event: Any) -> None:
        self.told.append(event)
        if self.on_event:
            self.on_event(self, *event)


@st.composite
def plans(draw: st.DrawFn, failures: bool = True) -> tuple[Plan, dict[str, list[Attempt]], float]:
    hidden = draw(st.permutations(NAMES[: draw(st.integers(1, 6))]))
    reads = {
        n: draw(st.lists(st.sampled_from(hidden[:i]), unique=True)) if i else [] for i, n in enumerate(hidden)
    }
    attempts = st.builds(
        Attempt,
        takes_s=st.sampled_from([0.0, 0.3, 1.0, 7.0]),
        succeeds=st.booleans() if failures else st.just(True),
        retryable=st.sampled_from([True, True, False]),
    )
    script = {name: draw(st.lists(attempts, max_size=4)) for name in hidden}
    stages = tuple(
        planned(
            name,
            reads[name],
            num_cpus=draw(st.sampled_from([0.5, 1.0, 2.0, 6.0])),
            retries=draw(st.integers(0, 3)),
            backoff_s=draw(st.sampled_from([0.0, 1.0])),
        )
        for name in topological_order(reads)
    )
    return Plan("w", stages), script, draw(st.sampled_from([1.0, 4.0]))


def expected_states(plan: Plan, script: Mapping[str, Sequence[Attempt]]) -> dict[str, State]:
    states: dict[str, State] = {}
    for stage in plan.stages:
        if any(states[source] is not State.SUCCEEDED for source in stage.spec.inputs.values()):
            states[stage.name] = State.BLOCKED
            continue
        tries = [*script[stage.name], Attempt()][: stage.spec.run.retries + 1]
        decisive = next((a for a in tries if a.succeeds or not a.retryable), tries[-1])
        states[stage.name] = State.SUCCEEDED if decisive.succeeds else State.FAILED
    return states


# ── order, side by side, retries: for any workflow ─────────────────────────────────────────────────


@settings(deadline=None)
@given(plans())
def test_a_failed_stage_blocks_its_readers_and_all_others_go_on(case: Any) -> None:
    plan, script, num_cpus = case
    played = Played(plan, script, num_cpus)
    outcome = played.play()
    assert played.states == expected_states(plan, script)
    assert outcome == (State.FAILED if State.FAILED in played.states.values() else State.SUCCEEDED)
    assert played.status.state is outcome


@settings(deadline=None)
@given(plans())
def test_a_stage_begins_only_when_all_it_reads_is_there(case: Any) -> None:
    plan, script, num_cpus = case
    played = Played(plan, script, num_cpus)
    played.play()
    done = {one.stage: one.ends_s for one in played.executor.history if one.attempt.succeeds}
    for one in played.executor.history:
        assert all(done[source] <= one.at_s for source in plan[one.stage].spec.inputs.values())


@settings(deadline=None)
@given(plans())
def test_what_runs_at_once_fits_the_cpus_or_runs_alone(case: Any) -> None:
    plan, script, num_cpus = case
    played = Played(plan, script, num_cpus)
    played.play()
    for running in played.executor.polls:
        assert len(running) == 1 or sum(plan[name].cpus for name in running) <= num_cpus
        assert len(set(running)) == len(running)


@settings(deadline=None)
@given(plans(failures=False))
def test_no_stage_waits_that_could_run(case: Any) -> None:
    plan, script, num_cpus = case

    class Watching(ScriptedExecutor):
        def poll(self, timeout_s: float) -> list[Update]:
            running = [one.stage for one in self.running]
            begun = {one.stage for one in self.history}
            done = begun - set(running)
            free = self.num_cpus - sum(plan[name].cpus for name in running)
            for stage in plan.stages:
                if stage.name not in begun and set(stage.spec.inputs.values()) <= done:
                    assert stage.cpus > free, f"{stage.name} could run beside {running}"
            return super().poll(timeout_s)

    assert Played(plan, script, num_cpus, Watching).play() is State.SUCCEEDED


@settings(deadline=None)
@given(plans())
def test_the_log_has_every_event_that_was_told(case: Any) -> None:
    played = Played(*case)
    played.play()
    assert [(e.stage, e.event, e.fields) for e in played.log.events(played.run_id)] == played.told


@settings(deadline=None)
@given(plans(), st.data())
def test_a_run_killed_at_any_moment_is_recognised_and_keeps_what_was_finished(case: Any, data: Any) -> None:
    played = Played(*case)
    played.play()
    events = played.log.events(played.run_id)
    moment = data.draw(st.integers(1, len(events) - 1))
    before = derive_status(events[:moment])
    killed = played.log.create(parse(CHAIN))
    played.log.append(killed, [(e.stage, e.event, e.fields) for e in events[:moment]])
    status = played.log.status(killed)
    assert status.state is State.INTERRUPTED
    for name, stage in status.stages.items():
        was = before.stages[name].state
        assert stage.state is (State.INTERRUPTED if was in (State.RUNNING, State.RETRYING) else was)
    finished = {name for name, stage in status.stages.items() if TABLE[stage.state].has_artifact}
    again = [
        replace(s, decision=Decision.HIT, record=record_of(s.name))
        for s in case[0].stages
        if s.name in finished
    ]
    rest = [stage for stage in case[0].stages if stage.name not in finished]
    order = {stage.name: stage for stage in [*again, *rest]}
    resumed = Played(Plan("w", tuple(order[s.name] for s in case[0].stages)))
    assert resumed.play() is State.SUCCEEDED
    assert {one.stage for one in resumed.executor.history} == {stage.name for stage in rest}


def test_retries_wait_twice_as_long_each_time() -> None:
    script = {"a": [Attempt(1.0, succeeds=False)] * 4}
    played = Played(Plan("w", (planned("a", retries=3, backoff_s=2.0),)), script)
    assert played.play() is State.FAILED
    history = played.executor.history
    waits = [later.at_s - one.ends_s for one, later in pairwise(history)]
    assert waits == [2.0, 4.0, 8.0]
    reasons = [
        e.fields["reason"] for e in played.log.events(played.run_id) if e.fields.get("state") == "retrying"
    ]
    assert reasons == [f"it broke; attempt {n} in {s} s" for n, s in ((2, 2), (3, 4), (4, 8))]


def test_a_thousand_retries_without_a_wait_are_a_thousand_retries() -> None:
    script = {"a": [Attempt(0.0, succeeds=False)] * 1100}
    played = Played(Plan("w", (planned("a", retries=1100, backoff_s=0.0),)), script)
    assert played.play() is State.SUCCEEDED
    assert len(played.executor.history) == 1101


def test_others_go_on_while_one_waits_for_its_next_attempt() -> None:
    stages = (planned("a", retries=1, backoff_s=60.0), planned("b"), planned("c", ["b"]))
    played = Played(Plan("w", stages), {"a": [Attempt(1.0, succeeds=False)]})
    assert played.play() is State.SUCCEEDED
    assert [one.stage for one in played.executor.history] == ["a", "b", "c", "a"]


def test_what_a_person_must_mend_is_not_tried_again() -> None:
    played = Played(Plan("w", (planned("a", retries=5),)), {"a": [Attempt(succeeds=False, retryable=False)]})
    assert played.play() is State.FAILED
    assert len(played.executor.history) == 1


def test_an_attempt_that_takes_too_long_is_ended_and_tried_again() -> None:
    plan = Plan("w", (planned("a", retries=1, timeout_s=10.0), planned("b"), planned("c", ["a"])))
    played = Played(plan, {"a": [Attempt(100.0), Attempt(5.0)]})
    assert played.play() is State.SUCCEEDED
    first, second = (one for one in played.executor.history if one.stage == "a")
    assert first.cancelled
    assert not second.cancelled
    assert 10.0 < second.at_s - first.at_s <= 11.0


def test_what_takes_too_long_each_time_fails_with_the_field_to_change() -> None:
    played = Played(Plan("w", (planned("a", retries=1, timeout_s=10.0),)), {"a": [Attempt(100.0)] * 2})
    assert played.play() is State.FAILED
    assert "took longer than 10 s" in played.status.stages["a"].reason
    assert "--set a.run.timeout_s=" in played.status.stages["a"].reason


def test_a_stage_that_wants_more_cpus_than_there_are_runs_alone() -> None:
    stages = (planned("a"), planned("big", num_cpus=64), planned("b"))
    played = Played(Plan("w", stages), num_cpus=2.0)
    assert played.play() is State.SUCCEEDED
    assert ["big"] in played.executor.polls


# ── hits, cancel, trouble ──────────────────────────────────────────────────────────────────────────


def test_what_is_cached_is_a_hit_and_needs_no_executor() -> None:
    played = Played(Plan("w", (planned("a", hit=True), planned("b", ["a"], hit=True))))

    @contextmanager
    def never() -> Generator[Any]:
        raise AssertionError("opened")
        yield

    played._opened = never
    assert played.play() is State.SUCCEEDED
    assert set(played.states.values()) == {State.HIT}


def test_what_reads_from_a_hit_runs_at_once() -> None:
    played = Played(Plan("w", (planned("a", hit=True), planned("b", ["a"]))))
    assert played.play() is State.SUCCEEDED
    assert played.states == {"a": State.HIT, "b": State.SUCCEEDED}
    assert [one.stage for one in played.executor.history] == ["b"]


STAGES = (planned("a"), planned("b", ["a"]), planned("long", ["a"]), planned("c", ["b", "long"]))


def test_asked_to_through_the_log_a_run_ends_what_runs_and_keeps_what_was_finished() -> None:
    def ask(played: Played, stage: str | None, event: str, fields: Mapping[str, Any]) -> None:
        if (stage, fields.get("state")) == ("b", "succeeded"):
            played.log.append(played.run_id, [(None, "cancel", {})])

    played = Played(Plan("w", STAGES), {"long": [Attempt(1000.0)]}, on_event=ask)
    assert played.play() is State.CANCELLED
    assert played.states == {
        "a": State.SUCCEEDED,
        "b": State.SUCCEEDED,
        "long": State.CANCELLED,
        "c": State.CANCELLED,
    }
    assert played.status.state is State.CANCELLED
    assert [one.stage for one in played.executor.history if one.cancelled] == ["long"]
    assert played.clock.now < 1010.0


def test_an_old_wish_to_cancel_does_not_end_a_run_that_is_taken_up_again() -> None:
    played = Played(Plan("w", STAGES))
    played.log.append(played.run_id, [(None, "plan", {"stages": {}}), (None, "cancel", {})])
    assert played.play() is State.SUCCEEDED


class Breaking(ScriptedExecutor):
    error: BaseException = KeyboardInterrupt()

    def poll(self, timeout_s: float) -> list[Update]:
        if any(one.stage == "long" for one in self.running):
            raise self.error
        return super().poll(timeout_s)


def test_the_keyboard_ends_what_runs_and_the_log_says_so() -> None:
    played = Played(Plan("w", STAGES), {"long": [Attempt(1000.0)]}, executor=Breaking)
    assert played.play() is State.CANCELLED
    assert played.states["a"] is State.SUCCEEDED
    assert played.status.stages["long"].reason == "interrupted by the keyboard"
    assert "long" in [one.stage for one in played.executor.history if one.cancelled]


def test_a_cluster_that_breaks_down_is_told_and_logged() -> None:
    class Broken(Breaking):
        error = RuntimeError("the head is gone")

    played = Played(Plan("w", STAGES), executor=Broken)
    with pytest.raises(RuntimeError, match="the head is gone"):
        played.play()
    assert played.status.state is State.CANCELLED
    assert played.status.reason == "the head is gone"
    assert played.states["a"] is State.SUCCEEDED


def test_a_process_that_lost_its_run_stops_and_writes_nothing_more() -> None:
    def lose(played: Played, stage: str | None, event: str, fields: Mapping[str, Any]) -> None:
        if (stage, fields.get("state")) == ("long", "running"):
            played.log.release(played.run_id)

    played = Played(Plan("w", STAGES), {"long": [Attempt(1000.0)]}, on_event=lose)
    with pytest.raises(TakenError):
        played.play()
    assert played.clock.now < 1000.0 + 20
    assert played.states["long"] is State.RUNNING
    assert played.status.state is State.RUNNING


def test_a_run_that_takes_long_keeps_saying_that_it_is_alive() -> None:
    beats: list[float] = []
    played = Played(Plan("w", (planned("a"),)), {"a": [Attempt(300.0)]})
    beat = played.log.beat
    played.log.beat = lambda run_id: (beats.append(played.clock.now), beat(run_id))[1]
    assert played.play() is State.SUCCEEDED
    assert max(later - one for one, later in pairwise([1000.0, *beats])) < 10.0
    assert beats[-1] > 1290.0


class Progressing(ScriptedExecutor):
    """A stage of 400 steps, ten of them in each second."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.steps = 0

    def poll(self, timeout_s: float) -> list[Update]:
        stage = self.running[0].stage
        updates = super().poll(min(timeout_s, 0.1))
        self.steps += not updates
        progress = Update(stage, "progress", {"step": self.steps, "total": 400, "metrics": {}})
        return [progress, *updates] if self.steps <= 400 else updates


def test_of_many_steps_the_first_ones_one_in_a_second_and_the_last_are_logged() -> None:
    played = Played(Plan("w", (planned("a"),)), {"a": [Attempt(40.05)]}, executor=Progressing)
    assert played.play() is State.SUCCEEDED
    steps = [e.fields["step"] for e in played.log.events(played.run_id) if e.event == "progress"]
    assert steps[:49] == list(range(1, 50))
    assert steps[-1] == 400
    assert 25 <= len(steps[49:]) <= 40


# ── with real stages ───────────────────────────────────────────────────────────────────────────────


def test_a_run_makes_its_artifacts_and_the_next_one_finds_them(home: Home) -> None:
    _, outcome = home.carry_out(parse(CHAIN))
    assert outcome is State.SUCCEEDED
    executor = ThreadExecutor()
    run_id, outcome = home.carry_out(parse(CHAIN), executor=executor)
    assert outcome is State.SUCCEEDED
    assert executor.submitted == []
    status = home.log.status(run_id)
    assert {stage.state for stage in status.stages.values()} == {State.HIT}
    assert status.stages["report"].facts == {"changed": 5}


def test_after_a_change_only_what_follows_from_it_is_made_anew(home: Home) -> None:
    text = CHAIN + "  other: {kind: write, text: other}\n"
    home.carry_out(parse(text))
    executor = ThreadExecutor()
    home.carry_out(parse(text, "other.text=changed"), executor=executor)
    assert executor.submitted == ["other"]


def test_a_stage_that_fails_now_and_then_is_tried_until_it_works(home: Home) -> None:
    text = (
        "version: 1\nname: x\nstages:\n  flaky: {kind: trouble, how: flaky, run: {retries: 2, backoff_s: 0}}"
    )
    run_id, outcome = home.carry_out(parse(text))
    assert outcome is State.SUCCEEDED
    states = [e.fields["state"] for e in home.log.events(run_id) if e.stage == "flaky" and e.event == "state"]
    assert states == ["running", "retrying", "running", "retrying", "running", "succeeded"]
    assert home.log.status(run_id).stages["flaky"].attempt == 3


def test_a_failed_run_is_taken_up_where_it_failed(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    text = CHAIN + "  token: {kind: trouble, how: explained, token: x}\n"
    run_id, outcome = home.carry_out(parse(text))
    assert outcome is State.FAILED
    assert home.log.status(run_id).stages["report"].state is State.SUCCEEDED
    executor = ThreadExecutor()
    _, outcome = home.carry_out(parse(text, "token.how=none"), run_id, executor)
    assert outcome is State.SUCCEEDED
    assert executor.submitted == ["token"]
    assert home.log.status(run_id).state is State.SUCCEEDED


def test_two_runs_of_the_same_at_once_make_it_once(home: Home) -> None:
    outcomes: list[Any] = []
    workflow = parse(CHAIN)

    def run() -> None:
        mine = Home.at(home.path)
        outcomes.append(mine.carry_out(workflow)[1])

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == [State.SUCCEEDED] * 2
    assert home.written() == ["corpus"]


RUN = """
import sys
from pathlib import Path
from workflow_harness import CHAIN, Home, parse
Home.at(Path(sys.argv[1])).carry_out(parse(CHAIN, f"capitals.hold_until={sys.argv[2]}"))
"""


def test_a_run_killed_with_its_process_goes_on_from_the_last_finished_stage(
    home: Home, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    path = {**os.environ, "PYTHONPATH": str(Path(__file__).parent / "packages")}
    with subprocess.Popen([sys.executable, "-c", RUN, str(home.path), str(go)], env=path) as process:
        while not (found := home.log.runs()) or not any(
            event.event == "log" and event.stage == "capitals" for event in home.log.events(found[0].id)
        ):
            assert process.poll() is None
            time.sleep(0.05)
        process.kill()
    run = home.log.find("last")
    status = home.log.status(run.id)
    assert status.state is State.INTERRUPTED
    assert [stage.state for stage in status.stages.values()] == [
        State.SUCCEEDED,
        State.INTERRUPTED,
        State.WAITING,
    ]
    go.touch()
    executor = ThreadExecutor()
    _, outcome = home.carry_out(parse(run.text, *run.overrides), run.id, executor)
    assert outcome is State.SUCCEEDED
    assert executor.submitted == ["capitals", "report"]
    assert home.written() == ["corpus"]
    assert [s.state for s in home.log.status(run.id).stages.values()] == [
        State.HIT,
        State.SUCCEEDED,
        State.SUCCEEDED,
    ]
