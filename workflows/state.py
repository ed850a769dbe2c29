"""The states of a stage and of a run, as one table."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class State(StrEnum):
    """Where a stage or a run stands."""

    WAITING = "waiting"
    RUNNING = "running"
    RETRYING = "retrying"
    HIT = "hit"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    BLOCKED = "blocked"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"


class Traits(NamedTuple):
    """What follows from a state."""

    terminal: bool
    """Nothing more happens to it in this run."""
    has_artifact: bool
    """Its artifact is in the store."""


TABLE: dict[State, Traits] = {
    State.WAITING: Traits(terminal=False, has_artifact=False),
    State.RUNNING: Traits(terminal=False, has_artifact=False),
    State.RETRYING: Traits(terminal=False, has_artifact=False),
    State.HIT: Traits(terminal=True, has_artifact=True),
    State.SUCCEEDED: Traits(terminal=True, has_artifact=True),
    State.FAILED: Traits(terminal=True, has_artifact=False),
    State.BLOCKED: Traits(terminal=True, has_artifact=False),
    State.CANCELLED: Traits(terminal=True, has_artifact=False),
    State.INTERRUPTED: Traits(terminal=True, has_artifact=False),
}
