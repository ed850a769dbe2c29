"""What answers at a port, and whether it asks who is there: found out by asking it, without a token.

Nothing that is asked changes anything: a path to read, or a call with an empty message.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Literal

from ..workflows.hosts import address_of

TIMEOUT_S = 3.0
HTTP2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])  # RFC 9113, 3.4
HTTP2_SETTINGS = b"\x04"  # RFC 9113, 6.5: the type of the first frame of a server

What = Literal[
    "GCS",
    "raylet",
    "object manager",
    "worker",
    "dashboard agent's gRPC",
    "Ray client",
    "Serve replica's gRPC",
    "Serve's gRPC",
    "Serve's HTTP",
    "Ray's HTTP",
    "metrics",
    "HAProxy statistics",
    "gRPC",
    "unknown",
]

CALLS: Mapping[str, What] = {
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo": "GCS",
    "/ray.rpc.NodeManagerService/GetSystemConfig": "raylet",
    "/ray.rpc.CoreWorkerService/NumPendingTasks": "worker",
    "/ray.rpc.ReporterService/HealthCheck": "dashboard agent's gRPC",
    "/ray.rpc.RayletDriver/ClusterInfo": "Ray client",
    "/ray.serve.ASGIService/HandleRequest": "Serve replica's gRPC",
    "/inference.GRPCInferenceService/ModelInfer": "Serve's gRPC",
    "/ray.serve.RayServeAPIService/ListApplications": "Serve's gRPC",
}
"""A call → what alone knows it. Each takes an empty message, or one of `MESSAGES`, and changes nothing."""
MESSAGES = {"/inference.GRPCInferenceService/ModelInfer": b"\n\x05embed"}
"""What is served looks at tokens once it knows which model is asked (its field 1)."""


@dataclass(frozen=True)
class Answered:
    """What a port said.

    Attributes:
        what: it is.
        tls: whether it speaks TLS.
        asks: whether it asks for a token, or for a certificate of the cluster; None if that wasn't seen.
    """

    what: What
    tls: bool = False
    asks: bool | None = None


def probe(host: str, port: int) -> Answered | None:
    """Ask what listens at a port; None if nothing does.

    Args:
        host: address or name.
        port: TCP port.
    """
    hello = f"GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n".encode()
    said = _greet(host, port, hello)
    if said is None:
        return None
    if said.startswith(b"HTTP/1."):
        return _ask_http(host, port, tls=False)
    if said[3:4] == HTTP2_SETTINGS:
        return _ask_grpc(host, port)
    said = _greet(host, port, hello, "http/1.1")
    if said is None:
        return Answered("unknown")
    if said.startswith(b"HTTP/1."):
        return _ask_http(host, port, tls=True)
    said = _greet(host, port, HTTP2_HELLO, "h2")
    if said is None:
        return Answered("unknown", tls=True)
    # who wants a certificate ends a connection that has none
    return Answered("gRPC", tls=True, asks=None if said[3:4] == HTTP2_SETTINGS else True)


def _greet(host: str, port: int, hello: bytes, tls: str = "") -> bytes | None:
    """The first bytes that come back; None if there was no connection, or no TLS with that protocol."""
    try:
        with ExitStack() as opened:
            stream = opened.enter_context(socket.create_connection((host, port), TIMEOUT_S))
            if tls:
                context = _any_certificate()
                context.set_alpn_protocols([tls])
                stream = opened.enter_context(context.wrap_socket(stream, server_hostname=host))
            return _exchange(stream, hello)
    except OSError:
        return None


def _exchange(stream: socket.socket, hello: bytes) -> bytes:
    said = b""
    with suppress(OSError):  # closed, or silent
        stream.sendall(hello)
        while len(said) < 9 and (more := stream.recv(9 - len(said))):
            said += more
    return said


def _any_certificate() -> ssl.SSLContext:
    """What is asked is whether there is TLS, not whose."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _ask_grpc(host: str, port: int) -> Answered:
    import grpc

    with grpc.insecure_channel(address_of(host, port)) as channel:
        for method, what in CALLS.items():
            try:
                channel.unary_unary(method)(MESSAGES.get(method, b""), timeout=TIMEOUT_S)
            except grpc.RpcError as error:
                code = error.code()
                if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
                    return Answered(what, asks=True)
                if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    return Answered("unknown")
                if code is grpc.StatusCode.UNIMPLEMENTED:
                    continue
            return Answered(what, asks=False)
    return Answered("gRPC")


def _ask_http(host: str, port: int, *, tls: bool) -> Answered:
    status, text = _told(host, port, tls, "/-/routes")
    with suppress(ValueError):
        routes = json.loads(text)
        if status == 200 and isinstance(routes, dict):
            prefixes = [str(one).rstrip("/") for one in routes]
            return Answered("Serve's HTTP", tls, _asks(host, port, tls, prefixes))
    status, text = _told(host, port, tls, "/metrics")
    if status == 200 and b"# HELP" in text:
        return Answered("metrics", tls=tls, asks=False)
    status, text = _told(host, port, tls, "/stats")
    if status == 200 and b"HAProxy" in text:
        return Answered("HAProxy statistics", tls=tls, asks=False)
    status, text = _told(host, port, tls, "/api/version")
    if status in (401, 403):
        return Answered("Ray's HTTP", tls=tls, asks=True)
    if status == 200 and b"ray_version" in text:
        return Answered("Ray's HTTP", tls=tls, asks=False)
    return Answered("unknown", tls=tls, asks=False)


def _asks(host: str, port: int, tls: bool, prefixes: Sequence[str]) -> bool | None:
    """Whether all applications ask for a token before they read a request; None if there is none."""
    asked = [_told(host, port, tls, f"{prefix}/v1/embed", "POST")[0] for prefix in prefixes]
    return all(status in (401, 403) for status in asked) if asked else None


def _told(host: str, port: int, tls: bool, path: str, method: str = "GET") -> tuple[int, bytes]:
    """Status and beginning of an answer; 0 if there was none."""
    connection = (
        http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=_any_certificate())
        if tls
        else http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    )
    try:
        connection.request(method, path, headers={"content-type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read(100_000)
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()
