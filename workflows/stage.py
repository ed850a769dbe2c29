"""A stage kind: a spec model, the artifact types it takes and gives, and one function."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from .artifacts import Artifact
from .errors import EaglerayError
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

    def progress(self, step: int, total: int, **metrics: float) -> None:
        """Report that `step` of `total` is done, with metrics by name (units in the name)."""
        self.emit("progress", step=step, total=total, metrics=metrics)

    def log(self, message: str) -> None:
        """Add a line for people to the run's log."""
        self.emit("log", message=message)


@dataclass(frozen=True)
class StageKind:
    """A registered kind of stage; made by the `stage` decorator, found by `discover`."""

    name: str
    spec: type[StageSpec]
    takes: Mapping[str, type[Artifact]]
    gives: type[Artifact]
    function: Callable[..., Mapping[str, Any] | None]
    summary: str
    outside: Callable[[Any], str] | None = None
    cached: bool = True
    check: Callable[[str, Any], None] | None = None
    cpus: Callable[[Any], float] = field(default=lambda spec: spec.run.num_cpus)


def stage(
    spec: type[StageSpec],
    *,
    takes: Mapping[str, type[Artifact]] | None = None,
    gives: type[Artifact],
    outside: Callable[[Any], str] | None = None,
    cached: bool = True,
    check: Callable[[str, Any], None] | None = None,
    cpus: Callable[[Any], float] | None = None,
) -> Callable[[Callable[..., Mapping[str, Any] | None]], StageKind]:
    """Register the decorated function as a stage kind.

    The function is called as `function(ctx, spec, **inputs)`, each input an `Artifact` opened on
    a local folder; it writes its content below `ctx.output` and returns facts for the artifact's
    manifest (JSON values: counts, metrics), or None. The first line of its docstring is its help.

    Args:
        spec: the kind's spec model; the default of its `kind` field names the kind.
        takes: input name → artifact type.
        gives: the artifact type it makes.
        outside: gives the digest of data that enters from outside, part of the fingerprint.
        cached: False for a stage done for its effect (a deployment): it always runs, and the
            function itself must be idempotent.
        check: given the stage's name and spec, refuses what can't work, when a plan is made.
        cpus: CPUs that must exist in the cluster while it runs, workers included.
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
            **options,
        )

    return register


def discover(packages: Sequence[str]) -> dict[str, StageKind]:
    """Find every stage kind in the modules of these packages and of installed extensions.

    An extension is a distribution with an entry point in the group `eagleray.stages` that names a
    package of stage modules.

    Raises:
        EaglerayError: when two modules declare the same kind, or an extension can't be imported.
    """
    kinds: dict[str, StageKind] = {}
    modules = [module for package in packages for module in _modules(package)]
    for extension in entry_points(group="eagleray.stages"):
        try:
            modules += _modules(extension.value)
        except Exception as error:  # another's code: any
            name = extension.dist.name if extension.dist else extension.name
            raise EaglerayError(
                f"the extension {name} can't be imported: {type(error).__name__}: {error}",
                f"mend it, or uninstall it: pip uninstall {name}",
                extension.value,
            ) from error
    for module in modules:
        for kind in vars(module).values():
            if isinstance(kind, StageKind) and kind.function.__module__ == module.__name__:
                if kinds.get(kind.name, kind) is not kind:
                    raise EaglerayError(
                        f"two modules declare the stage kind {kind.name!r}",
                        "rename one of them",
                        f"{kinds[kind.name].function.__module__} and {module.__name__}",
                    )
                kinds[kind.name] = kind
    return kinds


def _modules(package: str) -> list[ModuleType]:
    found = importlib.import_module(package)
    names = [info.name for info in pkgutil.iter_modules(found.__path__, f"{package}.")]
    return [importlib.import_module(name) for name in names]
