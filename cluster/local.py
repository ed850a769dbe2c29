"""The laptop's own Ray cluster: one head process on loopback that outlives the command that started it.

It stays up while something is served, so that the printed request still works, and is stopped by
`eagleray down`. All it writes lies in a folder of its own, with which its processes are recognised: other
Ray clusters on the machine are left alone, and `ray.init()` of another program never finds this one.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TextIO

from ..workflows.errors import EaglerayError
from .certificates import has_certificates, tls_environment
from .haproxy import haproxy_environment
from .sockets import command_of, opened_by, processes

START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 20.0
AGENTS_TIMEOUT_S = 3.0
FOLDER_PREFIX = "eagleray-"
CERTIFICATES = "certificates"
"""Folder of a home; with certificates in it, the cluster speaks TLS."""
OTHERS = ("RAY_AUTH_TOKEN", "RAY_USE_TLS", "RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_CA_CERT")
"""Of an environment, what is for another cluster."""
LONGEST_TEMP = 30  # characters; Ray's sockets lie up to 77 further down, and a socket's path has 107

# A shell that runs us in the background ignores SIGINT, children inherit that, and then Ray cannot interrupt
# a running task. A preexec_fn would do, but it forks whole, and a fork breaks the gRPC of a connected driver.
HEAD = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from ray.scripts.scripts import main; main()"
)


@dataclass(frozen=True)
class LocalCluster:
    """A head that was started.

    Attributes:
        pid: of `ray start --block`, leader of its own session.
        folder: of its sockets, logs and spilled objects.
        address: host:port of the global control store.
        dashboard: URL.
        num_cpus: logical CPUs; more than the machine has when a topology needs them.
        serves: whether it was left running for what it serves.
        certificates: folder of those it speaks TLS with; empty if it speaks none.
    """

    pid: int
    folder: str
    address: str
    dashboard: str
    num_cpus: int
    serves: bool = False
    certificates: str = ""


@contextmanager
def use(
    home: Path, num_cpus: int, log: Callable[[str], None], serves: Callable[[LocalCluster], bool]
) -> Generator[LocalCluster]:
    """Use the cluster of this home, started if none is up; the last user stops it unless it serves.

    Every user holds a shared lock; who gets an exclusive one is alone.

    Args:
        home: folder of the cluster's record.
        num_cpus: that it must have; a smaller one is replaced when no one else needs it.
        log: takes a line for people.
        serves: asked at the end whether the cluster serves something, and goes on.

    Raises:
        EaglerayError: when it is too small and in use, or does not come up.
    """
    with _lock(home) as lock:
        while True:
            if _alone(lock):
                _fit(home, num_cpus, log)
            fcntl.flock(lock, fcntl.LOCK_SH)  # waits for whoever is starting it
            cluster = running(home)
            if cluster is not None and cluster.num_cpus < num_cpus:
                raise _too_small(cluster, num_cpus)
            if cluster is not None:
                break
        try:
            yield cluster
        finally:
            if serves(cluster):
                _write(home, replace(cluster, serves=True))
            elif _alone(lock):
                stop(home)


def shut_down(home: Path) -> bool:
    """Stop the cluster of this home, and with it what it serves; False if there is none.

    Raises:
        EaglerayError: when another process uses it.
    """
    with _lock(home) as lock:
        if not _alone(lock):
            raise EaglerayError(
                "a command that goes on uses the cluster of this home",
                "end it first: Ctrl-C in its terminal, or eagleray cancel",
            )
        return stop(home)


@contextmanager
def _lock(home: Path) -> Generator[TextIO]:
    home.mkdir(parents=True, exist_ok=True)
    with (home / "cluster.lock").open("w") as lock:
        yield lock


def _alone(lock: TextIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _fit(home: Path, num_cpus: int, log: Callable[[str], None]) -> None:
    """Have a cluster of at least that size."""
    cluster = running(home)
    if cluster is not None and cluster.num_cpus >= num_cpus:
        return
    if cluster is not None and cluster.serves:
        raise _too_small(cluster, num_cpus)
    log(f"starting a local Ray cluster with {num_cpus} CPUs")
    stop(home)
    start(home, num_cpus)


def _too_small(cluster: LocalCluster, num_cpus: int) -> EaglerayError:
    need = f"{num_cpus} CPUs are needed; the cluster of this home has {cluster.num_cpus}"
    if cluster.serves:
        return EaglerayError(
            f"{need} and serves something", "eagleray down ends it; or choose another --home"
        )
    return EaglerayError(
        f"{need} and another command uses it", "wait until that has ended, or choose another --home"
    )


def client_environment(home: Path) -> dict[str, str]:
    """What a process must have in its environment to speak to this home's cluster.

    Raises:
        EaglerayError: when the certificates of one that isn't up are expired.
    """
    cluster = _read(home)
    return _environment(home, _certificates(home) if cluster is None else cluster.certificates)


def _certificates(home: Path) -> str:
    """The folder of the certificates that a cluster of this home is started with; empty if there are none."""
    return str(home / CERTIFICATES) if has_certificates(home / CERTIFICATES) else ""


def _environment(home: Path, certificates: str) -> dict[str, str]:
    """Whoever reaches a cluster's ports runs code on it: each home has a token, for its owner alone."""
    path = home / "ray-token"
    if not path.is_file():
        home.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(path),
        # 127.0.0.1 as a node's address stays that, as on other systems, and then all that Ray opens is bound
        # to it; else Ray puts the machine's address in its place, and listens on every interface
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        **(tls_environment(Path(certificates)) if certificates else {}),
    }


