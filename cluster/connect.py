"""Connecting to Ray: the address that was given, or the laptop's own cluster."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..workflows.errors import EaglerayError
from . import local

NAMESPACE = "eagleray"


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


def connect(
    address: str | None, home: Path, num_cpus: float, packages: list[str] | None = None
) -> Connection:
    """Connect this process to a cluster; without an address, to the laptop's own, started if need be.

    Args:
        address: `host:port`, `ray://…`, `auto`, or None.
        home: folder of the laptop's cluster record.
        num_cpus: what the work needs at once; the laptop's cluster gets at least as many logical CPUs,
            so that any topology can be proven on it.
        packages: wheels or folders that a remote cluster's workers import.

    Raises:
        EaglerayError: when nothing answers at the address, or the cluster is too small.
    """
    import ray

    if address is not None:
        connection = Connection(address, "", local=False)
    else:
        found = _local_cluster(home, num_cpus)
        connection = Connection(found.address, found.dashboard, local=True)
    environment: dict[str, Any] = {"env_vars": {"OMP_NUM_THREADS": "1"}}
    if packages:
        environment["py_modules"] = packages
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
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
            f"no Ray cluster answers at {connection.address}: {error}".splitlines()[0],
            "check the address, or leave --address out to run on this machine",
        ) from error
    total = float(ray.cluster_resources().get("CPU", 0))
    if total < num_cpus:
        ray.shutdown()
        raise EaglerayError(
            f"the run needs {num_cpus:g} CPUs at once, the cluster at {connection.address} has {total:g}",
            "use fewer workers, or a larger cluster",
        )
    dashboard = connection.dashboard or str(getattr(context, "dashboard_url", "") or "")
    if dashboard and "://" not in dashboard:
        dashboard = f"http://{dashboard}"
    return Connection(connection.address, dashboard, connection.local)


def _local_cluster(home: Path, num_cpus: float) -> local.LocalCluster:
    wanted = max(os.cpu_count() or 1, round(num_cpus + 0.49)) + 1
    found = local.running(home)
    if found is not None and found.num_cpus < num_cpus:
        local.stop(home)  # only this home's runs and deployments use it
        found = None
    return found or local.start(home, wanted)
