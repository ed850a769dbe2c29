"""What the user writes: frozen pydantic models, and which of their fields are identity.

A field is part of its stage's fingerprint unless it is declared with `Runtime`: those say how
to run (workers, mesh sizes, retries), never what is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Spec(BaseModel):
    """Base of everything a user writes: frozen, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def Runtime(default: Any = ..., **constraints: Any) -> Any:  # noqa: ANN401 - stands where pydantic's Field does
    """Declare a field that says how to run and not what is made: recorded, never hashed."""
    return Field(default, json_schema_extra={"runtime": True}, **constraints)


class RunOptions(Spec):
    """How the engine runs a stage; every stage has one under `run`."""

    num_cpus: float = Field(default=1.0, gt=0)
    """CPUs the stage's own task reserves (its workers reserve their own)."""
    retries: int = Field(default=1, ge=0)
    """How often a failed attempt is tried again."""
    backoff_s: float = Field(default=2.0, ge=0)
    """Seconds before the first retry; doubles with each of the next ten."""
    timeout_s: float | None = Field(default=None, gt=0)
    """Seconds an attempt may take; none by default."""


class StageSpec(Spec):
    """Base of every stage's spec: its kind, the stages it reads from, and how to run it."""

    kind: str
    inputs: Mapping[str, str] = Field(default_factory=dict)
    """Input name → the stage whose output it is."""
    run: RunOptions = Runtime(RunOptions())
