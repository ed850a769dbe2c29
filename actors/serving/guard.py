"""What stands before the HTTP interface: tokens, deadlines, bodies within limits, the bundle named."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from . import deadlines
from .messages import Refusal, refusal
from .moderating.noting import note_from_here, summary
from .problems import INFERENCE, path_of, respond
from .spec import LimitsSpec
from .tokens import SCOPES, Access
from .tokens import Scope as AccessScope
from .tracing import current

BUNDLE_HEADER = "x-eagleray-bundle"
"""In an answer the digest of the bundle that gave it; in a request that of the one that shall."""
MIRRORED = "eagleray.mirrored"
"""Key of a scope: the request was admitted already, and is asked again beside."""
MODERATION_HEADER = "x-eagleray-moderation"
NEEDS: Mapping[str, AccessScope] = {
    "/v1/embed": "embed",
    "/v1/embeddings": "embed",
    "/v1/search": "search",
    "/v1/classify": "classify",
    "/v1/assess": "assess",
    "/v1/answer": "answer",
    "/v1/chat/completions": "answer",
    "/v1/audio/transcriptions": "transcribe",
    "/v1/drift": "watch",
    "/v1/moderate": "moderate",
    "/v1/moderations": "moderate",
}
"""Path → what a token must be for; nothing else tells anything of the model."""
FORMS = frozenset({"/v1/audio/transcriptions"})
"""Paths that take a form with files."""

_INFER = re.compile(r"/v2/models/(\w+)(?:/versions/\w+)?/infer")

_JSON_MARKS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[\]{}]', re.DOTALL)
"""Texts as a whole, so that what stands in them isn't seen, and what opens and closes arrays and objects."""

_DEEPER = {b"[": 1, b"{": 1, b"]": -1, b"}": -1}
MOST_PARTS, LEAST_READ_S = 20_000, 0.1

_logger = logging.getLogger("ray.serve")


class Guard:
    """Asks for tokens, bounds the body, names the bundle in every answer.

    Args:
        app: what it guards.
        bundle: digest for the header.
        limits: of bodies and of time.
        access: decides who may ask; None lets anyone.
        overloaded: why no more of something can be taken in, if so.
    """

    def __init__(
        self,
        app: ASGIApp,
        bundle: str,
        limits: LimitsSpec,
        access: Access | None,
        overloaded: Callable[[AccessScope], Refusal | None],
    ) -> None:
        self._app = app
        self._bundle = bundle
        self._limits = limits
        self._access = access
        self._overloaded = overloaded

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False
        path = path_of(scope)
        noted = note_from_here()
        refused: Refusal | None = None

        async def stamped(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                headers[BUNDLE_HEADER] = self._bundle
                if noted:
                    headers[MODERATION_HEADER] = summary(noted)
            await send(message)

        try:
            answer = self._app
            headers, wanted = Headers(scope=scope), needed(path)
            if wanted is not None and MIRRORED not in scope:
                refused = await self._admit(headers, wanted)
            refused = refused or self._begin(headers)
            if refused is None and wanted is not None:
                refused = self._overloaded(wanted)
            if refused is not None:
                answer = respond(refused, path)
            elif scope["method"] == "POST":
                body = await self._read_in_time(headers, receive, path)
                if isinstance(body, Refusal):
                    answer = respond(body, path)
                else:
                    receive = _replay(body, receive)
            await answer(scope, receive, stamped)
        except Exception:
            trace = current()
            _logger.exception("a request failed%s", f" (trace {trace.name})" if trace else "")
            if started:
                raise
            failed = refusal(500, "internal-error", "the service failed", "look at the replica's log")
            await respond(failed, path)(scope, receive, stamped)

    async def _admit(self, headers: Headers, wanted: AccessScope) -> Refusal | None:
        """Refuse who may not ask, before anything of a body is read."""
        if self._access is None:
            return None
        await self._access.keep_fresh()
        admitted = self._access.admit(headers.get("authorization"), wanted)
        return admitted if isinstance(admitted, Refusal) else None

    def _begin(self, headers: Headers) -> Refusal | None:
        """Let the request's time begin."""
        try:
            asked = deadlines.asked_for(headers)
        except ValueError as error:
            return refusal(400, "invalid-timeout", str(error), "say how long you wait as a number above 0")
        limit = self._limits.request_timeout_s
        deadlines.begin(limit if asked is None else min(asked, limit))
        return None

    async def _read_in_time(self, headers: Headers, receive: Receive, path: str) -> bytes | Refusal:
        """Read a body as long as the request has time; what has come already is read in any case."""
        try:
            async with asyncio.timeout(max(LEAST_READ_S, deadlines.left())):
                return await self._read(headers, receive, path)
        except TimeoutError:
            return refusal(408, "body-too-slow", "the body didn't come in the request's time", "try again")

    async def _read(self, headers: Headers, receive: Receive, path: str) -> bytes | Refusal:
        """Read a body that is not too large, of the type that the path takes."""
        media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        wanted = "multipart/form-data" if path in FORMS else "application/json"
        if media_type != wanted and not path.startswith(INFERENCE):
            shape = "a form with a file" if path in FORMS else "JSON"
            return refusal(
                415,
                "unsupported-media-type",
                f"the body is {media_type or 'of no declared type'}, not {wanted}",
                f"send {shape} with the header content-type: {wanted}",
            )
        body = bytearray()
        most = self._limits.max_body_bytes
        more = int(headers.get("content-length", "0")) <= most
        fits = more
        while more:
            message = await receive()
            body += message.get("body", b"")
            fits = len(body) <= most
            more = fits and message.get("more_body", False)
        if fits:
            too_deep = wanted == media_type == "application/json" and check_nesting(body, self._limits)
            return too_deep or bytes(body)
        return refusal(
            413,
            "body-too-large",
            f"the body is larger than {most} bytes",
            "send fewer or smaller inputs in one request",
        )


def needed(path: str) -> AccessScope | None:
    """What a token must be for, to ask this path; None if it tells nothing of the model."""
    infer = _INFER.fullmatch(path)
    if infer is None:
        return NEEDS.get(path)
    return next((scope for scope in SCOPES if scope == infer[1]), None)


def check_nesting(body: bytes | bytearray, limits: LimitsSpec) -> Refusal | None:
    """Refuse JSON whose arrays and objects lie too deep within each other, before it is parsed."""
    most = limits.max_nesting
    count = body.count(b"[") + body.count(b"{")
    if count <= most:
        return None
    if count > MOST_PARTS:
        message = f"the body has more than {MOST_PARTS} arrays and objects"
        return refusal(413, "too-many-parts", message, "see /docs for the request's shape")
    depth = 0
    for match in _JSON_MARKS.finditer(body):
        depth += _DEEPER.get(match[0], 0)
        if depth > most:
            message = f"the body's arrays and objects lie more than {most} deep in each other"
            return refusal(400, "nested-too-deep", message, "see /docs for the request's shape")
    return None


def _replay(body: bytes, receive: Receive) -> Receive:
    """Give the body that was read; after it, what else comes (a disconnect)."""
    pending = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return pending.pop() if pending else await receive()

    return replay
