"""What happens in a run, and where it stands by that; without the database that keeps it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .state import TABLE, State


@dataclass(frozen=True)
class Event:
    """Something that happened in a run.

    Attributes:
        number: grows with every event of the log.
        time_s: seconds since the epoch.
        stage: it happened in; None for the run as a whole.
        event: `state`, `progress`, `log`, `plan` or `cancel`.
        fields: what there is to say about it (JSON values).
    """

    number: int
    time_s: float
    stage: str | None
    event: str
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class RunInfo:
    """What a run was started with."""

    id: str
    workflow: str
    filename: str
    text: str
    overrides: tuple[str, ...]
    created_s: float


@dataclass
class StageStatus:
    """Where a stage stands; times in seconds since the epoch, `details` a traceback."""

    kind: str
    state: State = State.WAITING
    reason: str = ""
    attempt: int = 0
    started_s: float | None = None
    ended_s: float | None = None
    progress: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    details: str = ""

    def apply(self, event: Event) -> None:
        """Take in one of the stage's events."""
        if event.event == "progress":
            self.progress = event.fields
        elif event.event == "state":
            self.state = State(event.fields["state"])
            self.reason = event.fields.get("reason", "")
            self.facts = event.fields.get("facts", {})
            self.details = event.fields.get("details", "")
            if self.state is State.RUNNING:
                self.attempt += 1
                self.started_s, self.ended_s, self.progress = event.time_s, None, {}
            elif TABLE[self.state].terminal:
                self.ended_s = event.time_s


@dataclass
class RunStatus:
    """Where a run stands, as its events tell."""

    state: State = State.WAITING
    reason: str = ""
    ended_s: float | None = None
    stages: dict[str, StageStatus] = field(default_factory=dict[str, StageStatus])


def derive_status(events: Iterable[Event]) -> RunStatus:
    """Fold a run's events into where it stands."""
    status = RunStatus()
    for event in events:
        if event.event == "plan":
            status = RunStatus(State.RUNNING)
            status.stages = {name: StageStatus(kind) for name, kind in event.fields["stages"].items()}
        elif event.stage is None and event.event == "state":
            status.state, status.reason = State(event.fields["state"]), event.fields.get("reason", "")
            status.ended_s = event.time_s
        elif event.stage in status.stages:
            status.stages[event.stage].apply(event)
    return status
