"""Bundles beside the live one: a replica opens one when it is asked for, and has room for a few."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Generic

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from .lanes import Lane, LineT
from .messages import Refusal, refusal
from .problems import path_of, respond
from .releases import Release

_PREFIX = re.compile(r"/models(?:/([^/]*))?(?=/|$)")
_logger = logging.getLogger("ray.serve")


class Shelf(Generic[LineT]):
    """An ASGI application over bundles by name, each below /models/NAME.

    What was asked for the longest ago goes when there is no room; it ends what it has begun before another is
    opened, so that memory is bounded.

    Args:
        open_line: opens a bundle, in a thread.
        room: how many are open at the most.
        may_open: whether whoever asks with such headers may have one opened.
    """

    def __init__(
        self,
        open_line: Callable[[Release], LineT],
        room: int,
        may_open: Callable[[Headers], Awaitable[bool]],
    ) -> None:
        self._open_line, self._room, self._may_open = open_line, room, may_open
        self._releases: Mapping[str, Release] = {}
        self._lanes: dict[str, Lane[LineT]] = {}  # the latest asked for comes last
        self._opening = asyncio.Lock()

    @property
    def lines(self) -> list[LineT]:
        """Those that are open."""
        return [lane.line for lane in self._lanes.values()]

    async def put(self, releases: Mapping[str, Release]) -> None:
        """Have these from now on, by name."""
        self._releases = dict(releases)
        async with self._opening:
            gone = [name for name, lane in self._lanes.items() if not self._is_listed(name, lane.line)]
            await asyncio.gather(*(self._lanes.pop(name).drain() for name in gone))

    def named(self, path: str) -> str | None:
        """Which bundle a path is for, whether there is one or not: "" for all, None for the live one."""
        found = _PREFIX.match(path)
        return (found[1] or "") if found else None

    async def serve(self, name: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer from a bundle, which is opened first if it isn't open; "" tells which there are."""
        if not name:
            told = {
                one: {"bundle": release.bundle, "open": one in self._lanes}
                for one, release in self._releases.items()
            }
            await JSONResponse({"models": told})(scope, receive, send)
            return
        below = {**scope, "root_path": f"{scope.get('root_path', '')}/models/{name}"}
        lane = self._lanes.pop(name, None)
        if lane is None:
            found = await self._opened(name, Headers(scope=scope))
            if isinstance(found, Refusal):
                await respond(found, path_of(below))(below, receive, send)
                return
            lane = found
        else:
            self._lanes[name] = lane
        await lane.serve(below, receive, send)

    async def _opened(self, name: str, headers: Headers) -> Lane[LineT] | Refusal:
        """Open one if nobody else did meanwhile; one at a time."""
        if name not in self._releases:
            return _unknown(name)
        if not await self._may_open(headers):
            return refusal(401, "not-open", f"{name} isn't open yet", "ask it something, with a token")
        async with self._opening:
            lane = self._lanes.pop(name, None)
            release = self._releases.get(name)
            if lane is None and release is not None:
                while len(self._lanes) >= self._room:
                    await self._lanes.pop(next(iter(self._lanes))).drain()
                try:
                    lane = Lane(await asyncio.to_thread(self._open_line, release))
                except Exception:
                    _logger.exception("the bundle %s can't be opened", name)
                    return refusal(
                        503,
                        "not-opened",
                        f"the bundle {name} can't be opened",
                        "look at the replica's log",
                        retry_after_s=30,
                    )
            if lane is None or not self._is_listed(name, lane.line):
                if lane is not None:
                    lane.line.close()
                return _unknown(name)
            self._lanes[name] = lane
            return lane

    def _is_listed(self, name: str, line: LineT) -> bool:
        release = self._releases.get(name)
        return release is not None and release.bundle == line.bundle


def _unknown(name: str) -> Refusal:
    return refusal(404, "unknown-model", f"no model {name[:80]!r} is served", "GET /models lists them")
