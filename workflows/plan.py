"""What a run would do, and why: pure, from the graph and what the store has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from .errors import EaglerayError
from .fingerprint import changes, fingerprint, identity
from .graph import topological_order
from .loading import Workflow
from .secrets import resolve
from .spec import StageSpec
from .stage import StageKind
from .store import Record


class Decision(StrEnum):
    """What is to be done about a stage."""

    HIT = "HIT"
    RUN = "RUN"
    BLOCKED = "BLOCKED"


@dataclass(frozen=True)
class PlannedStage:
    """A stage of a plan.

    Attributes:
        name: of the stage.
        kind: its kind.
        spec: its spec.
        decision: cached, to be run, or impossible.
        reason: why, for people.
        fingerprint: identity of its result; empty when blocked.
        cpus: CPUs it needs at once.
        record: of the cached artifact.
        error: why it is impossible.
    """

    name: str
    kind: StageKind
    spec: StageSpec
    decision: Decision
    reason: str
    fingerprint: str
    cpus: float
    record: Record | None = None
    error: EaglerayError | None = None


@dataclass(frozen=True)
class Plan:
    """A workflow's stages, each after what it reads from."""

    workflow: str
    stages: tuple[PlannedStage, ...]

    def __getitem__(self, name: str) -> PlannedStage:
        """The stage of that name."""
        return next(stage for stage in self.stages if stage.name == name)

    @property
    def cpus(self) -> float:
        """CPUs that the largest stage to be run needs at once."""
        return max((s.cpus for s in self.stages if s.decision is Decision.RUN), default=0.0)


def make_plan(
    workflow: Workflow,
    kinds: Mapping[str, StageKind],
    find: Callable[[str], Record | None],
    cache: Path,
    history: Sequence[Record] = (),
) -> Plan:
    """Decide about every stage.

    Args:
        workflow: a checked workflow.
        kinds: the stage kinds there are.
        find: looks a fingerprint up in the store.
        cache: local folder for what a look at outside data may keep.
        history: records of earlier runs, newest first, to say what changed.
    """

    def outside(kind: StageKind, spec: StageSpec) -> str | None:
        return kind.outside(resolve(spec, workflow.secrets), cache) if kind.outside else None

    planned: dict[str, PlannedStage] = {}
    for name in topological_order({name: spec.inputs.values() for name, spec in workflow.stages.items()}):
        planned[name] = _decide(name, workflow.stages, planned, kinds, find, outside, history)
    return Plan(workflow.name, tuple(planned.values()))


def _decide(
    name: str,
    stages: Mapping[str, StageSpec],
    planned: Mapping[str, PlannedStage],
    kinds: Mapping[str, StageKind],
    find: Callable[[str], Record | None],
    outside: Callable[[StageKind, StageSpec], str | None],
    history: Sequence[Record],
) -> PlannedStage:
    spec = stages[name]
    kind = kinds[spec.kind]
    cpus = kind.cpus(spec)

    def refused(error: EaglerayError) -> PlannedStage:
        return PlannedStage(name, kind, spec, Decision.BLOCKED, str(error), "", cpus, error=error)

    blocked = [source for source in spec.inputs.values() if planned[source].decision is Decision.BLOCKED]
    if blocked:
        return PlannedStage(name, kind, spec, Decision.BLOCKED, f"{blocked[0]} is blocked", "", cpus)
    try:
        if kind.check is not None:
            kind.check(name, spec)
        digest_outside = outside(kind, spec)
    except EaglerayError as error:
        return refused(error)
    inputs = {key: planned[source].fingerprint for key, source in spec.inputs.items()}
    digest = fingerprint(kind, spec, inputs, digest_outside)
    if not kind.cached:
        reason = "is done for its effect, so it always runs"
        return PlannedStage(name, kind, spec, Decision.RUN, reason, digest, cpus)
    record = find(digest)
    if record is not None:
        reason = f"made by run {record.run_id}"
        return PlannedStage(name, kind, spec, Decision.HIT, reason, digest, cpus, record)
    if kind.needs is not None:
        try:
            kind.needs(name, stages, lambda digest: find(digest) is not None)
        except EaglerayError as error:
            return refused(error)
    reason = _what_changed(name, kind, spec, inputs, history)
    return PlannedStage(name, kind, spec, Decision.RUN, reason, digest, cpus)


def _what_changed(
    name: str, kind: StageKind, spec: StageSpec, inputs: Mapping[str, str], history: Sequence[Record]
) -> str:
    before = next((r for r in history if r.stage == name and r.kind == kind.name), None)
    if before is None:
        return "was never run"
    ours, theirs = identity(spec), dict(before.spec)
    ours["inputs"] = theirs["inputs"] = None  # names of stages decide nothing
    found = changes(theirs, ours)
    found += [f"input {key} changed" for key, value in inputs.items() if before.inputs.get(key) != value]
    return "; ".join(found) or "its outside data changed"
