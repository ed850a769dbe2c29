"""The HTTP interface as a FastAPI application; it holds no model and decodes nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import replace
from http import HTTPStatus
from typing import Any, Protocol, TypeVar

import numpy as np
from fastapi import FastAPI, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from numpy.typing import NDArray
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...pipelines.bundle import Hit
from .messages import (
    EmbedRequest,
    EmbedResponse,
    Health,
    Input,
    Problem,
    Refusal,
    SearchRequest,
    SearchResponse,
    SearchResult,
    refusal,
)
from .spec import LimitsSpec
from .tokens import Access
from .tokens import Scope as AccessScope

BUNDLE_HEADER = "x-eagleray-bundle"
NEEDS: Mapping[str, AccessScope] = {"/v1/embed": "embed", "/v1/search": "search"}
"""Path → what a token must be for; nothing else tells anything of the model."""

_logger = logging.getLogger("ray.serve")
_T = TypeVar("_T")
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": HTTPStatus(status).phrase}
    for status in (400, 401, 403, 413, 415, 422, 429, 500, 503, 504)
}


class EncoderClient(Protocol):
    """Reaches an encoder replica; see `batching.Encoder`."""

    def embed(self, query: Input) -> Awaitable[NDArray[np.float32] | Refusal]:
        """Embed one input (E,)."""
        ...

    def search(self, query: Input, top_k: int) -> Awaitable[list[Hit] | Refusal]:
        """Rank the indexed pictures."""
        ...


class RefusedError(Exception):
    """Ends a request with a refusal."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.problem.message)
        self.refusal = refusal


def build_api(
    encoder: EncoderClient, health: Health, limits: LimitsSpec, access: Access | None = None
) -> FastAPI:
    """Build the HTTP interface over an encoder.

    Args:
        encoder: reaches the replicas.
        health: what `/healthz` answers.
        limits: what a request may ask for.
        access: decides who may ask; None lets anyone.
    """
    bearer = [] if access is None else [Security(HTTPBearer(auto_error=False))]  # for the pages: see `Guard`
    api = FastAPI(
        title="Eagleray",
        summary="Embeds text, pictures and speech in one space, and searches pictures by any of them.",
        version=health.bundle[:12],
        responses=_PROBLEMS,
    )

    @api.get("/healthz", tags=["service"])
    async def healthz() -> Health:
        """Say that the service is up, and which bundle it serves."""
        return health

    @api.post("/v1/embed", tags=["model"], dependencies=bearer)
    async def embed(request: EmbedRequest) -> EmbedResponse:
        """Embed up to some dozens of inputs as unit vectors of one space."""
        if len(request.inputs) > limits.max_inputs:
            raise RefusedError(
                refusal(
                    413,
                    "too-many-inputs",
                    f"{len(request.inputs)} inputs are more than {limits.max_inputs}",
                    "send them in several requests",
                )
            )
        answers = await _all_within(limits.request_timeout_s, [encoder.embed(i) for i in request.inputs])
        vectors = [_accept(answer, f"inputs.{i}: ") for i, answer in enumerate(answers)]
        return EmbedResponse(
            embeddings=[vector.tolist() for vector in vectors], dim=health.embed_dim, bundle=health.bundle
        )

    @api.post("/v1/search", tags=["model"], dependencies=bearer)
    async def search(request: SearchRequest) -> SearchResponse:
        """Rank the corpus's pictures by a text, a picture or a spoken sentence."""
        (answer,) = await _all_within(limits.request_timeout_s, [encoder.search(request, request.top_k)])
        hits = _accept(answer)
        results = [
            SearchResult(id=hit.id, caption=hit.caption, category=hit.category, score=hit.score)
            for hit in hits
        ]
        return SearchResponse(results=results, bundle=health.bundle)

    api.add_middleware(Guard, bundle=health.bundle, max_body_bytes=limits.max_body_bytes, access=access)
    api.add_exception_handler(RefusedError, _refused)
    api.add_exception_handler(RequestValidationError, _invalid)
    api.add_exception_handler(HTTPException, _http_error)
    return api


