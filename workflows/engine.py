"""Carries a plan out: each stage as soon as its inputs exist, with retries, timeouts and cancel."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from .plan import Decision, Plan, PlannedStage
from .runs import RunLog, TakenError
from .state import TABLE, State
from .store import Record
from .task import StageTask

POLL_S = 0.5
BEAT_EVERY_S = 5.0
CANCEL_CHECK_EVERY_S = 1.0
EVERY_STEP_BELOW = 50
MAX_DOUBLINGS = 10
PROGRESS_EVERY_S = 1.0


@dataclass(frozen=True)
class Failure:
    """Why an attempt failed.

    Attributes:
        message: for people.
        retryable: whether another attempt may go better.
        details: the traceback, for `--debug`.
    """

    message: str
    retryable: bool
    details: str = ""


@dataclass(frozen=True)
class Update:
    """What an executor has to say about a stage: an event, or how its attempt ended."""

    stage: str
    event: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)
    record: Record | None = None
    failure: Failure | None = None


OnEvent = Callable[[str | None, str, Mapping[str, Any]], None]
"""Called with stage (None for the run), event and fields."""


class Executor(Protocol):
    """Runs attempts at stages, each by `run_task`, somewhere."""

    @property
    def num_cpus(self) -> float:
        """CPUs there are."""
        ...

    def submit(self, task: StageTask) -> None:
        """Start an attempt."""
        ...

    def poll(self, timeout_s: float) -> list[Update]:
        """Wait for updates, at most so long; a stage's end comes after all of its events."""
        ...

    def cancel(self, stage: str) -> None:
        """End a running attempt; nothing is heard of it afterwards."""
        ...


@dataclass
class _Stage:
    planned: PlannedStage
    state: State = State.WAITING
    attempt: int = 0
    started: float = 0.0
    not_before: float = 0.0
    progressed: float = 0.0
    record: Record | None = None


def execute(
    plan: Plan,
    run_id: str,
    log: RunLog,
    open_executor: Callable[[], AbstractContextManager[Executor]],
    make_task: Callable[[PlannedStage, Mapping[str, Record]], StageTask],
    on_event: OnEvent,
) -> State:
    """Carry a plan out and return how it ended.

    A failed stage blocks those that read from it; all others go on. Interrupted by the keyboard, or
    asked to through the log, it cancels what runs.

    Args:
        plan: without blocked stages.
        run_id: of a run that this process has claimed.
        log: takes every event.
        open_executor: opens what runs the stages; not called when all of them are cached.
        make_task: makes a stage's task from the records of its inputs.
        on_event: is told of every event as well.
    """
    engine = _Engine(plan, run_id, log, make_task, on_event)
    engine.begin()
    if not engine.finished():
        try:
            with open_executor() as executor:
                engine.work(executor)
        except TakenError:  # whoever carries the run out now writes its log
            raise
        except BaseException as error:
            reason = str(error) or type(error).__name__
            if isinstance(error, KeyboardInterrupt):
                reason = "interrupted by the keyboard"
            engine.abandon("the run could not go on")
            engine.end(reason)
            raise
    return engine.end()


