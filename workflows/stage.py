"""A stage kind: a spec model, the artifact types it takes and gives, and one function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from .artifacts import Artifact
from .discovery import discover
from .spec import StageSpec


class Emit(Protocol):
    """Carries an event of a running stage to the run's log; called from any process."""

    def __call__(self, event: str, /, **fields: Any) -> None:  # noqa: ANN401
        """Emit one event."""
        ...


@dataclass(frozen=True)
class StageContext:
    """What a stage function may use besides its spec and inputs. Picklable."""

    run_id: str
    stage: str
    fingerprint: str
    output: Path
    """Empty local folder; what the function leaves here becomes the artifact's content."""
    scratch: Path
    """Local folder that survives retries and resumes of the same fingerprint, for partial work."""
    cache: Path
    """Local folder for downloads, shared by all runs."""
    emit: Emit
    earlier: Callable[[], Artifact | None] = lambda: None
    """Opens what this kind made last with this spec, of other outside data: a stage may take over from it
    what is still the same, as long as the result is what it would be without."""

    def progress(self, step: int, total: int, **metrics: float) -> None:
        """Report that `step` of `total` is done, with metrics by name (units in the name)."""
        self.emit("progress", step=step, total=total, metrics=metrics)

    def log(self, message: str) -> None:
        """Add a line for people to the run's log."""
        self.emit("log", message=message)


Needs = Callable[[str, Mapping[str, StageSpec], Callable[[str], bool]], None]
"""Given a stage's name, the workflow's stages, and whether the store has an artifact of a fingerprint:
refuses to run without one that the stage doesn't read."""


@dataclass(frozen=True)
class StageKind:
    """A registered kind of stage; made by the `stage` decorator, found by `discover`."""

    name: str
    spec: type[StageSpec]
    takes: Mapping[str, type[Artifact]]
    gives: type[Artifact]
    function: Callable[..., Mapping[str, Any] | None]
    summary: str
    outside: Callable[[Any, Path], str] | None = None
    cached: bool = True
    check: Callable[[str, Any], None] | None = None
    needs: Needs | None = None
    cpus: Callable[[Any], float] = field(default=lambda spec: spec.run.num_cpus)
    may_take: Mapping[str, type[Artifact]] = field(default_factory=dict[str, type[Artifact]])

    @property
    def inputs(self) -> Mapping[str, type[Artifact]]:
        """Every input that it can have."""
        return {**self.takes, **self.may_take}

    @property
    def module(self) -> str:
        """The module that declares it."""
        return self.function.__module__


def stage(
    spec: type[StageSpec],
    *,
    takes: Mapping[str, type[Artifact]] | None = None,
    gives: type[Artifact],
    outside: Callable[[Any, Path], str] | None = None,
    cached: bool = True,
    check: Callable[[str, Any], None] | None = None,
    needs: Needs | None = None,
    cpus: Callable[[Any], float] | None = None,
    may_take: Mapping[str, type[Artifact]] | None = None,
) -> Callable[[Callable[..., Mapping[str, Any] | None]], StageKind]:
    """Register the decorated function as a stage kind.

    The function is called as `function(ctx, spec, **inputs)`, each input an `Artifact` opened on
    a local folder; it writes its content below `ctx.output` and returns facts for the artifact's
    manifest (JSON values: counts, metrics), or None. The first line of its docstring is its help.

    Args:
        spec: the kind's spec model; the default of its `kind` field names the kind.
        takes: input name → artifact type.
        gives: the artifact type it makes.
        outside: `(spec, cache)` → digest of data that enters from outside, part of the fingerprint;
            `cache` is a local folder for what a second look may spare itself.
        cached: False for a stage done for its effect (a deployment): it always runs, and the
            function itself must be idempotent.
        check: given the stage's name and spec, refuses what can't work, when a plan is made.
        needs: refuses to run it as long as the store lacks something, when a plan is made; see `Needs`.
        cpus: CPUs that must exist in the cluster while it runs, workers included.
        may_take: inputs it can do without; the function's parameters for them have a default.
    """
    name = spec.model_fields["kind"].default
    if not isinstance(name, str):
        raise TypeError(f'{spec.__name__} needs a field such as `kind: Literal["train"] = "train"`')

    def register(function: Callable[..., Mapping[str, Any] | None]) -> StageKind:
        options = {"cpus": cpus} if cpus else {}
        return StageKind(
            name=name,
            spec=spec,
            takes=dict(takes or {}),
            gives=gives,
            function=function,
            summary=(function.__doc__ or "").strip().partition("\n")[0],
            outside=outside,
            cached=cached,
            check=check,
            needs=needs,
            may_take=dict(may_take or {}),
            **options,
        )

    return register


def discover_kinds(packages: Sequence[str]) -> dict[str, StageKind]:
    """Every stage kind of these packages and of installed extensions, by name; see `discover`."""
    return discover(StageKind, "stage kind", packages, "eagleray.stages")
