"""`eagleray dashboard`: how a service is watched."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..session import Session
from .common import DEFAULT_HOME, Home, out

DISCOVERY = "prom_metrics_service_discovery.json"
ELSEWHERE = Path("/tmp/ray")
"""Where Ray keeps its files unless it is told otherwise."""


def dashboard(
    folder: Annotated[Path, typer.Argument(help="Where the files go.")] = Path("watching"),
    discovery: Annotated[
        Path | None,
        typer.Option(
            help=f"The file {DISCOVERY} of the cluster's head.", show_default="that of this home's cluster"
        ),
    ] = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Write a Grafana dashboard of what is served, and the configuration of Prometheus that it needs.

    Ray tells each node's figures on a port of its own to whoever reaches it, token or not.
    """
    from ..actors.serving.dashboard import grafana, prometheus
    from ..cluster import local

    if discovery is None:
        cluster = local.running(Session(home).home)
        discovery = (Path(cluster.folder, "ray") if cluster else ELSEWHERE) / DISCOVERY
    folder.mkdir(parents=True, exist_ok=True)
    files = {"grafana.json": grafana(), "prometheus.yml": prometheus(str(discovery.absolute()))}
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")
    out.print(f"prometheus --config.file={folder / 'prometheus.yml'} --web.listen-address=127.0.0.1:9090")
    out.print(f"Grafana: Dashboards, New, Import {folder / 'grafana.json'}, with that Prometheus as source")
    if not discovery.is_file():
        out.print(f"{discovery} is not there yet: a head writes it within a minute of its start")
