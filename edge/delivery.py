"""Delivery of what waits in the queue: over HTTP whenever it answers, or to standard output.

At least once: a result is forgotten after it was taken, so one whose acknowledgement was lost is sent again,
with the same id.
"""

from __future__ import annotations

import http.client
import random
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeAlias

from ..workflows.errors import EaglerayError
from ..workflows.hosts import is_loopback
from .queue import ResultQueue

LINES = 100
"""Of a request, at most."""
TIMEOUT_S = 20.0
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 60.0
LOOK_EVERY_S = 0.1
TOO_LARGE = 413

Send: TypeAlias = Callable[[Sequence[str]], None]
"""Takes lines of JSON, and returns once they are someone else's to keep."""


class Undelivered(Exception):
    """Lines were not taken.

    Args:
        why: for people.
        wait_s: what the other side asks to be spared for.
        too_large: whether fewer might be taken.
    """

    def __init__(self, why: str, wait_s: float = 0.0, too_large: bool = False) -> None:
        super().__init__(why)
        self.wait_s, self.too_large = wait_s, too_large


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Another address would be asked with GET, and results would be lost."""

    def redirect_request(self, *given: object) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        return None


def post_to(url: str, token: str | None) -> Send:
    """Sends lines as the body of a POST (`application/x-ndjson`); any answer of 2xx takes them.

    Args:
        url: http:// or https://.
        token: for `Authorization: Bearer`.

    Raises:
        EaglerayError: when it isn't such a URL, or the token would cross a network in the clear.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise EaglerayError(f"{url} is no URL to deliver to", "write https://HOST/PATH", "--deliver")
    if token and parts.scheme == "http" and not is_loopback(parts.hostname):
        raise EaglerayError("the token would cross the network unencrypted", "use https", "--deliver")
    opener = urllib.request.build_opener(_NoRedirects)
    headers = {"content-type": "application/x-ndjson"} | (
        {"authorization": f"Bearer {token}"} if token else {}
    )

    def send(lines: Sequence[str]) -> None:
        body = "".join(f"{line}\n" for line in lines).encode()
        request = urllib.request.Request(url, body, headers, method="POST")
        try:
            with opener.open(request, timeout=TIMEOUT_S) as answer:
                answer.read()
        except urllib.error.HTTPError as error:
            _refused(error)
        except (OSError, http.client.HTTPException) as error:
            raise Undelivered(str(error)) from error

    return send


def _refused(error: urllib.error.HTTPError) -> NoReturn:
    asked = error.headers.get("retry-after", "")
    wait_s = min(float(asked), LONGEST_WAIT_S) if asked.isdecimal() else 0.0
    raise Undelivered(f"{error.code} {error.reason}", wait_s, error.code == TOO_LARGE) from error


class Delivery:
    """Sends what waits from a thread of its own, until it is ended.

    Args:
        queue: of the results.
        send: takes lines.
        say: is told when it begins to fail, and when it goes well again.
        broken: is called when it can't go on.

    Attributes:
        delivered: results that were taken.
        error: why it can't go on.
    """

    def __init__(
        self,
        queue: ResultQueue,
        send: Send,
        say: Callable[[str], None],
        broken: Callable[[], None] = lambda: None,
    ) -> None:
        self._queue, self._send, self._say, self._broken = queue, send, say, broken
        self._ending, self._failed = threading.Event(), False
        self._lines, self._wait_s = LINES, FIRST_WAIT_S
        self.delivered = 0
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._work, name="delivery", daemon=True)
        self._thread.start()

    def end(self, patience_s: float) -> None:
        """Try once more to deliver all that waits, for so long at most."""
        self._ending.set()
        self._thread.join(patience_s)

    def _work(self) -> None:
        try:
            while True:
                ending = self._ending.is_set()
                wait_s = self._once()
                if ending and wait_s > 0:  # nothing waits any longer, or it failed
                    return
                self._ending.wait(wait_s)
        except Exception as error:  # a queue that can't be read ends the process, not this thread alone
            self.error = error
            self._broken()

    def _once(self) -> float:
        """Deliver what waits; seconds until it is worth trying again."""
        waiting = self._queue.oldest(self._lines)
        if not waiting:
            return LOOK_EVERY_S
        try:
            self._send([one.line for one in waiting])
        except Undelivered as why:
            if why.too_large and len(waiting) > 1:
                self._lines = len(waiting) // 2
                return 0.0
            if not self._failed:
                self._say(f"results wait, since they can't be delivered: {why}")
            self._failed = True
            wait_s, self._wait_s = self._wait_s, min(2 * self._wait_s, LONGEST_WAIT_S)
            return max(why.wait_s, wait_s * random.uniform(0.5, 1.0))  # devices don't come back all at once
        self._queue.remove(waiting)
        self.delivered += len(waiting)
        if self._failed:
            self._say("results are delivered again")
        self._failed, self._wait_s, self._lines = False, FIRST_WAIT_S, LINES
        return 0.0
