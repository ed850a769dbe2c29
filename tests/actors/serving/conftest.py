"""A bundle that a real Ray Serve serves, for all tests of its interfaces."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from eagleray.actors.serving.spec import ServingOptions

NAME = "frogs"


@pytest.fixture(scope="session")
def frogs(ray_cluster: None, bundle_folder: Path) -> Iterator[str]:
    """The URL of an application, gone once another module starts Serve anew."""
    from ray import serve

    from eagleray.actors.serving import running

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    yield running.deploy(bundle_folder, ServingOptions(application=NAME, port=port, max_batch_size=4)).url
    serve.shutdown()


@pytest.fixture
def http(frogs: str) -> Iterator[httpx.Client]:
    """A client of it."""
    with httpx.Client(base_url=frogs, trust_env=False, timeout=30) as client:
        yield client
