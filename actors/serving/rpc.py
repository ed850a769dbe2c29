"""The Open Inference Protocol over gRPC: each call is put to the HTTP interface of the same process.

What stands before that interface stands before this one, too: tokens, limits, the bundle's name. A call's
metadata are the request's headers, tensors travel as the bytes that they are (the binary extension), and a
refusal's HTTP status becomes one of gRPC's. A call that ends early, at its deadline or because whoever asked
is gone, is cancelled by gRPC, and with it the request.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import unquote

import grpc
import numpy as np
from google.protobuf.any_pb2 import Any as Packed
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from starlette.types import ASGIApp
from starlette.types import Message as Event

from .guard import BUNDLE_HEADER
from .inference import LENGTH_HEADER, PREFIX, TYPES, pack, unpack
from .messages import Refusal, refusal
from .problems import RefusedError
from .protocol import METHODS, SERVICE, message

ADD_TO_SERVER = f"{__name__}:add_to_server"
"""What Serve is told, so that its gRPC servers take the protocol's calls."""
APPLICATION = "application"
"""Metadata by which Serve finds an application, where there are several."""
DETAILS = "grpc-status-details-bin"
ROOM_BYTES = 2**20
"""Of a message beside what it asks; an answer must find room, too."""
LONGEST_DETAILS = 2048
"""Characters of what is said of a refusal; a call's end has room for 8 KB in all."""
CODES: Mapping[int, grpc.StatusCode] = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    415: grpc.StatusCode.INVALID_ARGUMENT,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
"""HTTP's status of a refusal → gRPC's; any other is INTERNAL."""

_logger = logging.getLogger("ray.serve")


def add_to_server(servicer: Any, server: grpc.aio.Server) -> None:  # noqa: ANN401 - Serve's own stand-in
    """Let a gRPC server of Serve's take the protocol's calls, as bytes, and hand them to replicas."""
    handlers = {name: grpc.unary_unary_rpc_method_handler(getattr(servicer, name)) for name in METHODS}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


def environment(max_body_bytes: int) -> dict[str, str]:
    """What a replica's process must have in its environment, so that its gRPC server bounds messages.

    Args:
        max_body_bytes: of a request. What is a little larger is refused by the HTTP interface, which says so.
    """
    return {"RAY_SERVE_GRPC_MAX_MESSAGE_SIZE": str(max_body_bytes + ROOM_BYTES)}


class Context(Protocol):
    """What is used of Serve's copy of a call's context."""

    def invocation_metadata(self) -> list[tuple[str, str | bytes]]:
        """What came with the call."""
        ...

    def peer(self) -> str:
        """Who calls, such as `ipv4:127.0.0.1:9000`."""
        ...

    def set_code(self, code: grpc.StatusCode) -> None:
        """Say how the call ends."""
        ...

    def set_details(self, details: str) -> None:
        """Say why."""
        ...

    def set_trailing_metadata(self, trailing_metadata: list[tuple[str, str | bytes]]) -> None:
        """Say what else goes with its end."""
        ...


