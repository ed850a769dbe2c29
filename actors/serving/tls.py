"""A service's certificate: checked before anything is deployed, and given to whatever speaks HTTP."""

from __future__ import annotations

import ssl
from contextlib import suppress
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from ...workflows.errors import EaglerayError
from ...workflows.filesystem import write_private
from .spec import TlsSpec


def read_pem(tls: TlsSpec) -> bytes:
    """A certificate and its key as one file has them.

    Raises:
        EaglerayError: when they can't be read, don't belong together, or are not valid now.
    """
    chain, key = _read(tls.certificate), _read(tls.key)
    certificate = _first(tls)
    try:
        private = load_pem_private_key(key, None)
    except (TypeError, ValueError) as error:  # TypeError: it has a password
        raise EaglerayError(
            f"no key without a password: {error}",
            "give the PEM file of a private key; `openssl pkey -in KEY` takes a password off",
            tls.key,
        ) from None
    if private.public_key() != certificate.public_key():
        raise EaglerayError(
            f"the key {tls.key} is of another certificate",
            "give the key that the certificate was made with",
            tls.certificate,
        )
    now, expires = datetime.now(UTC), certificate.not_valid_after_utc
    if not certificate.not_valid_before_utc <= now < expires:
        when = f"expired on {expires:%Y-%m-%d}" if now >= expires else "is not valid yet"
        raise EaglerayError(
            f"the certificate {when}, so clients would refuse it", "renew it", tls.certificate
        )
    return chain.rstrip() + b"\n" + key


def trusting(tls: TlsSpec) -> ssl.SSLContext:
    """For this machine's own request: it trusts the service's certificate alone, whatever its name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # the address asked is this machine's, not the service's name
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # whether or not its authority is in the file
    context.load_verify_locations(tls.certificate)
    return context


def name_of(tls: TlsSpec, host: str) -> str:
    """The name by which clients that check it reach the service at `host`: one of its certificate."""
    with suppress(x509.ExtensionNotFound):
        names = _first(tls).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        known = names.get_values_for_type(x509.DNSName)
        addresses = names.get_values_for_type(x509.IPAddress)
        with suppress(ValueError):
            if ip_address(host) in addresses:
                return host
        if host not in known:
            return next((name for name in known if "*" not in name), host)
    return host


def install(folder: Path, port: int, pem: bytes | None) -> bool:
    """Let HAProxy's port speak TLS with `pem`, or none; False if it was so already.

    Args:
        folder: of HAProxy's program (see `cluster.haproxy`).
        port: that it listens on.
        pem: certificates and key.
    """
    path = folder / f"tls-{port}.pem"
    if (path.read_bytes() if path.is_file() else None) == pem:
        return False
    if pem is None:
        path.unlink()
    else:
        write_private(path, pem)
    return True


def _first(tls: TlsSpec) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificates(_read(tls.certificate))[0]
    except ValueError as error:
        raise EaglerayError(
            f"no certificate: {error}", "give a PEM file that begins with the service's", tls.certificate
        ) from None


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise EaglerayError(
            f"can't read it: {error.strerror}", "give a PEM file that this user may read", path
        ) from None
