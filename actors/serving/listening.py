"""Where a cluster's Ray Serve listens, and how that is reached."""

from __future__ import annotations

import errno
import hashlib
import shlex
import socket
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray._private import worker as ray_worker
from ray.exceptions import RayError
from ray.serve.config import gRPCOptions
from ray.serve.schema import LoggingConfig

from ...workflows.errors import EaglerayError
from ...workflows.hosts import address_of
from .rpc import ADD_TO_SERVER
from .spec import ServingOptions
from .tls import install, name_of

LOGGING = LoggingConfig(log_level="WARNING", enable_access_log=False)
_CALL_TIMEOUT_S = 10.0


def check_who_may_ask(options: ServingOptions) -> None:
    """Refuse what would let a network ask, or listen, by oversight."""
    if options.is_here:
        return
    if options.tokens is None and not options.open:
        raise EaglerayError(
            f"{options.host} is open to the network, and nothing checks who asks",
            f"ask for tokens (eagleray tokens create; {option('tokens', '/FOLDER')}), or listen on this "
            f"machine only ({option('host', '127.0.0.1')}), or say that anyone may ask: "
            "--set STAGE.open=true (--open for `eagleray serve`)",
            options.application,
        )
    if options.tokens is not None and options.tls is None and not options.plaintext:
        raise EaglerayError(
            f"on {options.host} tokens would cross the network in the clear",
            f"give a certificate ({option('tls.certificate', '/CERTIFICATE.pem')}, "
            f"{option('tls.key', '/KEY.pem')}), or say that something before it encrypts: "
            "--set STAGE.plaintext=true (--plaintext for `eagleray serve`)",
            options.application,
        )
    if options.tokens is not None and options.grpc_port is not None and not options.plaintext:
        raise EaglerayError(
            f"gRPC has no TLS here, and on {options.host} tokens would cross the network in the clear",
            "leave grpc_port out, or say that something before it encrypts: "
            "--set STAGE.plaintext=true (--plaintext for `eagleray serve`)",
            options.application,
        )


def start_serve(options: ServingOptions, pem: bytes | None) -> None:
    """Start Ray Serve at the address asked for, or make sure that it already listens there."""
    haproxy = _haproxy()
    tls = {"ssl_keyfile": options.tls.key, "ssl_certfile": options.tls.certificate} if options.tls else {}
    certificate = _digest(pem) if haproxy else tls.get("ssl_certfile", "")
    listening = find_listening()
    if listening is not None and listening.suits(options, certificate):
        return
    if listening is not None:
        others = sorted(set(serve.status().applications) - {options.application})
        if others:
            how = " with a certificate" if listening.certificate else ""
            raise EaglerayError(
                f"Ray Serve listens on {listening}{how} for {', '.join(others)}, "
                "and a cluster has one Serve address",
                f"use that one: {option('port', listening.port)} (and host {listening.host}"
                f"{', and the same certificate' if how else ''})"
                + (f", {option('grpc_port', listening.grpc_port)}" if listening.grpc_port else ""),
                f"{options.host}:{options.port}"
                + (f" (gRPC: {options.grpc_port})" if options.grpc_port else ""),
            )
        serve.shutdown()
    _check_port(options, options.port, "port")
    speaks: dict[str, Any] = {}
    if options.grpc_port is not None:
        _check_port(options, options.grpc_port, "grpc_port")
        speaks["grpc_options"] = gRPCOptions(
            port=options.grpc_port, grpc_servicer_functions=[ADD_TO_SERVER], enable_reflection=False
        )
    if haproxy is not None:
        install(haproxy, options.port, pem)
        tls = {}  # else replicas would speak it, and HAProxy not
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": options.host, "port": options.port, **tls},
        logging_config=LOGGING,
        **speaks,
    )