@dataclass(frozen=True)
class Reply:
    """What the HTTP interface gave.

    Attributes:
        status: HTTP's.
        headers: by name in small letters.
        body: all of it.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes


def _method(name: str) -> Callable[[Called, bytes, Context], Awaitable[Any]]:
    async def method(self: Called, sent: bytes, grpc_context: Context) -> Any:  # noqa: ANN401 - a message
        return await _answer(self.api, self.only_here, name, sent, grpc_context)

    method.__name__ = name
    return method


class Called:
    """Has the methods that Serve calls: a message's bytes come, and a message goes.

    Attributes:
        api: the HTTP interface.
        only_here: whether callers must be on this machine. Serve's gRPC servers listen on every address,
            whichever one Serve is told.
    """

    api: ASGIApp
    only_here: bool

    ServerLive = _method("ServerLive")
    ServerReady = _method("ServerReady")
    ServerMetadata = _method("ServerMetadata")
    ModelReady = _method("ModelReady")
    ModelMetadata = _method("ModelMetadata")
    ModelInfer = _method("ModelInfer")


async def _answer(api: ASGIApp, only_here: bool, method: str, sent: bytes, context: Context) -> Any:  # noqa: ANN401
    """Answer a call, or end it with a refusal."""
    response = message(f"{method}Response")
    trailers: list[tuple[str, str | bytes]] = []
    try:
        if only_here and not is_here(context.peer()):
            raise RefusedError(
                refusal(403, "not-here", "the service is for its own machine", "ask from there")
            )
        try:
            request: Any = message(f"{method}Request").FromString(sent)
        except DecodeError:
            raise _invalid(f"the bytes are no {method}Request") from None
        reply = await _ask(api, method, request, context)
        if BUNDLE_HEADER in reply.headers:
            trailers.append((BUNDLE_HEADER, reply.headers[BUNDLE_HEADER]))
        if reply.status == 404 and method == "ModelReady":
            return response(ready=False)
        if reply.status != 200:
            raise RefusedError(_refused(reply))
        if method == "ModelInfer":
            return inferred(reply, as_bytes=bool(request.raw_input_contents))
        return ParseDict(json.loads(reply.body), response(), ignore_unknown_fields=True)
    except RefusedError as error:
        trailers += _end(context, error.refusal)
    except Exception:
        _logger.exception("a call failed")
        trailers += _end(context, refusal(500, "internal-error", "the service failed"))
    finally:
        context.set_trailing_metadata(trailers)
    return response()


def is_here(peer: str) -> bool:
    """Whether a caller, as gRPC names one, is on this machine."""
    kind, _, address = unquote(peer).partition(":")
    if kind not in ("ipv4", "ipv6"):
        return kind == "unix"
    host = address.rpartition(":")[0].strip("[]")
    found = ipaddress.ip_address(host.partition("%")[0])
    return (getattr(found, "ipv4_mapped", None) or found).is_loopback


async def _ask(api: ASGIApp, method: str, request: Any, context: Context) -> Reply:  # noqa: ANN401 - a message
    """Put a call to the HTTP interface."""
    headers = {name: value for name, value in context.invocation_metadata() if isinstance(value, str)}
    if method == "ModelInfer":
        head, body = infer_body(request)
        headers |= {LENGTH_HEADER: str(head), "content-type": "application/octet-stream"}
        return await _http(
            api, "POST", _path(request.model_name, request.model_version, "/infer"), headers, body
        )
    paths = {"ServerLive": "/health/live", "ServerReady": "/health/ready", "ServerMetadata": ""}
    if method in paths:
        return await _http(api, "GET", paths[method], headers)
    rest = "/ready" if method == "ModelReady" else ""
    return await _http(api, "GET", _path(request.name, request.version, rest), headers)


def _path(name: str, version: str, rest: str) -> str:
    if not name or "/" in name + version:
        raise RefusedError(refusal(404, "model-not-found", f"no model {name!r} is served"))
    return f"/models/{name}{f'/versions/{version}' if version else ''}{rest}"


async def _http(api: ASGIApp, method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> Reply:
    """A request to an ASGI application, below the protocol's prefix."""
    given: list[Event] = [{"type": "http.request", "body": body, "more_body": False}]
    status, told, chunks = 500, dict[str, str](), list[bytes]()

    async def receive() -> Event:
        if not given:
            await asyncio.Event().wait()  # whoever asked does not go: the call is cancelled
        return given.pop()

    async def send(event: Event) -> None:
        nonlocal status
        if event["type"] == "http.response.start":
            status = event["status"]
            told.update((name.decode().lower(), value.decode()) for name, value in event["headers"])
        else:
            chunks.append(event.get("body", b""))

    sent = {**headers, "content-length": str(len(body))}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "2",
        "scheme": "http",
        "method": method,
        "path": PREFIX + path,
        "raw_path": (PREFIX + path).encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in sent.items()],
        "client": None,
        "server": None,
    }
    await api(scope, receive, send)
    return Reply(status, told, b"".join(chunks))


