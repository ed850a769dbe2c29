"""A server that takes results, and may be down, or refuse."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Receiver:
    """Listens on one port whenever it is up.

    Attributes:
        results: that were taken, in order.
        requests: how many came.
        answers: statuses (and headers) of the next requests; 204 after them.
        after: called once results were taken and before that is said.
    """

    def __init__(self) -> None:
        self.results: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.sizes: list[int] = []
        self.answers: list[tuple[int, dict[str, str]]] = []
        self.after = lambda: None
        self._server: ThreadingHTTPServer | None = None
        self.up()
        self.port = self._server.server_port
        self.down()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/results"

    def up(self) -> None:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                lines = [json.loads(line) for line in body.splitlines()]
                receiver.headers.append({name.lower(): value for name, value in self.headers.items()})
                receiver.sizes.append(len(lines))
                status, headers = receiver.answers.pop(0) if receiver.answers else (204, {})
                if status < 300:
                    receiver.results += lines
                    receiver.after()
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *given: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", getattr(self, "port", 0)), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def down(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def wait(self, count: int, timeout_s: float = 60.0) -> None:
        """Until so many different results are there."""
        until = time.monotonic() + timeout_s
        while len({one["id"] for one in self.results}) < count:
            assert time.monotonic() < until, f"{len(self.results)} of {count} results came"
            time.sleep(0.02)