class Guard:
    """Stands before the interface: asks for tokens, bounds the body, names the bundle in every answer.

    Args:
        app: what it guards.
        bundle: digest for the header.
        max_body_bytes: the largest body.
        access: decides who may ask; None lets anyone.
    """

    def __init__(self, app: ASGIApp, bundle: str, max_body_bytes: int, access: Access | None) -> None:
        self._app = app
        self._bundle = bundle
        self._max_body_bytes = max_body_bytes
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def stamped(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)[BUNDLE_HEADER] = self._bundle
            await send(message)

        try:
            answer = self._app
            refused = await self._admit(scope)
            if refused is not None:
                answer = _response(refused)
            elif scope["method"] == "POST":
                body = await self._read(Headers(scope=scope), receive)
                if isinstance(body, Refusal):
                    answer = _response(body)
                else:
                    receive = _replay(body, receive)
            await answer(scope, receive, stamped)
        except Exception:
            _logger.exception("a request failed")
            if started:
                raise
            failed = refusal(500, "internal-error", "the service failed", "look at the replica's log")
            await _response(failed)(scope, receive, stamped)

    async def _admit(self, scope: Scope) -> Refusal | None:
        """Refuse who may not ask, before anything of a body is read."""
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if self._access is None or path not in NEEDS:
            return None
        if self._access.is_due:
            await asyncio.to_thread(self._access.refresh)
        admitted = self._access.admit(Headers(scope=scope).get("authorization"), NEEDS[path])
        return admitted if isinstance(admitted, Refusal) else None

    async def _read(self, headers: Headers, receive: Receive) -> bytes | Refusal:
        """Read a JSON body that is not too large."""
        media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "application/json":
            return refusal(
                415,
                "unsupported-media-type",
                f"the body is {media_type or 'of no declared type'}, not application/json",
                "send JSON with the header content-type: application/json",
            )
        body = bytearray()
        more = int(headers.get("content-length", "0")) <= self._max_body_bytes
        fits = more
        while more:
            message = await receive()
            body += message.get("body", b"")
            fits = len(body) <= self._max_body_bytes
            more = fits and message.get("more_body", False)
        if fits:
            return bytes(body)
        return refusal(
            413,
            "body-too-large",
            f"the body is larger than {self._max_body_bytes} bytes",
            "send fewer or smaller inputs in one request",
        )


async def _all_within(timeout_s: float, calls: Sequence[Awaitable[_T]]) -> list[_T]:
    try:
        async with asyncio.timeout(timeout_s):
            return list(await asyncio.gather(*calls))
    except TimeoutError:
        late = refusal(504, "timeout", f"no answer within {timeout_s:g} s", "try again, or send fewer inputs")
        raise RefusedError(late) from None


def _accept(answer: _T | Refusal, where: str = "") -> _T:
    if isinstance(answer, Refusal):
        problem = answer.problem
        named = problem.model_copy(update={"message": where + problem.message})
        raise RefusedError(replace(answer, problem=named))
    return answer


def _replay(body: bytes, receive: Receive) -> Receive:
    """Give the body that was read; after it, what else comes (a disconnect)."""
    pending = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return pending.pop() if pending else await receive()

    return replay


def _response(refusal: Refusal) -> JSONResponse:
    headers: dict[str, str] = {}
    if refusal.retry_after_s is not None:
        headers["retry-after"] = str(refusal.retry_after_s)
    if refusal.status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(refusal.problem.model_dump(), refusal.status, headers)


async def _refused(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RefusedError)
    return _response(error.refusal)


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    problems = error.errors()
    if problems[0]["type"] == "json_invalid":
        reason = problems[0].get("ctx", {}).get("error", problems[0]["msg"])
        return _response(refusal(400, "invalid-json", f"the body is no JSON: {reason}", "send a JSON object"))
    lines = [
        ": ".join(
            filter(
                None, (".".join(str(part) for part in p["loc"][1:]), p["msg"].removeprefix("Value error, "))
            )
        )
        for p in problems
    ]
    return _response(refusal(422, "invalid-request", "; ".join(lines), "see /docs for the request's shape"))


async def _http_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "-")
    return _response(refusal(error.status_code, code, str(error.detail), "see /docs for what is served"))
