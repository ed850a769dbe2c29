"""What the commands have in common: one home folder with its store, its run log, and the stage kinds."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from .workflows.artifacts import Artifact
from .workflows.errors import EaglerayError
from .workflows.loading import Workflow, load_workflow, parse_workflow
from .workflows.plan import Decision, Plan, PlannedStage, make_plan
from .workflows.stage import StageKind, discover_kinds
from .workflows.state import State
from .workflows.store import ArtifactStore, Record
from .workflows.task import DOWNLOADS, StageTask

if TYPE_CHECKING:
    from .cluster.connect import Connection
    from .workflows.engine import Executor, OnEvent
    from .workflows.runs import RunLog

STAGE_PACKAGES = ("eagleray.pipelines.stages", "eagleray.actors.stages")


@dataclass(frozen=True)
class PreparedRun:
    """A run that this process is about to carry out."""

    id: str
    workflow: Workflow
    plan: Plan


class Session:
    """Everything a command works on.

    Args:
        home: folder of runs, artifacts, downloads and scratch.
        store: URI of the artifact store; HOME/store by default.
        database: URL of the run log; SQLite in HOME by default.
    """

    def __init__(self, home: Path, store: str | None = None, database: str | None = None) -> None:
        self.home = home.expanduser().absolute()
        self.store = ArtifactStore(store or str(self.home / "store"), self.home / "artifacts")
        self._database = database or f"sqlite:///{self.home / 'runs.db'}"

    @cached_property
    def kinds(self) -> Mapping[str, StageKind]:
        """The stage kinds there are."""
        return discover_kinds(STAGE_PACKAGES)

    @cached_property
    def log(self) -> RunLog:
        """The run log."""
        from .workflows.runs import RunLog  # SQLAlchemy, which no device at the edge has

        return RunLog(self._database)

    def load(self, path: Path, overrides: Sequence[str]) -> Workflow:
        """Read and check a workflow file."""
        return load_workflow(path, overrides, self.kinds, os.environ)

    def plan(self, workflow: Workflow) -> Plan:
        """Decide about every stage; allocates nothing."""
        return make_plan(workflow, self.kinds, self.store.find, self.home / DOWNLOADS, self.store.list())

    def prepare(self, workflow: Workflow) -> PreparedRun:
        """Begin a run of a workflow.

        Raises:
            EaglerayError: when one of its stages can't work; nothing was begun then.
        """
        plan = self._workable(workflow)
        return PreparedRun(self.log.create(workflow), workflow, plan)

    def prepare_again(self, run_id: str) -> PreparedRun:
        """Take up an earlier run: its workflow is checked and planned anew."""
        workflow = self.reload(run_id)
        return PreparedRun(self.log.find(run_id).id, workflow, self._workable(workflow))

    def reload(self, run_id: str) -> Workflow:
        """The workflow of an earlier run, checked anew."""
        info = self.log.find(run_id)
        return parse_workflow(info.text, info.filename, info.overrides, self.kinds, os.environ)

    def carry_out(
        self,
        run: PreparedRun,
        address: str | None,
        log: Callable[[str], None],
        on_connected: Callable[[Connection], None],
        on_event: OnEvent,
    ) -> State:
        """Carry a run out on a Ray cluster; one that is cached whole needs none.

        Args:
            run: from `prepare`.
            address: of the cluster; None for one on this machine, which is started if need be, and
                left running while it serves something.
            log: takes a line for people about the cluster.
            on_connected: is told of the cluster.
            on_event: is told of every event.
        """
        from .workflows.engine import execute

        def make_task(planned: PlannedStage, inputs: Mapping[str, Record]) -> StageTask:
            return StageTask(
                run_id=run.id,
                stage=planned.name,
                spec=planned.spec,
                fingerprint=planned.fingerprint,
                inputs=inputs,
                packages=STAGE_PACKAGES,
                store=self.store.uri,
                home=self.home,
                secrets=run.workflow.secrets,
            )

        @contextmanager
        def open_executor() -> Generator[Executor]:
            from .cluster.connect import connect

            with connect(address, self.home, run.plan.cpus, log) as connection:
                from .cluster.executor import RayExecutor  # imports Ray, which then reads its environment

                on_connected(connection)
                with closing(RayExecutor()) as executor:
                    yield executor

        self.log.claim(run.id)
        try:
            return execute(run.plan, run.id, self.log, open_executor, make_task, on_event)
        finally:
            self.log.release(run.id)

    def made(self, run_id: str, kind: type[Artifact]) -> list[Record]:
        """What a run has made of a type of artifact, each after what it was made from."""
        run = self.log.find(run_id)
        stages = self.plan(self.reload(run.id)).stages
        return [s.record for s in stages if issubclass(s.kind.gives, kind) and s.record is not None]

    def parent(self, record: Record, name: str) -> Artifact:
        """Open the artifact that another was made from.

        Raises:
            EaglerayError: when the store has it no longer.
        """
        for found in self.store.list():
            if found.digest == record.parents[name]:
                return self.store.open(found)
        raise EaglerayError(
            f"the {name} that {record.stage!r} was made from is no longer in the store",
            "run the workflow again",
            self.store.shown,
        )

    def _workable(self, workflow: Workflow) -> Plan:
        plan = self.plan(workflow)
        for stage in plan.stages:
            if stage.decision is Decision.BLOCKED:
                raise stage.error or EaglerayError(stage.reason, where=stage.name)
        self.store.prepare()
        return plan
