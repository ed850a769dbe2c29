"""A bundle that a real Ray Serve serves, for all tests of its interfaces."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from eagleray.actors.serving.spec import ServingOptions

if TYPE_CHECKING:
    from eagleray.actors.serving.running import Deployed

NAME = "frogs"


@pytest.fixture(scope="session")
def served_frogs(ray_cluster: None, bundle_folder: Path) -> Iterator[Deployed]:
    """An application, gone once another module starts Serve anew."""
    from ray import serve

    from eagleray.actors.serving import running

    with socket.socket() as probe, socket.socket() as other:
        probe.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        port, grpc_port = int(probe.getsockname()[1]), int(other.getsockname()[1])
    yield running.deploy(
        bundle_folder,
        ServingOptions(application=NAME, port=port, grpc_port=grpc_port, max_batch_size=4),
    )
    serve.shutdown()


@pytest.fixture(scope="session")
def frogs(served_frogs: Deployed) -> str:
    """Its URL."""
    return served_frogs.url


@pytest.fixture
def http(frogs: str) -> Iterator[httpx.Client]:
    """A client of it."""
    with httpx.Client(base_url=frogs, trust_env=False, timeout=30) as client:
        yield client


@pytest.fixture(scope="session")
def other_address() -> str:
    """An address of this machine that others may reach it by."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing; tells which address that would go from
        except OSError:
            pytest.skip("this machine has no network")
        address = str(probe.getsockname()[0])
    if address.startswith("127."):
        pytest.skip("this machine has no network")
    return address