def clean_environment() -> dict[str, str]:
    """This process's environment without another cluster's token, which Ray would prefer to a file's."""
    return {name: value for name, value in os.environ.items() if name not in OTHERS}


def running(home: Path) -> LocalCluster | None:
    """The cluster that was started with this home, if it is still up and can be connected to."""
    cluster = _read(home)
    if cluster is None or not _is_head(cluster) or not Path(cluster.folder, "ray").is_dir():
        return None  # temporary folders are cleaned up now and then, and without its sockets a head is lost
    host, _, port = cluster.address.rpartition(":")
    return cluster if _open(host, int(port)) else None


def processes_of(cluster: LocalCluster) -> list[int]:
    """Numbers of a cluster's processes."""
    return _in_session(cluster.pid)


def start(home: Path, num_cpus: int) -> LocalCluster:
    """Start a head with `num_cpus` logical CPUs, and wait until it answers.

    Raises:
        EaglerayError: when it does not come up, with the end of its log.
    """
    home.mkdir(parents=True, exist_ok=True)
    port, dashboard_port, *others = _free_ports(0, 8265, 0, 0, 0, 0, 0)
    client_port, agent_port, statistics_port, metrics_port, fallback_port = others
    temp = tempfile.gettempdir()
    folder = tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir=temp if len(temp) <= LONGEST_TEMP else "/tmp")
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)])  # of jobs
    certificates = _certificates(home)
    proxy = haproxy_environment(Path(folder, "proxy"), statistics_port, metrics_port, fallback_port)
    log = home / "ray.log"
    command = [
        *(sys.executable, "-c", HEAD, "start", "--head", "--block"),
        # Ray opens its own folder to everyone, so it lies in one that is not
        *(
            "--node-ip-address=127.0.0.1",
            f"--port={port}",
            f"--num-cpus={num_cpus}",
            f"--temp-dir={folder}/ray",
        ),
        *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard_port}", "--disable-usage-stats"),
        # these have fixed ports by default, which a second head on the machine could not have
        *(f"--ray-client-server-port={client_port}", f"--dashboard-agent-listen-port={agent_port}"),
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env={**clean_environment(), **_environment(home, certificates), **proxy, "PATH": path},
        )
    url = f"http://127.0.0.1:{dashboard_port}"
    cluster = LocalCluster(process.pid, folder, f"127.0.0.1:{port}", url, num_cpus, certificates=certificates)
    _write(home, cluster)  # before it is up, so that whoever comes after a killed start ends it
    deadline = time.monotonic() + START_TIMEOUT_S
    try:
        up = Path(folder, "ray", "ray_current_cluster")  # Ray's last step
        while not (up.is_file() and _open("127.0.0.1", port) and _open("127.0.0.1", dashboard_port)):
            if process.poll() is not None or time.monotonic() > deadline:
                tail = log.read_text(errors="replace").strip().splitlines()[-3:]
                raise EaglerayError(
                    f"the local Ray cluster did not start: {' '.join(tail) or 'no message'}",
                    "see the log, or use a cluster that runs with --address",
                    str(log),
                )
            time.sleep(0.1)
    except BaseException:
        stop(home)
        raise
    return cluster


