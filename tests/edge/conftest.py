"""A bundle, a receiver of results, and a device's command as a process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from edge_bundles import write_bundle
from receiver import Receiver

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle; read only."""
    return write_bundle(tmp_path_factory.mktemp("edge") / "bundle")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A server that takes results, once it is up."""
    server = Receiver()
    yield server
    server.down()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts `eagleray edge …`; whatever runs in the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def begin(*words: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "eagleray.cli", "edge", *(str(word) for word in words)]
        environment = os.environ | {"EAGLERAY_DEVICE": str(tmp_path / "device")}
        started.append(
            subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
            )
        )
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()
