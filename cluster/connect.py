"""Connecting to Ray: the address that was given, or the laptop's own cluster."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Generator
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
    """

    address: str
    dashboard: str


@contextmanager
def connect(
    address: str | None, home: Path, num_cpus: float, log: Callable[[str], None]
) -> Generator[Connection]:
    """Connect this process to a cluster; without an address, to the laptop's own, started if need be.

    The laptop's own cluster outlives the connection while it serves something.

    Args:
        address: `host:port`, `ray://…`, `auto`, or None.
        home: folder of the laptop's cluster record.
        num_cpus: what the work needs at once; the laptop's cluster gets at least as many logical CPUs,
            so that any topology can be proven on it.
        log: takes a line for people.

    Raises:
        EaglerayError: when nothing answers at the address, or the cluster is too small.
    """
    if address is not None:
        with _attached(address, num_cpus, lambda: package(home / "wheel")) as dashboard:
            yield Connection(address, dashboard)
        return
    serves = False
    wanted = max(os.cpu_count() or 1, math.ceil(num_cpus)) + 1
    with local.use(home, wanted, log, keep=lambda: serves) as cluster:
        os.environ.update(local.token_environment(home))  # Ray reads it when it is first imported
        with _attached(cluster.address, num_cpus, None):
            try:
                yield Connection(cluster.address, cluster.dashboard)
            finally:
                serves = _serves()


@contextmanager
def _attached(address: str, num_cpus: float, wheel: Callable[[], Path] | None) -> Generator[str]:
    """Make this process a driver of a cluster; gives the dashboard's URL as Ray knows it."""
    import ray

    environment: dict[str, Any] = {}
    if IN_JOB not in os.environ:  # a job's environment was set when it was submitted
        environment["env_vars"] = WORKER_ENVIRONMENT
        if wheel is not None:
            environment["py_modules"] = [str(wheel())]
    try:
        context = ray.init(
            address=address,
            namespace=NAMESPACE,
            runtime_env=environment,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise EaglerayError(
            f"no Ray cluster answers at {address}: {str(error).strip().splitlines()[0]}",
            "check the address, or leave --address out to run on this machine",
        ) from error
    try:
        total = float(ray.cluster_resources().get("CPU", 0))
        if total < num_cpus:
            raise EaglerayError(
                f"the run needs {num_cpus:g} CPUs at once, the cluster at {address} has {total:g}",
                "use fewer workers, or a larger cluster",
            )
        dashboard = str(getattr(context, "dashboard_url", "") or "")
        yield f"http://{dashboard}" if dashboard and "://" not in dashboard else dashboard
    finally:
        ray.shutdown()


def _serves() -> bool:
    """Whether Ray Serve runs on the connected cluster."""
    import ray

    try:
        ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    except ValueError:
        return False
    return True
