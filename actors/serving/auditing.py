"""Who asked for what and when: a line of JSON for each request to the model, without anything of its content.

A request of which no line can be written is one that nobody can account for later, so while the folder can't
be written, requests are refused. Lines are written by a thread: a slow disk holds up no answer.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...workflows.errors import EaglerayError
from .guard import MIRRORED, needed
from .messages import refusal
from .problems import REFUSAL_HEADER, path_of, respond
from .tokens import Access

REQUEST_ID = "x-request-id"
LONGEST_ID = 200
"""Characters of a request's id that are kept; a client may choose it."""
MAX_FILE_BYTES = 64 * 2**20
MOST_WAITING, MOST_LEFT_BYTES = 10_000, 1 << 22
UNAVAILABLE = "audit-unavailable"
"""Lines that may wait for the disk before requests are refused."""
RETRIES_EVERY_S = 1.0


class AuditLog:
    """An append-only file of lines, for its owner alone; a new one each day (UTC), and when one is large.

    Args:
        folder: of the files; is made.
        max_file_bytes: of a file, about.
        clock: seconds since the epoch.

    Raises:
        EaglerayError: when the folder can't be written.
    """

    def __init__(
        self, folder: Path, max_file_bytes: int = MAX_FILE_BYTES, clock: Callable[[], float] = time.time
    ) -> None:
        self._folder = folder
        self._max_file_bytes = max_file_bytes
        self._clock = clock
        self._waiting: deque[bytes] = deque()
        self._changed = threading.Condition()
        self._left, self._dropped = b"", 0
        self._closing = False
        self._problem = ""
        self._file = -1
        self._day = ""
        try:
            self._open()
        except OSError as error:
            raise EaglerayError(
                f"the audit log can't be written: {error.strerror}",
                "give a folder that the service's user may write, or serve without one",
                str(folder),
            ) from None
        self._thread = threading.Thread(target=self._work, name="audit", daemon=True)
        self._thread.start()

    @property
    def problem(self) -> str:
        """Why no request may be admitted now; empty if one may."""
        if self._problem:
            return self._problem
        return "the disk is too slow" if len(self._waiting) >= MOST_WAITING else ""

    def write(self, line: dict[str, Any]) -> None:
        """Have a line written soon."""
        with self._changed:
            if self._problem and len(self._left) > MOST_LEFT_BYTES:
                self._dropped += 1
                return
            self._waiting.append(json.dumps(line, ensure_ascii=False).encode() + b"\n")
            self._changed.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Wait until all lines are written; whether they are."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and not self._left, timeout_s)

    def close(self) -> None:
        """Write what can be written, and end."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(RETRIES_EVERY_S)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._left or self._closing)
                if self._closing and not self._waiting:
                    return
                self._left += b"".join(self._waiting)
                self._waiting.clear()
            try:
                while self._left:
                    self._left = self._left[self._append(self._left) :]
                self._problem = ""
                if self._dropped:
                    self._left = json.dumps({"refused": UNAVAILABLE, "more": self._dropped}).encode() + b"\n"
                    self._dropped = 0
            except OSError as error:
                self._problem = error.strerror or str(error)
                time.sleep(RETRIES_EVERY_S)
            with self._changed:
                self._changed.notify_all()

    def _append(self, lines: bytes) -> int:
        """Write some of the lines, whole or in part; gives how many bytes."""
        about = os.fstat(self._file)
        if about.st_nlink == 0 or about.st_size >= self._max_file_bytes or self._day != self._today():
            self._open()  # of one that someone deleted, nobody would find the lines
        return os.write(self._file, lines)

    def _open(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._day = self._today()
        for number in range(1, 1_000_000):
            path = self._folder / f"{self._day}-{socket.gethostname()}-{os.getpid()}-{number}.jsonl"
            with suppress(FileExistsError):
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                opened = os.open(path, flags, 0o600)
                if self._file >= 0:
                    os.close(self._file)
                self._file = opened
                return

    def _today(self) -> str:
        return datetime.fromtimestamp(self._clock(), UTC).strftime("%Y-%m-%d")


class Auditor:
    """Tells the log of every request to the model, however it ends; refuses it if the log can't be written.

    Args:
        app: what is asked.
        log: takes the lines.
        access: knows whose a token is; None where none are asked for.
        bundle: digest of what answers.
    """

    def __init__(self, app: ASGIApp, log: AuditLog, access: Access | None, bundle: str) -> None:
        self._app = app
        self._log = log
        self._access = access
        self._bundle = bundle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI)."""
        path = path_of(scope) if scope["type"] == "http" else ""
        if needed(path) is None or MIRRORED in scope:  # of that one, nobody is answered
            await self._app(scope, receive, send)
            return
        began, problem = time.monotonic(), self._log.problem
        headers = Headers(scope=scope)
        line: dict[str, Any] = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "request": headers.get(REQUEST_ID, str(uuid.uuid4()))[:LONGEST_ID],
            "token": None,
            "name": None,
            "path": path,
            "status": None,
            "refused": None,
            "bundle": self._bundle,
            "ms": 0.0,
            "bytes_in": 0,
            "bytes_out": 0,
        }

        async def counting_receive() -> Message:
            message = await receive()
            line["bytes_in"] += len(message.get("body", b""))
            return message

        async def counting_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                line["status"] = message["status"]
                line["refused"] = Headers(raw=message["headers"]).get(REFUSAL_HEADER)
            line["bytes_out"] += len(message.get("body", b""))
            await send(message)

        try:
            if problem:
                refused = refusal(
                    503,
                    UNAVAILABLE,
                    "the service can't write its audit log",
                    "try again later",
                    retry_after_s=1,
                )
                await respond(refused, path)(scope, counting_receive, counting_send)
            else:
                await self._app(scope, counting_receive, counting_send)
        finally:
            token = self._access and self._access.known(headers.get("authorization"))
            if token:
                line["token"], line["name"] = token.id, token.name
            line["ms"] = round((time.monotonic() - began) * 1000, 1)
            self._log.write(line)
