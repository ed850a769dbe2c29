"""Samples of requests and their answers, for whoever has asked to keep them. They hold what people sent."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import random
import re
import secrets
import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...workflows.filesystem import write_private
from .guard import MIRRORED, needed
from .problems import path_of
from .spec import SamplesSpec

_OURS = re.compile(r"\d{20}-[0-9a-f]{8}\.json(\.arriving)?")

_logger = logging.getLogger("ray.serve")


class Keep:
    """Keeps a share of the requests that the model is asked, and what it answers.

    It stands behind `Guard`, so that it sees only who may ask, and no body that is too large. Headers are not
    kept: a token is one.

    Args:
        app: what is asked.
        samples: where, and how many.
        bundle: digest of what answers.
    """

    def __init__(self, app: ASGIApp, samples: SamplesSpec, bundle: str) -> None:
        self._app, self._bundle = app, bundle
        self._share = samples.share
        self._folder = SampleFolder(samples)
        self._keeping: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI)."""
        path = path_of(scope) if scope["type"] == "http" else ""
        if MIRRORED in scope or needed(path) in (None, "watch") or random.random() >= self._share:
            await self._app(scope, receive, send)
            return
        asked, answered = bytearray(), bytearray()
        status = 0

        async def read() -> Message:
            message = await receive()
            asked.extend(message.get("body", b""))
            return message

        async def told(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])
            answered.extend(message.get("body", b""))
            await send(message)

        await self._app(scope, read, told)
        sample = {
            "time_s": time.time(),
            "path": path,
            "status": status,
            "bundle": self._bundle,
        }
        task = asyncio.create_task(self._keep(sample, bytes(asked), bytes(answered)))
        self._keeping.add(task)  # whoever asked doesn't wait for it
        task.add_done_callback(self._keeping.discard)

    async def _keep(self, sample: dict[str, Any], asked: bytes, answered: bytes) -> None:
        def write() -> None:
            content = {**sample, "request": _shown(asked), "answer": _shown(answered)}
            self._folder.add(content, sample["time_s"])

        try:
            await asyncio.to_thread(write)
        except OSError:
            _logger.exception("a sample could not be kept")


class SampleFolder:
    """A folder of samples that its owner alone may read; it never holds more than it may for long.

    Args:
        samples: which, and how much it may hold.
    """

    def __init__(self, samples: SamplesSpec) -> None:
        self._folder = Path(samples.folder)
        self._most, self._most_bytes = samples.most, samples.most_bytes

    def add(self, sample: dict[str, Any], time_s: float) -> None:
        """Write a sample of this time, and forget the oldest if there are too many."""
        content = json.dumps(sample, ensure_ascii=False).encode("utf-8", "replace")
        if len(content) > self._most_bytes:
            return
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if stat.S_IMODE(self._folder.stat().st_mode) & 0o077:
            raise PermissionError(f"others may read {self._folder}: chmod 700 it")
        name = f"{int(time_s * 1e9):020}-{secrets.token_hex(4)}"
        arriving = self._folder / f"{name}.json.arriving"
        write_private(arriving, content)
        arriving.rename(self._folder / f"{name}.json")
        self._forget()

    def _forget(self) -> None:
        """Delete the oldest until the rest is within bounds; other replicas may do the same."""
        found: list[tuple[Path, int]] = []
        for path in sorted(self._folder.iterdir(), reverse=True):
            if _OURS.fullmatch(path.name):
                with suppress(FileNotFoundError):
                    found.append((path, path.stat().st_size))
        total = 0
        for count, (path, size) in enumerate(found, 1):
            total += size
            if count > self._most or total > self._most_bytes:
                path.unlink(missing_ok=True)


def _shown(body: bytes) -> Any:  # noqa: ANN401 - any JSON value
    """A body as JSON has it: as it is if it is JSON, as a text, or as base64."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        pass
    try:
        return body.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(body).decode()}
