"""Until when a request is to be answered, and whether that can be done.

Whoever asks may say how long they wait, in a header: `x-request-timeout-ms`, or `x-stainless-read-timeout`
(seconds), which OpenAI's clients send. What is to be done within a request knows its deadline by the context
that it runs in.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextvars import ContextVar

MILLISECONDS, SECONDS = "x-request-timeout-ms", "x-stainless-read-timeout"
_UNTIL: ContextVar[float] = ContextVar("until", default=math.inf)


def begin(seconds: float) -> None:
    """Give the request that begins so many seconds."""
    _UNTIL.set(time.monotonic() + seconds)


def tighten(seconds: float) -> None:
    """Give what is left of the request no more than so many seconds."""
    _UNTIL.set(min(_UNTIL.get(), time.monotonic() + seconds))


def left() -> float:
    """Seconds that the request still has; less than 0 once it is late."""
    return _UNTIL.get() - time.monotonic()


def asked_for(headers: Mapping[str, str]) -> float | None:
    """Seconds that whoever asks waits; None if they don't say.

    Raises:
        ValueError: when what they say is no time, with which header.
    """
    for name, unit in ((MILLISECONDS, 1e-3), (SECONDS, 1.0)):
        if name in headers:
            try:
                seconds = float(headers[name]) * unit
            except ValueError:
                seconds = math.nan
            if not seconds > 0:
                raise ValueError(f"{name} is {headers[name][:40]!r}")
            return seconds
    return None


class Outlook:
    """How long something takes that is asked for now, by how long it took lately.

    What is in hand is done side by side and in batches; how much of it is done in a second shows how fast
    that goes (Little's law, Operations Research 9(3), 1961), whatever it consists of.
    """

    def __init__(self) -> None:
        self._per_s: float | None = None

    def expect(self, in_hand: int) -> float:
        """Seconds until something is done that makes `in_hand` inputs with itself; 0 as long as none was."""
        return 0.0 if self._per_s is None else in_hand / self._per_s

    def saw(self, in_hand: int, seconds: float) -> None:
        """Learn from something that made `in_hand` inputs with itself when it came."""
        per_s = in_hand / max(seconds, 1e-6)
        self._per_s = per_s if self._per_s is None else self._per_s + 0.1 * (per_s - self._per_s)
