"""Which of a replica's bundles answers a request: the live one, or the one that is tried beside it.

Each bundle has an HTTP interface of its own; what it answers names it in a header. A bundle that is replaced
is kept until the last request that it has begun is answered.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from .guard import BUNDLE_HEADER, MIRRORED, needed
from .lanes import Lane, Line
from .messages import refusal
from .multiplexing import Shelf
from .problems import path_of, respond
from .releases import Trial

NOT_MIRRORED = frozenset({401, 403, 408, 429, 503})
"""Statuses of what wasn't admitted."""
LEAST_PREFIX = 8


@dataclass(frozen=True)
class Tally:
    """How a bundle did on requests to the model.

    Attributes:
        answered: requests.
        failed: of them, with a status of 500 and above that doesn't say that there is too much to do.
    """

    answered: int = 0
    failed: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.answered + other.answered, self.failed + other.failed)


class Switch:
    """An ASGI application over some lines.

    Args:
        shelf: bundles that are asked for by name; None where there are none.
        draw: gives numbers from 0 to 1, of which a share goes to the candidate.
    """

    def __init__(self, shelf: Shelf[Any] | None = None, draw: Callable[[], float] = random.random) -> None:
        self._shelf, self._draw = shelf, draw
        self._lanes: dict[str, Lane[Line]] = {}
        self._tallies: dict[str, Tally] = {}
        self._live = ""
        self._candidate: str | None = None
        self._trial: Trial | None = None
        self._beside: set[asyncio.Task[None]] = set()

    @property
    def bundles(self) -> frozenset[str]:
        """Digests of those that answer."""
        return frozenset(self._lanes)

    @property
    def live(self) -> Line:
        """The one that answers."""
        return self._lanes[self._live].line

    @property
    def tallies(self) -> dict[str, Tally]:
        """Digest → how it did on requests that didn't ask for it by name, since `turn`."""
        return {name: self._tallies.get(name, Tally()) for name in self._lanes}

    def turn(self, live: Line, candidate: Line | None, trial: Trial | None) -> None:
        """Let the next requests go to these; what goes on with others ends there."""
        lines = [live] if candidate is None else [live, candidate]
        lanes = {line.bundle: self._lanes.get(line.bundle) or Lane(line) for line in lines}
        gone = [lane for name, lane in self._lanes.items() if name not in lanes]
        self._lanes, self._live, self._trial = lanes, live.bundle, trial
        self._candidate = None if candidate is None else candidate.bundle
        self._tallies = {}
        for lane in gone:
            self._keep(lane.drain())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI)."""
        if scope["type"] == "lifespan":
            await _live_and_die(receive, send)
            return
        if scope["type"] != "http":
            await self.live.api(scope, receive, send)
            return
        path = path_of(scope)
        name = self._shelf.named(path) if self._shelf else None
        if self._shelf and name is not None:
            await self._shelf.serve(name, scope, receive, send)
            return
        asked = Headers(scope=scope).get(BUNDLE_HEADER)
        lane = self._lanes[self._live] if asked is None else self._find(asked)
        if lane is None:
            message = f"{BUNDLE_HEADER} names no bundle that is served: {(asked or '')[:80]}"
            await respond(refusal(404, "unknown-bundle", message, "leave the header out"), path)(
                scope, receive, send
            )
            return
        is_tried = self._trial is not None and asked is None and needed(path) is not None
        other = self._lanes[self._candidate] if is_tried and self._candidate is not None else None
        if other is None or self._trial is None or self._draw() >= self._trial.share:
            await self._serve(lane, scope, receive, send)
        elif self._trial.mode == "split":
            await self._serve(other, scope, receive, send)
        else:
            heard: list[Message] = []

            async def listening() -> Message:
                message = await receive()
                if message["type"] == "http.request":
                    heard.append(message)
                return message

            before = dict(scope)
            status = await self._serve(lane, scope, listening, send)
            is_whole = bool(heard) and not heard[-1].get("more_body", False)
            is_there = self._lanes.get(other.line.bundle) is other  # the trial may have ended
            if is_whole and is_there and status not in NOT_MIRRORED:
                self._keep(self._mirror(other, before, heard))

    def _find(self, digest: str) -> Lane[Line] | None:
        """The lane whose bundle's digest begins so."""
        found = [lane for name, lane in self._lanes.items() if name.startswith(digest)]
        return found[0] if len(found) == 1 and len(digest) >= LEAST_PREFIX else None

    async def _serve(self, lane: Lane[Line], scope: Scope, receive: Receive, send: Send) -> int:
        """Answer, and count it; the status, 0 if there is none."""
        status = await lane.serve(scope, receive, send)
        is_asked_by_name = BUNDLE_HEADER in Headers(scope=scope)  # as golden requests are
        if status and needed(path_of(scope)) is not None and not is_asked_by_name:
            busy = (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT)
            failed = status >= HTTPStatus.INTERNAL_SERVER_ERROR and status not in busy
            tally = self._tallies.get(lane.line.bundle, Tally())
            self._tallies[lane.line.bundle] = tally + Tally(1, int(failed))
        return status

    async def _mirror(self, lane: Lane[Line], scope: Scope, heard: list[Message]) -> None:
        """Ask the same again, and forget the answer."""
        pending = heard[::-1]

        async def receive() -> Message:
            if pending:
                return pending.pop()
            await asyncio.Event().wait()  # nobody goes away
            raise AssertionError

        async def send(message: Message) -> None: ...

        await self._serve(lane, {**scope, MIRRORED: True}, receive, send)

    def _keep(self, work: Coroutine[None, None, None]) -> None:
        """Let something go on beside; a task that nobody holds may be forgotten."""
        task = asyncio.get_running_loop().create_task(work)
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)


async def _live_and_die(receive: Receive, send: Send) -> None:
    """Say that what a lifespan asks for is done: there is nothing to do."""
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return
