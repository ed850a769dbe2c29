"""`eagleray applications` and `rollback`, and how `serve` is told what it shall be."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from pydantic import ValidationError

from ..display import print_table
from ..session import Session
from ..workflows.artifacts import Artifact, Bundle
from ..workflows.errors import EaglerayError
from .common import DEFAULT_HOME, Address, AsJson, Home, out

if TYPE_CHECKING:
    from ..actors.serving.spec import ServingOptions


def applications(address: Address = None, home: Home = DEFAULT_HOME, as_json: AsJson = False) -> None:
    """List what a cluster serves, where, and by how many replicas."""
    from ..cluster import local

    rows: list[dict[str, object]] = []
    if address is not None or local.running(Session(home).home) is not None:
        with _connected(address, home):
            from ..actors.serving.running import running, state_of

            for one in running():
                state = state_of(one.application)
                before = () if state is None else state.releases.previous
                rows.append(
                    {
                        "application": one.application,
                        "status": one.status.lower(),
                        "url": one.url,
                        "bundle": one.bundle[:12],
                        "before": ", ".join(release.bundle[:12] for release in before),
                        "beside": ", ".join(() if state is None else state.releases.beside),
                        "replicas": ", ".join(f"{name}: {n}" for name, n in one.replicas.items()),
                    }
                )
    print_table(out, rows, as_json, "nothing is served")


def rollback(
    application: Annotated[str, typer.Argument(help="Name of the application.")] = "eagleray",
    address: Address = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Serve again the bundle that an application served before; no request is lost meanwhile.

    `eagleray applications` shows which that is.
    """
    with _connected(address, home):
        from ..actors.serving.running import roll_back

        found = roll_back(application, out.print)
        out.print(f"{found.application} serves bundle {found.bundle[:12]} at {found.url}")


def serving_options(fields: Mapping[str, Any], overrides: Sequence[str]) -> ServingOptions:
    """The options of these fields, and of what is set besides, `field.field=value` each.

    Raises:
        EaglerayError: when one can't be, with which.
    """
    from ..actors.serving.spec import ServingOptions

    chosen = dict(fields)
    for override in overrides:
        target, sign, value = override.partition("=")
        *path, name = target.split(".")
        into: Any = chosen
        try:
            for part in path:
                into = into.setdefault(part, {})
            into[name] = yaml.safe_load(value)
        except (yaml.YAMLError, AttributeError, TypeError):
            sign = ""
        if not sign or not all((*path, name)):
            raise EaglerayError(
                f"this sets nothing: {override}", "write FIELD=VALUE, such as limits.max_wait_s=0.2", "--set"
            )
    try:
        return ServingOptions.model_validate(chosen)
    except ValidationError as error:
        found = error.errors()[0]
        place = ".".join(str(part) for part in found["loc"]) or "together"
        raise EaglerayError(
            f"{place}: {found['msg'].removeprefix('Value error, ')}",
            "`eagleray stages serve` lists the fields",
        ) from None


@contextmanager
def _connected(address: str | None, home: Path) -> Generator[None]:
    from ..cluster import local
    from ..cluster.connect import connect

    folder = Session(home).home
    if address is None and local.running(folder) is None:
        raise EaglerayError("no cluster of this home is running", "give --home, or --address of another one")
    with connect(address, folder, 0, out.print):
        yield


def bundle_of(session: Session, source: str) -> Artifact:
    """The bundle in a folder, or that a run made."""
    if (Path(source) / "bundle.json").is_file():
        return Bundle(Path(source).absolute(), "", "", {})
    made = session.made(source, Bundle)
    if not made:
        run = session.log.find(source)
        raise EaglerayError(f"run {run.id} has made no bundle", "give it an `export` stage, and resume it")
    return session.store.open(made[-1])