def stop(home: Path) -> bool:
    """End what is left of the cluster that was started with this home; False if none was up."""
    cluster = _read(home)
    if cluster is None:
        return False
    was_up = _is_head(cluster)
    if was_up:
        _signal(cluster.pid, signal.SIGTERM)
    if _is_ours(cluster):
        _wait_until_gone(cluster.pid)
        for pid in _in_session(cluster.pid):
            _signal(pid, signal.SIGKILL)
        _wait_until_gone(cluster.pid)
    if Path(cluster.folder).name.startswith(FOLDER_PREFIX):
        shutil.rmtree(cluster.folder, ignore_errors=True)
    _record(home).unlink(missing_ok=True)
    return was_up


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _wait_until_gone(head: int) -> None:
    """Wait until no process of a head's session is left; agents may stay without it."""
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while _in_session(head) and time.monotonic() < deadline:
        with suppress(ChildProcessError):
            os.waitpid(head, os.WNOHANG)
        if not _is_alive(head):
            deadline = min(deadline, time.monotonic() + AGENTS_TIMEOUT_S)
        time.sleep(0.1)


def _record(home: Path) -> Path:
    return home / "cluster.json"


def _read(home: Path) -> LocalCluster | None:
    try:
        return LocalCluster(**json.loads(_record(home).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _write(home: Path, cluster: LocalCluster) -> None:
    arriving = _record(home).with_suffix(".arriving")
    arriving.write_text(json.dumps(asdict(cluster)))
    arriving.replace(_record(home))


def _free_ports(*wanted: int) -> list[int]:
    """A free port for each one wanted, that one if it is free; all are held until none can come twice."""
    with ExitStack() as held:
        return [_bound(held.enter_context(socket.socket()), port) for port in wanted]


def _bound(probe: socket.socket, wanted: int) -> int:
    for port in (wanted, 0):
        with suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise EaglerayError("no free port on 127.0.0.1", "end a program that holds many ports")


def _open(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((host, port)) == 0


def _is_head(cluster: LocalCluster) -> bool:
    """Whether the recorded process lives and is the head: another program may have its number by now."""
    return _is_alive(cluster.pid) and cluster.folder in command_of(cluster.pid)


def _is_ours(cluster: LocalCluster) -> bool:
    """Whether the session of the recorded number is the cluster's: one of its processes has its folder.

    A session's number is free for others once its last process has ended.
    """
    return any(_mentions(pid, cluster.folder) for pid in _in_session(cluster.pid))


def _in_session(number: int) -> list[int]:
    return [pid for pid in processes() if _session(pid) == number and _is_alive(pid)]


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except OSError:
        return -1


def _is_alive(pid: int) -> bool:
    """Whether a process is there and has not ended; one that has may wait for its parent to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _mentions(pid: int, folder: str) -> bool:
    """Whether a process was started with a folder, or has a file in it open."""
    return folder in command_of(pid) or any(path.startswith(f"{folder}/") for path in opened_by(pid))
