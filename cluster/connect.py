"""Connecting to Ray: the address that was given, or the laptop's own cluster."""

from __future__ import annotations

import logging
import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..workflows.errors import EaglerayError
from . import local
from .package import package

NAMESPACE = "eagleray"
WORKER_ENVIRONMENT = {"OMP_NUM_THREADS": "1"}
IN_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray's Jobs API sets it for a job's own process


@dataclass(frozen=True)
class Connection:
    """A driver's connection.

    Attributes:
        address: of the cluster.
        dashboard: URL, empty if the cluster has none.
        local: whether it is the laptop's own cluster.
    """

    address: str
    dashboard: str
    local: bool


@contextmanager
def connect(address: str | None, home: Path, num_cpus: float, keep: bool = False) -> Generator[Connection]:
    """Connect this process to a cluster; without an address, to the laptop's own, started if need be.

    Args:
        address: `host:port`, `ray://…`, `auto`, or None.
        home: folder of the laptop's cluster record.
        num_cpus: what the work needs at once; the laptop's cluster gets at least as many logical CPUs,
            so that any topology can be proven on it.
        keep: whether a cluster started here outlives the connection.

    Raises:
        EaglerayError: when nothing answers at the address, or the cluster is too small.
    """
    import ray

    started = False
    if address is None:
        found = local.running(home)
        if found is not None and found.num_cpus < num_cpus:
            local.stop(home)  # only this home's runs and deployments use it
            found = None
        if found is None:
            started = True
            found = local.start(home, max(os.cpu_count() or 1, round(num_cpus + 0.49)) + 1)
        connection = Connection(found.address, found.dashboard, local=True)
    else:
        connection = Connection(address, "", local=False)
    try:
        dashboard = _attach(connection, home, num_cpus)
        yield Connection(connection.address, connection.dashboard or dashboard, connection.local)
    finally:
        ray.shutdown()
        if started and not keep:
            local.stop(home)


def _attach(connection: Connection, home: Path, num_cpus: float) -> str:
    """Make this process a driver; returns the dashboard's URL as Ray knows it."""
    import ray

    environment: dict[str, Any] = {}
    if IN_JOB not in os.environ:  # a job's environment was set when it was submitted
        environment["env_vars"] = WORKER_ENVIRONMENT
        if not connection.local:
            environment["py_modules"] = [str(package(home / "wheel"))]
    try:
        context = ray.init(
            address=connection.address,
            namespace=NAMESPACE,
            runtime_env=environment,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise EaglerayError(
            f"no Ray cluster answers at {connection.address}: {str(error).splitlines()[0]}",
            "check the address, or leave --address out to run on this machine",
        ) from error
    total = float(ray.cluster_resources().get("CPU", 0))
    if total < num_cpus:
        raise EaglerayError(
            f"the run needs {num_cpus:g} CPUs at once, the cluster at {connection.address} has {total:g}",
            "use fewer workers, or a larger cluster",
        )
    dashboard = str(getattr(context, "dashboard_url", "") or "")
    return f"http://{dashboard}" if dashboard and "://" not in dashboard else dashboard
