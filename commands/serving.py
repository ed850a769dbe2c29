"""`eagleray applications` and `rollback`: what a cluster serves, and what it served before."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from ..display import print_table
from ..session import Session
from ..workflows.errors import EaglerayError
from .common import DEFAULT_HOME, Address, AsJson, Home, out


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


@contextmanager
def _connected(address: str | None, home: Path) -> Generator[None]:
    from ..cluster import local
    from ..cluster.connect import connect

    folder = Session(home).home
    if address is None and local.running(folder) is None:
        raise EaglerayError("no cluster of this home is running", "give --home, or --address of another one")
    with connect(address, folder, 0, out.print):
        yield
