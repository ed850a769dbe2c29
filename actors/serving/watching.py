"""What stands around everything else of the HTTP interface: it counts and times requests, and traces them."""

from __future__ import annotations

import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from . import tracing
from .guard import BUNDLE_HEADER, MIRRORED, NEEDS, needed
from .measuring import Requests
from .problems import REFUSAL_HEADER, path_of
from .spec import TracesSpec

GONE = 499
"""Status of a request whose sender went away, as other servers count it; it isn't sent to anyone."""


class Watch:
    """Counts, times and traces each request, by what its answer says of itself.

    Args:
        app: what it watches.
        traces: where spans are told; None for nowhere.
        application: name of what is served.
    """

    def __init__(self, app: ASGIApp, traces: TracesSpec | None, application: str) -> None:
        self._app = app
        self._traces, self._application = traces, application
        self._requests = Requests()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI)."""
        if scope["type"] != "http" or MIRRORED in scope:  # nobody asked, and nobody is answered
            await self._app(scope, receive, send)
            return
        begun, ended = time.monotonic(), None
        status, code, bundle = GONE, "", ""
        trace = None

        async def noted(message: Message) -> None:
            nonlocal status, code, bundle, ended
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                status = int(message["status"])
                code, bundle = headers.get(REFUSAL_HEADER, ""), headers.get(BUNDLE_HEADER, "")
                if trace is not None:
                    headers[tracing.TRACE_HEADER] = trace.name
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                ended = time.monotonic()

        with tracing.request(scope["method"], Headers(scope=scope), self._traces, self._application) as span:
            trace = tracing.current()
            try:
                await self._app(scope, receive, noted)
            finally:
                route = route_of(scope)
                self._requests.add(route, status, code, bundle, (ended or time.monotonic()) - begun)
                span.update_name(f"{scope['method']} {route}")
                span.set_attributes({"http.route": route, "http.response.status_code": status})
                span.set_attributes({"eagleray.bundle": bundle, "eagleray.code": code})
                if status >= 500:
                    span.set_status(tracing.FAILED)


def route_of(scope: Scope) -> str:
    """The path of a request as it is declared; `other` for any that isn't."""
    route = scope.get("route")
    if route is not None:
        return str(route.path)
    path = path_of(scope)  # refused before its route was looked for
    if path in NEEDS:
        return path
    return "other" if needed(path) is None else "/v2/models/{name}/infer"
