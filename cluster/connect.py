"""Connecting to Ray: the address that was given, or the laptop's own cluster."""

from __future__ import annotations

import logging
import math
import os
import socket
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..workflows.errors import EaglerayError
from ..workflows.placement import Resources
from . import local
from .package import package
from .probing import HTTP2_HELLO, HTTP2_SETTINGS

NAMESPACE = "eagleray"
WORKER_ENVIRONMENT = {"OMP_NUM_THREADS": "1"}
ANSWER_TIMEOUT_S = 5.0
IN_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray's Jobs API sets it for a job's own process


@dataclass(frozen=True)
class Connection:
    """A driver's connection.

    Attributes:
        address: of the cluster.
        dashboard: URL, empty if the cluster has none.
        token: file with the token that the dashboard asks for, if it is this home's.
    """

    address: str
    dashboard: str
    token: Path | None = None


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
        _check_answers(address)
        with tempfile.TemporaryDirectory() as folder, _attached(address, num_cpus, Path(folder)) as dashboard:
            yield Connection(address, dashboard)
        return
    asked: list[bool] = []
    wanted = max(os.cpu_count() or 1, math.ceil(num_cpus)) + 1
    with local.use(home, wanted, log, lambda cluster: asked[0] if asked else cluster.serves) as cluster:
        environment = local.client_environment(home)
        for name in local.OTHERS:  # Ray would prefer that token
            os.environ.pop(name, None)
        os.environ.update(environment)  # Ray reads it when it is first imported
        with _attached(cluster.address, num_cpus, None):
            try:
                yield Connection(cluster.address, cluster.dashboard, Path(environment["RAY_AUTH_TOKEN_PATH"]))
            finally:
                asked.append(_serves())


def machines(address: str) -> list[Resources]:
    """What each machine of a cluster has.

    Raises:
        EaglerayError: when nothing answers at the address.
    """
    import ray

    _check_answers(address)
    with _attached(address, 0, None):
        return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _check_answers(address: str) -> None:
    """Refuse an address where no Ray head listens; Ray itself takes a minute to see it.

    Raises:
        EaglerayError: with what is wrong with the address.
    """
    if address == "auto":
        return
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator or not host or not port.isdigit() or "/" in host:
        raise EaglerayError(
            f"this is not the address of a Ray cluster: {address}",
            "give HOST:PORT of its head (port 6379 by default), ray://HOST:10001, or auto",
        )
    try:
        with socket.create_connection((host.strip("[]"), int(port)), ANSWER_TIMEOUT_S) as stream:
            stream.settimeout(ANSWER_TIMEOUT_S)
            if not os.environ.get("RAY_USE_TLS"):
                stream.sendall(HTTP2_HELLO)
                if stream.recv(9)[3:4] != HTTP2_SETTINGS:
                    raise EaglerayError(
                        f"what answers at {address} is no Ray head",
                        "give its head's port (6379 by default), not the dashboard's: that is for "
                        "`eagleray submit --address http://HEAD:8265`",
                    )
    except (OSError, OverflowError) as error:
        raise EaglerayError(
            f"no Ray cluster answers at {address}: {error}",
            "check the address, or leave --address out to run on this machine",
        ) from error


@contextmanager
def _attached(address: str, num_cpus: float, ship: Path | None) -> Generator[str]:
    """Make this process a driver of a cluster; gives the dashboard's URL as Ray knows it.

    Args:
        address: of the cluster.
        num_cpus: that it must have.
        ship: a folder in which this code is packed for the cluster's workers; None if they have it.
    """
    import ray
    from ray._private import worker as ray_worker

    environment: dict[str, Any] = {}
    if IN_JOB not in os.environ:  # a job's environment was set when it was submitted
        environment["env_vars"] = WORKER_ENVIRONMENT
        if ship is not None:
            environment["py_modules"] = [str(package(ship))]
    # Ray prints a cluster's warnings on every driver's terminal; what concerns a run is in its log.
    ray_worker._worker_logs_enabled = False  # pyright: ignore[reportPrivateUsage] - there is no public way
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
            f"the Ray cluster at {address} takes no connection: {str(error).strip().splitlines()[0]}",
            "if it wants a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN; its Ray and Python must have "
            "the versions of these",
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