@dataclass(frozen=True)
class Listening:
    """Where the cluster's Ray Serve is asked.

    Attributes:
        host, port: over HTTP.
        grpc_port: over gRPC.
        certificate: its path, behind HAProxy a digest; empty for none.
    """

    host: str
    port: int
    grpc_port: int | None
    certificate: str

    def __str__(self) -> str:
        return f"{self.host}:{self.port}" + (f" and {self.grpc_port} (gRPC)" if self.grpc_port else "")

    def suits(self, options: ServingOptions, certificate: str) -> bool:
        """Whether an application with these options can be asked there."""
        same = (self.host, self.port, self.certificate) == (options.host, options.port, certificate)
        return same and options.grpc_port in (None, self.grpc_port)


def find_listening() -> Listening | None:
    """Where the cluster's Ray Serve is asked; none when it doesn't run."""
    try:  # Serve has no public way to ask for its address
        controller: Any = ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
        asked = [controller.get_http_config.remote(), controller.get_grpc_config.remote()]
        config, speaks = ray.get(asked, timeout=_CALL_TIMEOUT_S)
    except (ValueError, RayError):  # ValueError: no actor of that name
        return None
    grpc_port = speaks.port if ADD_TO_SERVER in speaks.grpc_servicer_functions else None
    haproxy = _haproxy()
    if haproxy is None:
        certificate = config.ssl_certfile or ""
    else:
        pem = haproxy / f"tls-{config.port}.pem"
        certificate = _digest(pem.read_bytes() if pem.is_file() else None)
    return Listening(config.host, config.port, grpc_port, certificate)


def url_of(options: ServingOptions) -> str:
    """Where this machine reaches what is served with these options."""
    return url_at(options.host, options.port, options.route_prefix, options.tls is not None)


def url_at(host: str, port: int, route_prefix: str, secure: bool) -> str:
    """Where this machine reaches an application over HTTP."""
    return f"{'https' if secure else 'http'}://{address_at(host, port)}{route_prefix.rstrip('/')}"


def address_at(host: str, port: int) -> str:
    """How this machine reaches a listener."""
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    return address_of(host, port)


def as_clients_reach(url: str, options: ServingOptions) -> tuple[str, str]:
    """A URL of a name that the certificate has, and what curl needs to trust it on this machine."""
    if options.tls is None:
        return url, ""
    reached = urllib.parse.urlsplit(url)
    name = name_of(options.tls, reached.hostname or "")
    trust = f" --cacert {shlex.quote(options.tls.certificate)}"
    if name == reached.hostname:
        return url, trust
    shown = reached._replace(netloc=f"{name}:{reached.port}").geturl()
    return shown, f"{trust} --connect-to {shlex.quote(f'{name}:{reached.port}:{reached.netloc}')}"


def option(field: str, value: object) -> str:
    """How a person sets a serving option, in a workflow or for the `serve` command."""
    flag = f"--{field.replace('_', '-').replace('.', '-')}"
    return f"--set STAGE.{field}={value} ({flag} {value} for `eagleray serve`)"


def _check_port(options: ServingOptions, port: int, field: str) -> None:
    """Refuse a port that something else has; Serve's own proxy would share it (SO_REUSEPORT)."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((options.host, port))
        except OSError as error:
            where = f"{options.host}:{port}"
            if error.errno == errno.EADDRINUSE:
                raise EaglerayError(
                    f"port {port} is in use by another program",
                    f"end that program, or run again with {option(field, _free_port(options.host))}",
                    where,
                ) from None
            raise EaglerayError(
                f"can't listen there: {error.strerror}",
                "choose an address of this machine and a port above 1023: "
                f"{option('host', '127.0.0.1')}, {option(field, 8000 if field == 'port' else 9000)}",
                where,
            ) from None


def _free_port(host: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _haproxy() -> Path | None:
    """Folder of the program that is this cluster's HAProxy, if it is ours."""
    node: Any = getattr(ray_worker, "_global_node", None)
    if node is None:
        return None
    folder = Path(node.get_temp_dir_path()).parent / "proxy"
    return folder if (folder / "haproxy").is_file() else None


def _digest(pem: bytes | None) -> str:
    return "" if pem is None else hashlib.sha256(pem).hexdigest()
