"""What the workflow tests share: small workflows, an executor in threads, and one that follows a script."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eagleray.workflows.engine import Failure, Update, execute
from eagleray.workflows.errors import EaglerayError
from eagleray.workflows.loading import Workflow, parse_workflow
from eagleray.workflows.plan import Plan, PlannedStage, make_plan
from eagleray.workflows.runs import RunLog
from eagleray.workflows.stage import discover_kinds
from eagleray.workflows.state import State
from eagleray.workflows.store import ArtifactStore, Record
from eagleray.workflows.task import StageTask, run_task

KEY, SECRET = "AKIAKEY", "s3cr3t-Key"  # of the S3 server
PACKAGES = ("small_stages",)
KINDS = discover_kinds(PACKAGES)

CHAIN = """\
version: 1
name: chain
stages:
  corpus:
    kind: write
    text: hello
  capitals:
    kind: upper
    inputs: {corpus: corpus}
  report:
    kind: compare
    inputs: {corpus: corpus, checkpoint: capitals}
"""


def parse(text: str, *overrides: str, env: Mapping[str, str] | None = None) -> Workflow:
    return parse_workflow(text, "flow.yaml", overrides, KINDS, env or {})


class ThreadExecutor:
    """Runs attempts by `run_task`, each in a thread of this process."""

    def __init__(self, num_cpus: float = 4.0) -> None:
        self.num_cpus = num_cpus
        self.submitted: list[str] = []
        self._updates: queue.SimpleQueue[tuple[int, Update]] = queue.SimpleQueue()
        self._live: dict[str, int] = {}

    def submit(self, task: StageTask) -> None:
        self.submitted.append(task.stage)
        number = len(self.submitted)
        self._live[task.stage] = number

        def work() -> None:
            def emit(event: str, /, **fields: Any) -> None:
                self._updates.put((number, Update(task.stage, event, fields)))

            try:
                update = Update(task.stage, record=run_task(task, emit))
            except EaglerayError as error:
                update = Update(task.stage, failure=Failure(str(error), error.retryable))
            except Exception as error:
                message = f"{type(error).__name__}: {error}"
                update = Update(task.stage, failure=Failure(message, retryable=True, details=message))
            self._updates.put((number, update))

        threading.Thread(target=work, daemon=True).start()

    def poll(self, timeout_s: float) -> list[Update]:
        try:
            found = [self._updates.get(timeout=timeout_s)]
            while not self._updates.empty():
                found.append(self._updates.get())
        except queue.Empty:
            return []
        return [update for number, update in found if self._live.get(update.stage) == number]

    def cancel(self, stage: str) -> None:
        self._live.pop(stage, None)


@dataclass
class Home:
    """A folder with a store and a run log, as a session has it."""

    path: Path
    store: ArtifactStore
    log: RunLog
    secrets: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def at(cls, path: Path) -> Home:
        store = ArtifactStore(str(path / "store"), path / "artifacts")
        return cls(path, store, RunLog(f"sqlite:///{path / 'runs.db'}"))

    def plan(self, workflow: Workflow) -> Plan:
        return make_plan(workflow, KINDS, self.store.find, self.path, self.store.list())

    def task(
        self, planned: PlannedStage, inputs: Mapping[str, Record], run_id: str, secrets: Any
    ) -> StageTask:
        return StageTask(
            run_id=run_id,
            stage=planned.name,
            spec=planned.spec,
            fingerprint=planned.fingerprint,
            inputs=inputs,
            packages=PACKAGES,
            store=self.store.uri,
            home=self.path,
            secrets=secrets,
        )

    def carry_out(
        self, workflow: Workflow, run_id: str = "", executor: Any = None, on_event: Any = lambda *_: None
    ) -> tuple[str, State]:
        """A run of a workflow; the id of an earlier one takes that up."""
        run_id = run_id or self.log.create(workflow)

        @contextmanager
        def opened() -> Generator[Any]:
            yield executor or ThreadExecutor()

        def make_task(planned: PlannedStage, inputs: Mapping[str, Record]) -> StageTask:
            return self.task(planned, inputs, run_id, workflow.secrets)

        self.log.claim(run_id)
        try:
            return run_id, execute(self.plan(workflow), run_id, self.log, opened, make_task, on_event)
        finally:
            self.log.release(run_id)

    def attempt(self, workflow: Workflow, stage: str, emit: Any = lambda *_, **__: None) -> Record:
        """One attempt at a stage, those that it reads from having been made."""
        planned = self.plan(workflow)[stage]
        found = {key: self.plan(workflow)[source].record for key, source in planned.spec.inputs.items()}
        inputs = {key: record for key, record in found.items() if record}
        return run_task(self.task(planned, inputs, "r1", workflow.secrets), emit)

    def written(self) -> list[str]:
        """Names of the stages whose `write` function ran, once for each time."""
        path = self.path / "downloads" / "written"
        return path.read_text().splitlines() if path.exists() else []


class Clock:
    """Stands where the engine has the module `time`, so that waiting takes none."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@dataclass(frozen=True)
class Attempt:
    """How an attempt goes: seconds until it ends, and whether it succeeds."""

    takes_s: float = 1.0
    succeeds: bool = True
    retryable: bool = True


@dataclass
class Submitted:
    stage: str
    at_s: float
    ends_s: float
    attempt: Attempt
    cpus: float
    cancelled: bool = False


class ScriptedExecutor:
    """Follows a script of attempts on a clock that it moves itself."""

    def __init__(self, clock: Clock, script: Mapping[str, Sequence[Attempt]], num_cpus: float = 4.0) -> None:
        self.clock = clock
        self.num_cpus = num_cpus
        self.script = {name: list(attempts) for name, attempts in script.items()}
        self.running: list[Submitted] = []
        self.history: list[Submitted] = []
        self.polls: list[list[str]] = []

    def submit(self, task: StageTask) -> None:
        left = self.script.get(task.stage)
        attempt = left.pop(0) if left else Attempt()
        now = self.clock.now
        one = Submitted(task.stage, now, now + attempt.takes_s, attempt, task.spec.run.num_cpus)
        self.running.append(one)
        self.history.append(one)

    def poll(self, timeout_s: float) -> list[Update]:
        assert self.running, "polled though nothing runs"
        self.polls.append([one.stage for one in self.running])
        end = self.clock.now + timeout_s
        self.clock.now = max(self.clock.now, min([end, *(one.ends_s for one in self.running)]))
        done = [one for one in self.running if one.ends_s <= self.clock.now]
        self.running = [one for one in self.running if one.ends_s > self.clock.now]
        return [self._ended(one) for one in done]

    def cancel(self, stage: str) -> None:
        for one in self.running:
            one.cancelled = one.cancelled or one.stage == stage
        self.running = [one for one in self.running if one.stage != stage]

    @staticmethod
    def _ended(one: Submitted) -> Update:
        if not one.attempt.succeeds:
            return Update(one.stage, failure=Failure("it broke", one.attempt.retryable))
        return Update(one.stage, record=record_of(one.stage))


def record_of(stage: str, **changes: Any) -> Record:
    values: dict[str, Any] = {
        "type": "Corpus",
        "fingerprint": f"f-{stage}",
        "digest": f"d-{stage}",
        "files": (),
        "stage": stage,
        "kind": "write",
        "run_id": "r1",
        "spec": {},
        "parents": {},
        "inputs": {},
        "facts": {},
        "created_s": time.time(),
    }
    return Record(**values | changes)