def infer_body(request: Any) -> tuple[int, bytes]:  # noqa: ANN401 - a ModelInferRequest
    """Bytes of the JSON of a request as HTTP has it, and all of it: JSON, then the tensors' bytes."""
    raw: list[bytes] = list(request.raw_input_contents)
    if raw and (len(raw) != len(request.inputs) or any(one.HasField("contents") for one in request.inputs)):
        raise _invalid(
            f"{len(raw)} raw_input_contents do not go with {len(request.inputs)} inputs",
            "give each input in raw_input_contents, or each in its contents",
        )
    values = raw or [pack(one.contents.bytes_contents) for one in request.inputs]
    head: dict[str, Any] = {
        "inputs": [
            {
                "name": one.name,
                "shape": list(one.shape),
                "datatype": one.datatype,
                "parameters": {"binary_data_size": len(value)},
            }
            for one, value in zip(request.inputs, values, strict=True)
        ],
        "parameters": {"binary_data_output": True},
    }
    if request.parameters["timeout"].int64_param:
        head["parameters"]["timeout"] = request.parameters["timeout"].int64_param
    if request.id:
        head["id"] = request.id
    if request.outputs:
        head["outputs"] = [{"name": one.name} for one in request.outputs]
    told = json.dumps(head).encode()
    return len(told), b"".join([told, *values])


def inferred(reply: Reply, as_bytes: bool) -> Any:  # noqa: ANN401 - a ModelInferResponse
    """The response: tensors as bytes, or each in the field of its type."""
    length = int(reply.headers[LENGTH_HEADER])
    head, place = json.loads(reply.body[:length]), length
    response: Any = message("ModelInferResponse")(
        model_name=head["model_name"], model_version=head["model_version"], id=head.get("id", "")
    )
    for one in head["outputs"]:
        size = one["parameters"]["binary_data_size"]
        value, place = reply.body[place : place + size], place + size
        tensor = response.outputs.add(name=one["name"], datatype=one["datatype"], shape=one["shape"])
        if as_bytes:
            response.raw_output_contents.append(value)
        elif one["datatype"] == "BYTES":
            tensor.contents.bytes_contents.extend(unpack(one["name"], value))
        else:
            contents: Any = {"FP32": tensor.contents.fp32_contents, "INT64": tensor.contents.int64_contents}
            contents[one["datatype"]].extend(np.frombuffer(value, TYPES[one["datatype"]]).tolist())
    return response


def _refused(reply: Reply) -> Refusal:
    """What the HTTP interface refused, as it says that of this protocol."""
    wait = reply.headers.get("retry-after")
    said = json.loads(reply.body)["error"]
    return refusal(reply.status, "refused", said, retry_after_s=None if wait is None else int(wait))


def _invalid(what: str, remedy: str = "") -> RefusedError:
    return RefusedError(refusal(400, "invalid-request", what, remedy))


def _end(context: Context, refused: Refusal) -> list[tuple[str, str | bytes]]:
    """End a call with a refusal; gives what goes with that: when to try again."""
    code, problem = CODES.get(refused.status, grpc.StatusCode.INTERNAL), refused.problem
    details = f"{problem.message} ({problem.remedy})" if problem.remedy else problem.message
    details = details[:LONGEST_DETAILS]
    context.set_code(code)
    context.set_details(details)
    if refused.retry_after_s is None:
        return []
    retry = Packed()
    retry.Pack(RetryInfo(retry_delay=Duration(seconds=refused.retry_after_s)))
    status = Status(code=code.value[0], message=details, details=[retry])
    return [(DETAILS, status.SerializeToString())]
