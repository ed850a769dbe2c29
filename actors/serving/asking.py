"""Questions of a deployment's own, to see that what is served answers."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Any

import grpc

from ...workflows.errors import EaglerayError
from .guard import BUNDLE_HEADER
from .promoting import GoldenRequest, Outcome
from .protocol import SERVICE
from .rpc import APPLICATION
from .spec import ServingOptions
from .tls import trusting
from .tokens import Scope, TokenFolder, issue

_POLL_S = 0.25
_CALL_TIMEOUT_S = 10.0


def ask(
    opener: urllib.request.OpenerDirector,
    url: str,
    request: dict[str, Any],
    token: str | None,
    digest: str,
    deadline: float,
) -> dict[str, Any]:
    """Ask over HTTP until the bundle with `digest` answers; routes reach the proxy a moment late."""
    call = _post(url, request, token)
    while True:
        try:
            with opener.open(call, timeout=max(deadline - time.monotonic(), 1)) as response:
                if response.headers[BUNDLE_HEADER] == digest:
                    return json.load(response)
                said = f"bundle {response.headers[BUNDLE_HEADER]} answered"
        except urllib.error.HTTPError as error:
            said = f"status {error.code}: {error.read().decode(errors='replace')}"
        except OSError as error:
            said = str(error)
        _wait(deadline, f"the application did not answer its first request: {said}", url)


def ask_golden(
    opener: urllib.request.OpenerDirector, url: str, token: str | None, request: GoldenRequest, bundle: str
) -> Outcome:
    """Ask one of an application's bundles."""
    call = _post(f"{url}{request.path}", request.body, token, {BUNDLE_HEADER: bundle})
    until = time.monotonic() + _CALL_TIMEOUT_S
    while True:
        begun = time.monotonic()
        try:
            with opener.open(call, timeout=_CALL_TIMEOUT_S) as response:
                answer = json.load(response)
            return Outcome(request.is_right(answer), time.monotonic() - begun)
        except urllib.error.HTTPError as error:
            if error.code != HTTPStatus.UNAUTHORIZED:
                failed = error.code >= HTTPStatus.INTERNAL_SERVER_ERROR
                return Outcome(False, time.monotonic() - begun, failed)
            said = error.read().decode(errors="replace")
        except OSError:
            return Outcome(False, time.monotonic() - begun, failed=True)
        if time.monotonic() > until:
            raise EaglerayError(f"a golden request was refused: {said}", where=url)
        time.sleep(_POLL_S)  # a token is known to each replica a moment later


def wait_for_grpc(address: str, application: str, deadline: float) -> None:
    """Wait until an application answers over gRPC; routes reach the proxy a moment late."""
    method = f"/{SERVICE}/ServerReady"
    while True:
        with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
            ask: Any = channel.unary_unary(method)  # the request and what matters of the answer are empty
            try:
                ask(b"", timeout=_CALL_TIMEOUT_S, metadata=[(APPLICATION, application)])
                return
            except grpc.RpcError as error:
                said = str(error.details())
        _wait(deadline, f"the application did not answer over gRPC: {said}", address)


@contextmanager
def own_token(options: ServingOptions, scopes: tuple[Scope, ...], seconds: float) -> Generator[str | None]:
    """A token for requests of the deployment's own within some seconds, which is revoked after them."""
    if options.tokens is None:
        yield None
        return
    folder = TokenFolder(options.tokens)
    expires = datetime.now(UTC) + timedelta(seconds=seconds)
    token, sent = issue("the deployment's own requests", scopes, expires=expires)
    folder.add(token)
    try:
        yield sent
    finally:
        folder.revoke(token.id)


def opener(options: ServingOptions) -> urllib.request.OpenerDirector:
    """Asks a service on this machine, which needs no proxy, and has the certificate that it was given."""
    secure = urllib.request.HTTPSHandler(context=trusting(options.tls) if options.tls else None)
    return urllib.request.build_opener(urllib.request.ProxyHandler({}), secure)


def _wait(deadline: float, said: str, where: str) -> None:
    """Wait a moment before the next attempt, if there is time for one."""
    if time.monotonic() > deadline:
        raise EaglerayError(said, "give it more time: --set STAGE.ready_timeout_s=…", where)
    time.sleep(_POLL_S)


def _post(
    url: str, body: Mapping[str, Any], token: str | None, headers: Mapping[str, str] = {}
) -> urllib.request.Request:
    sent = {"content-type": "application/json", **headers}
    if token is not None:
        sent["authorization"] = f"Bearer {token}"
    return urllib.request.Request(url, json.dumps(body).encode(), sent)
