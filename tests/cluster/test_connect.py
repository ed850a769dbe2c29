"""An address where no cluster answers is said at once, and why."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from eagleray.cluster.connect import connect
from eagleray.workflows.errors import EaglerayError


@pytest.fixture
def web_server() -> Iterator[str]:
    """What speaks HTTP/1, as Ray's dashboard does."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            stream, _ = listener.accept()
            with stream:
                stream.recv(1000)
                stream.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def refusal(address: str, home: Path) -> str:
    began = time.monotonic()
    with pytest.raises(EaglerayError) as error, connect(address, home, 1, lambda _: None):
        pass
    assert time.monotonic() - began < 10
    assert error.value.remedy
    return str(error.value)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "[::1]:1", "nowhere.invalid:6379"])
def test_where_nothing_answers_is_said_at_once(tmp_path: Path, address: str) -> None:
    assert f"no Ray cluster answers at {address}" in refusal(address, tmp_path)


@pytest.mark.parametrize(
    "address", ["", "localhost", ":6379", "host:", "host:port", "http://127.0.0.1:8265", "host:99999999"]
)
def test_what_is_no_address_is_said(tmp_path: Path, address: str) -> None:
    assert "Ray" in refusal(address, tmp_path)


def test_the_dashboards_port_is_told_from_the_heads(tmp_path: Path, web_server: str) -> None:
    said = refusal(web_server, tmp_path)
    assert "no Ray head" in said
    assert "eagleray submit" in said
