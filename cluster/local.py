"""The laptop's own Ray cluster: one head process on loopback that outlives the command that started it.

It stays up while something is served, so that the printed request still works, and is stopped by
`eagleray down`. Its process is ours alone: other Ray clusters on the machine are left alone.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from ..workflows.errors import EaglerayError

START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class LocalCluster:
    """A running head.

    Attributes:
        pid: of `ray start --block`, leader of its own process group.
        address: host:port of the global control store.
        dashboard: URL.
        num_cpus: logical CPUs; more than the machine has when a topology needs them.
    """

    pid: int
    address: str
    dashboard: str
    num_cpus: int


@contextmanager
def use(
    home: Path, num_cpus: int, log: Callable[[str], None], keep: Callable[[], bool]
) -> Generator[LocalCluster]:
    """Use the cluster of this home, started if none is up; the last user stops it unless `keep()`.

    Every user holds a shared lock; who gets an exclusive one is alone.

    Args:
        home: folder of the cluster's record.
        num_cpus: that it must have; a smaller one is replaced when no one else uses it.
        log: takes a line for people.
        keep: asked at the end whether the cluster goes on.

    Raises:
        EaglerayError: when it is too small and in use, or does not come up.
    """
    home.mkdir(parents=True, exist_ok=True)
    with (home / "cluster.lock").open("w") as lock:
        while True:
            if _alone(lock):
                _fit(home, num_cpus, log)
            fcntl.flock(lock, fcntl.LOCK_SH)  # waits for whoever is starting it
            cluster = running(home)
            if cluster is not None and cluster.num_cpus < num_cpus:
                raise EaglerayError(
                    f"the run needs {num_cpus} CPUs at once; the cluster of this home, which another run "
                    f"uses, has {cluster.num_cpus}",
                    "wait for the other run, or choose another --home",
                )
            if cluster is not None:
                break
        try:
            yield cluster
        finally:
            if not keep() and _alone(lock):
                stop(home)


def _alone(lock: TextIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _fit(home: Path, num_cpus: int, log: Callable[[str], None]) -> None:
    """Have a cluster of at least that size."""
    cluster = running(home)
    if cluster is not None and cluster.num_cpus < num_cpus:
        log(f"restarting the local cluster with {num_cpus} CPUs instead of {cluster.num_cpus}")
        stop(home)
        cluster = None
    if cluster is None:
        log("starting a local Ray cluster")
        start(home, num_cpus)


def token_environment(home: Path) -> dict[str, str]:
    """What a process must have in its environment to speak to this home's cluster.

    Whoever reaches a cluster's ports runs code on it, so each home has a token, for its owner alone.
    """
    path = home / "ray-token"
    if not path.is_file():
        home.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path)}


def running(home: Path) -> LocalCluster | None:
    """The cluster that was started with this home, if it is still up."""
    try:
        cluster = LocalCluster(**json.loads(_record(home).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    host, _, port = cluster.address.rpartition(":")
    return cluster if _alive(cluster.pid) and _open(host, int(port)) else None


def start(home: Path, num_cpus: int) -> LocalCluster:
    """Start a head with `num_cpus` logical CPUs, and wait until it answers.

    Raises:
        EaglerayError: when it does not come up, with the end of its log.
    """
    home.mkdir(parents=True, exist_ok=True)
    port, dashboard_port = _free_port(), _free_port(8265)
    log = home / "ray.log"
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
        *("--node-ip-address=127.0.0.1", f"--port={port}", f"--num-cpus={num_cpus}"),
        *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard_port}", "--disable-usage-stats"),
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_default_signals,
            env={**os.environ, **token_environment(home)},
        )
    deadline = time.monotonic() + START_TIMEOUT_S
    while not (_open("127.0.0.1", port) and _open("127.0.0.1", dashboard_port)):
        if process.poll() is not None or time.monotonic() > deadline:
            _end(process.pid)
            tail = log.read_text(errors="replace").strip().splitlines()[-3:]
            raise EaglerayError(
                f"the local Ray cluster did not start: {' '.join(tail) or 'no message'}",
                "see the log, or use a cluster that runs with --address",
                str(log),
            )
        time.sleep(0.1)
    url = f"http://127.0.0.1:{dashboard_port}"
    cluster = LocalCluster(process.pid, f"127.0.0.1:{port}", url, num_cpus)
    _record(home).write_text(json.dumps(asdict(cluster)))
    return cluster


def stop(home: Path) -> bool:
    """Stop the cluster that was started with this home; False if none is up."""
    cluster = running(home)
    _record(home).unlink(missing_ok=True)
    if cluster is None:
        return False
    _end(cluster.pid)
    return True


def _record(home: Path) -> Path:
    return home / "cluster.json"


def _default_signals() -> None:
    # A shell that runs us in the background ignores SIGINT, children inherit that, and then
    # Ray cannot interrupt a running task.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _free_port(wanted: int = 0) -> int:
    for port in (wanted, 0):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise EaglerayError("no free port on 127.0.0.1", "end a program that holds many ports")


def _open(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((host, port)) == 0


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _end(pid: int) -> None:
    """End the head and what it started: all of them are in its session."""
    for number, wait_s in ((signal.SIGTERM, STOP_TIMEOUT_S), (signal.SIGKILL, 5.0)):
        try:
            os.kill(pid, number) if number == signal.SIGTERM else os.killpg(pid, number)
        except ProcessLookupError:
            return
        deadline = time.monotonic() + wait_s
        while time.monotonic() < deadline:
            try:
                if os.waitpid(pid, os.WNOHANG)[0] == pid:
                    return
            except ChildProcessError:
                if not _alive(pid):
                    return
            time.sleep(0.1)