class _Engine:
    def __init__(
        self,
        plan: Plan,
        run_id: str,
        log: RunLog,
        make_task: Callable[[PlannedStage, Mapping[str, Record]], StageTask],
        on_event: OnEvent,
    ) -> None:
        self.run_id = run_id
        self.log = log
        self.make_task = make_task
        self.on_event = on_event
        self.stages = {planned.name: _Stage(planned) for planned in plan.stages}
        self.pending: list[tuple[str | None, str, Mapping[str, Any]]] = []
        self.beaten = self.asked = time.monotonic()

    def begin(self) -> None:
        kinds = {name: stage.planned.kind.name for name, stage in self.stages.items()}
        self.say(None, "plan", {"stages": kinds})
        for name, stage in self.stages.items():
            if stage.planned.decision is Decision.HIT and stage.planned.record is not None:
                stage.record = stage.planned.record
                self.enter(name, State.HIT, stage.planned.reason, facts=stage.record.facts)
        self.flush()

    def finished(self) -> bool:
        return all(TABLE[stage.state].terminal for stage in self.stages.values())

    def work(self, executor: Executor) -> None:
        try:
            while not self.finished():
                self.flush()
                self.start_ready(executor)
                self.flush()
                if any(stage.state is State.RUNNING for stage in self.stages.values()):
                    for update in executor.poll(POLL_S):
                        self.take(update)
                else:  # all that is left waits for its next attempt
                    time.sleep(POLL_S)
                self.check_timeouts(executor)
                self.flush()
                if self.is_cancelled():
                    self.cancel(executor, "cancelled")
        except KeyboardInterrupt:
            self.cancel(executor, "interrupted by the keyboard")

    def is_cancelled(self) -> bool:
        """Whether someone asked to cancel the run."""
        now = time.monotonic()
        if now - self.asked <= CANCEL_CHECK_EVERY_S:
            return False
        self.asked = now
        return self.log.is_cancelled(self.run_id)

    def start_ready(self, executor: Executor) -> None:
        running = [stage for stage in self.stages.values() if stage.state is State.RUNNING]
        free = executor.num_cpus - sum(stage.planned.cpus for stage in running)
        for name, stage in self.stages.items():
            inputs = {key: self.stages[s].record for key, s in stage.planned.spec.inputs.items()}
            records = {key: record for key, record in inputs.items() if record is not None}
            waits = stage.state not in (State.WAITING, State.RETRYING)
            if waits or len(records) < len(inputs) or time.monotonic() < stage.not_before:
                continue
            if stage.planned.cpus > free and running:
                continue  # what runs gives its CPUs back
            stage.attempt += 1
            stage.started = time.monotonic()
            self.enter(name, State.RUNNING, attempt=stage.attempt)
            executor.submit(self.make_task(stage.planned, records))
            running.append(stage)
            free -= stage.planned.cpus

    def take(self, update: Update) -> None:
        stage = self.stages[update.stage]
        if update.record is not None:
            stage.record = update.record
            self.enter(update.stage, State.SUCCEEDED, facts=update.record.facts)
        elif update.failure is not None:
            self.fail(update.stage, update.failure)
        elif update.event == "progress":
            self.progress(stage, update)
        else:
            self.say(update.stage, update.event, update.fields)

    def progress(self, stage: _Stage, update: Update) -> None:
        """Log the first steps one by one, then one a second, and the last."""
        step, total = update.fields.get("step", 0), update.fields.get("total", 0)
        due = time.monotonic() - stage.progressed >= PROGRESS_EVERY_S
        if step < EVERY_STEP_BELOW or step == total or due:
            stage.progressed = time.monotonic()
            self.say(update.stage, "progress", update.fields)

    def fail(self, name: str, failure: Failure) -> None:
        stage = self.stages[name]
        options = stage.planned.spec.run
        if failure.retryable and stage.attempt <= options.retries:
            wait_s = options.backoff_s * 2 ** min(stage.attempt - 1, MAX_DOUBLINGS)
            stage.not_before = time.monotonic() + wait_s
            reason = f"{failure.message}; attempt {stage.attempt + 1} in {wait_s:g} s"
            self.enter(name, State.RETRYING, reason, details=failure.details)
            return
        self.enter(name, State.FAILED, failure.message, details=failure.details)
        broken = {name}
        for other, reader in self.stages.items():  # each comes after what it reads from
            cause = broken & set(reader.planned.spec.inputs.values())
            if cause and not TABLE[reader.state].terminal:
                broken.add(other)
                self.enter(other, State.BLOCKED, f"{min(cause)} did not finish")

    def check_timeouts(self, executor: Executor) -> None:
        for name, stage in self.stages.items():
            limit_s = stage.planned.spec.run.timeout_s
            if stage.state is not State.RUNNING or limit_s is None:
                continue
            if time.monotonic() - stage.started > limit_s:
                executor.cancel(name)
                message = f"took longer than {limit_s:g} s\n  → give it more: --set {name}.run.timeout_s=…"
                self.fail(name, Failure(message, retryable=True))

    def cancel(self, executor: Executor, reason: str) -> None:
        for name, stage in self.stages.items():
            if stage.state is State.RUNNING:
                executor.cancel(name)
        self.abandon(reason)

    def abandon(self, reason: str) -> None:
        for name, stage in self.stages.items():
            if not TABLE[stage.state].terminal:
                self.enter(name, State.CANCELLED, reason)
        self.flush()

    def end(self, reason: str = "") -> State:
        """Say how the run ended: as the worst of its stages did."""
        states = {stage.state for stage in self.stages.values()}
        bad = [state for state in (State.FAILED, State.CANCELLED) if state in states]
        outcome = bad[0] if bad else State.SUCCEEDED
        self.say(None, "state", {"state": outcome.value, "reason": reason})
        self.flush()
        return outcome

    def enter(self, name: str, state: State, reason: str = "", **fields: object) -> None:
        self.stages[name].state = state
        self.say(name, "state", {"state": state.value, "reason": reason, **fields})

    def say(self, stage: str | None, event: str, fields: Mapping[str, Any]) -> None:
        self.pending.append((stage, event, fields))
        self.on_event(stage, event, fields)

    def flush(self) -> None:
        """Write what was said; before that, now and then, that this process still carries the run out."""
        now = time.monotonic()
        if now - self.beaten > BEAT_EVERY_S:
            self.beaten = now
            self.log.beat(self.run_id)
        self.log.append(self.run_id, self.pending)
        self.pending = []
