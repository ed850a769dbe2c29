"""TLS between the processes of a cluster, with a real head."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509

from eagleray.cluster import certificates, local
from eagleray.cluster.certificates import has_certificates, make_certificates, tls_environment
from eagleray.cluster.doctor import examine_home
from eagleray.workflows.errors import EaglerayError

from .test_local import drive


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home with certificates, whose cluster is up."""
    home = tmp_path_factory.mktemp("home")
    make_certificates(home / local.CERTIFICATES, ["head.example"], 1)
    local.start(home, 2)
    yield home
    local.stop(home)


def test_a_cluster_with_certificates_runs_tasks(home: Path) -> None:
    cluster = local.running(home)
    assert cluster is not None
    assert cluster.certificates == str(home / local.CERTIFICATES)
    done = drive(cluster.address, local.client_environment(home))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("given", ["nothing", "token", "authority", "certificate"])
def test_without_a_certificate_nobody_reaches_the_head(home: Path, given: str) -> None:
    cluster = local.running(home)
    assert cluster is not None
    files = {
        name: Path(path) for name, path in tls_environment(home / local.CERTIFICATES).items() if "/" in path
    }
    authority = files["RAY_TLS_CA_CERT"].read_bytes()
    key, chain = files["RAY_TLS_SERVER_KEY"].read_bytes(), files["RAY_TLS_SERVER_CERT"].read_bytes()
    channel = {
        "authority": lambda: grpc.secure_channel(cluster.address, grpc.ssl_channel_credentials(authority)),
        "certificate": lambda: grpc.secure_channel(
            cluster.address, grpc.ssl_channel_credentials(authority, key, chain)
        ),
    }.get(given, lambda: grpc.insecure_channel(cluster.address))()
    token = [("authorization", f"Bearer {(home / 'ray-token').read_text()}")] if given != "nothing" else []
    with channel:
        call = channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetAllNodeInfo")
        try:
            call(b"", metadata=token, timeout=5)
            answered = "OK"
        except grpc.RpcError as error:
            answered = error.code().name
    assert answered == ("OK" if given == "certificate" else "UNAVAILABLE")


def test_the_doctor_sees_the_certificates_and_finds_nothing_exposed(home: Path) -> None:
    report = examine_home(home)
    assert report is not None
    assert not report.exposed, report
    grpc_ports = [one for one in report.ports if one.what == "gRPC"]
    assert len(grpc_ports) > 3
    assert all(one.tls and one.token for one in grpc_ports)


def test_keys_are_for_their_owner_alone_and_the_name_is_checked(tmp_path: Path) -> None:
    environment = make_certificates(tmp_path / "made", ["10.1.2.3", "head.example"], 7)
    for path in (tmp_path / "made").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "export RAY_USE_TLS=1\n" in environment.read_text()
    chain = x509.load_pem_x509_certificate((tmp_path / "made" / "node.pem").read_bytes())
    names = chain.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {"head.example", "localhost"} <= set(names.get_values_for_type(x509.DNSName))
    assert {"10.1.2.3", "127.0.0.1", "::1"} <= set(map(str, names.get_values_for_type(x509.IPAddress)))
    assert chain.not_valid_after_utc - datetime.now(UTC) < timedelta(days=7)


def test_another_certificate_is_of_the_same_authority(tmp_path: Path) -> None:
    make_certificates(tmp_path, [], 1)
    authority, node = (tmp_path / "ca.pem").read_bytes(), (tmp_path / "node.pem").read_bytes()
    make_certificates(tmp_path, ["late.example"], 1)
    assert (tmp_path / "ca.pem").read_bytes() == authority
    assert (tmp_path / "node.pem").read_bytes() != node
    x509.load_pem_x509_certificate((tmp_path / "node.pem").read_bytes()).verify_directly_issued_by(
        x509.load_pem_x509_certificate(authority)
    )


def test_an_expired_certificate_is_said_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Later(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + timedelta(days=2)

    assert not has_certificates(tmp_path / local.CERTIFICATES)
    make_certificates(tmp_path / local.CERTIFICATES, [], 1)
    assert has_certificates(tmp_path / local.CERTIFICATES)
    monkeypatch.setattr(certificates, "datetime", Later)
    with pytest.raises(EaglerayError, match="expired"):
        local.start(tmp_path, 2)
    assert not (tmp_path / "cluster.json").exists()
