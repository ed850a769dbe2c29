"""Certificates for TLS between the processes and machines of a Ray cluster: an authority, and what it signs.

Ray asks both sides of every connection for a certificate of the authority, so whoever has none reaches
nothing, token or not. The dashboard and metrics stay plain HTTP.
"""

from __future__ import annotations

import shlex
import socket
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ..workflows.errors import EaglerayError
from ..workflows.filesystem import write_private

AUTHORITY, AUTHORITY_KEY = "ca.pem", "ca-key.pem"
NODE, NODE_KEY = "node.pem", "node-key.pem"
ENVIRONMENT = "ray.env"
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")


def make_certificates(folder: Path, hosts: Sequence[str], days: int) -> Path:
    """Make a certificate for the machines of a cluster, and what Ray needs to use it.

    An authority that `folder` has already signs it; else one is made. Keys are for their owner alone.

    Args:
        folder: gets ca.pem, ca-key.pem, node.pem, node-key.pem and ray.env; a machine needs all but
            ca-key.pem, the authority's, which better lies elsewhere.
        hosts: names and addresses by which machines reach each other; those of this machine are added.
        days: that it is valid.

    Returns:
        The environment, as a file for a shell.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    authority, authority_key = _authority(folder, days)
    key = ec.generate_private_key(ec.SECP256R1())
    names = dict.fromkeys([*LOCAL_HOSTS, socket.gethostname(), *hosts])
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    certificate = (
        _builder("eagleray node", authority.subject, key.public_key(), days)
        .add_extension(x509.SubjectAlternativeName([_name(one) for one in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False
        )
        .sign(authority_key, hashes.SHA256())
    )
    write_private(folder / NODE, certificate.public_bytes(Encoding.PEM))
    write_private(folder / NODE_KEY, _pem(key))
    lines = [f"export {name}={shlex.quote(value)}\n" for name, value in tls_environment(folder).items()]
    write_private(folder / ENVIRONMENT, "".join(lines).encode())
    return folder / ENVIRONMENT


def tls_environment(folder: Path) -> dict[str, str]:
    """What every process of a cluster, and whoever connects to it, must have in its environment."""
    return {
        "RAY_USE_TLS": "1",
        "RAY_TLS_SERVER_CERT": str(folder / NODE),
        "RAY_TLS_SERVER_KEY": str(folder / NODE_KEY),
        "RAY_TLS_CA_CERT": str(folder / AUTHORITY),
    }


def has_certificates(folder: Path) -> bool:
    """Whether `folder` has certificates for a cluster.

    Raises:
        EaglerayError: when they are expired, by which no process would find another.
    """
    if not (folder / NODE).is_file():
        return False
    expires = x509.load_pem_x509_certificate((folder / NODE).read_bytes()).not_valid_after_utc
    if expires <= datetime.now(UTC):
        raise EaglerayError(
            f"the cluster's certificate expired on {expires:%Y-%m-%d}",
            "make another with `eagleray cluster certificates`, or delete the folder to go on without TLS",
            str(folder / NODE),
        )
    return True


def _authority(folder: Path, days: int) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    if (folder / AUTHORITY_KEY).is_file():
        key = load_pem_private_key((folder / AUTHORITY_KEY).read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return x509.load_pem_x509_certificate((folder / AUTHORITY).read_bytes()), key
    key = ec.generate_private_key(ec.SECP256R1())
    name = _subject("eagleray cluster")
    certificate = (
        _builder("eagleray cluster", name, key.public_key(), 10 * days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_signs(), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    write_private(folder / AUTHORITY, certificate.public_bytes(Encoding.PEM))
    write_private(folder / AUTHORITY_KEY, _pem(key))
    return certificate, key


def _builder(
    subject: str, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_subject(subject))
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))  # machines' clocks differ
        .not_valid_after(now + timedelta(days=days))
    )


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _signs() -> x509.KeyUsage:
    """An authority's key signs certificates, and nothing else."""
    others = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment")
    more = ("key_agreement", "encipher_only", "decipher_only")
    return x509.KeyUsage(**dict.fromkeys((*others, *more), False), key_cert_sign=True, crl_sign=True)


def _name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def open_files(paths: Iterable[Path]) -> list[Path]:
    """Those that others than their owner can read or change."""
    return [path for path in paths if path.stat().st_mode & 0o077]
