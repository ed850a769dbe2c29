"""A bundle that answers, with what it has begun: it is let go once that is done."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send

DRAIN_POLL_S = 0.05


class Line(Protocol):
    """A bundle in memory, with all that answers from it."""

    bundle: str
    api: ASGIApp

    def close(self) -> None:
        """Let go of it."""
        ...


LineT = TypeVar("LineT", bound=Line)


@dataclass(eq=False)
class Lane(Generic[LineT]):
    """A line, and how many requests it has in hand."""

    line: LineT
    in_hand: int = 0

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> int:
        """Answer (ASGI); the status, 0 if there is none."""
        statuses: list[int] = []

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])
            await send(message)

        self.in_hand += 1
        try:
            await self.line.api(scope, receive, watched)
        finally:
            self.in_hand -= 1
        return statuses[0] if statuses else 0

    async def drain(self) -> None:
        """Wait for what is in hand, and close; nothing more may come."""
        while self.in_hand:
            await asyncio.sleep(DRAIN_POLL_S)
        self.line.close()
