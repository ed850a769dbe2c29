"""Whatever is sent, the service answers with a client's error or a result, goes on, and doesn't grow."""

from __future__ import annotations

import base64
import io
import json
import random
import struct
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from PIL import Image
from requests import Session
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from ...pipelines.conftest import sound
from .conftest import NAME

MORE_MIB = 150
"""By which a replica may grow meanwhile."""
CHECKS = [
    schemathesis.checks.not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


def replica() -> Path:
    """The process of the application's replica."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cmdline").read_bytes().startswith(f"ray::ServeReplica:{NAME}:Model".encode()):
                return process
        except OSError:
            continue
    raise AssertionError("there is no replica")


def mib(process: Path) -> float:
    lines = (process / "status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def mutate(data: bytes, draw: random.Random) -> bytes:
    """Bytes that were damaged in one of the ways in which files are."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 8, 40))):
        place = draw.randrange(max(1, len(changed)))
        kind = draw.randrange(6)
        if kind == 0:
            changed[place : place + 1] = bytes([draw.randrange(256)])
        elif kind == 1:
            del changed[place:]
        elif kind == 2:
            changed[place : place + 4] = struct.pack(">I", draw.choice((0, 1, 2**31 - 1, 2**31, 2**32 - 1)))
        elif kind == 3:
            changed[place:place] = bytes(draw.randrange(256) for _ in range(draw.randrange(1, 64)))
        elif kind == 4:
            changed[place:place] = changed[draw.randrange(max(1, len(changed))) :][:512]
        else:
            del changed[place : place + draw.randrange(1, 64)]
    return bytes(changed)


def pictures() -> list[bytes]:
    picture = Image.effect_noise((48, 32), 90).convert("RGBA")
    found: list[bytes] = []
    for name in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"):
        buffer = io.BytesIO()
        picture.convert("RGB" if name in ("JPEG", "BMP") else "RGBA").save(buffer, name)
        found.append(buffer.getvalue())
    found.append(b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><path d="M0 0h9v9z"/></svg>')
    return found


def requests(count: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Paths, and what is sent to them: a third damaged pictures, a third sounds, a third bodies."""
    draw = random.Random(count)
    shown = pictures()
    heard = [sound(330, 0.2, kind) for kind in ("WAV", "FLAC", "OGG")]
    question = {"question": "What is it?", "image": base64.b64encode(shown[0]).decode()}
    chat = {"model": NAME, "messages": [{"role": "user", "content": [{"type": "text", "text": "What?"}]}]}
    tensor = {"name": "TEXT", "shape": [1], "datatype": "BYTES", "data": ["A frog."]}
    bodies = (
        ("/v1/answer", question),
        ("/v1/search", {"text": "A frog.", "top_k": 3}),
        ("/v1/embed", {"inputs": [{"text": "A frog."}, {"speech": base64.b64encode(heard[0]).decode()}]}),
        ("/v1/embeddings", {"model": NAME, "input": ["A frog.", "A boat."], "encoding_format": "base64"}),
        ("/v1/chat/completions", chat),
        ("/v2/models/embed/infer", {"inputs": [tensor]}),
    )
    as_json = {"content-type": "application/json"}

    def one_input(name: str, data: bytes) -> tuple[str, dict[str, Any]]:
        return "/v1/embed", {"json": {"inputs": [{name: base64.b64encode(mutate(data, draw)).decode()}]}}

    for i in range(count):
        if i % 3 == 0:
            yield one_input("image", draw.choice(shown))
        elif i % 3 == 1 and draw.random() < 0.5:
            yield one_input("speech", draw.choice(heard))
        elif i % 3 == 1:
            file = ("a.wav", mutate(draw.choice(heard), draw))
            yield "/v1/audio/transcriptions", {"files": {"file": file}, "data": {"model": NAME}}
        else:
            path, body = draw.choice(bodies)
            yield path, {"content": mutate(json.dumps(body).encode(), draw), "headers": as_json}


@pytest.mark.parametrize("count", [450, pytest.param(10_000, marks=pytest.mark.nightly)])
def test_damaged_pictures_sounds_and_bodies_are_refused_and_harm_nobody(frogs: str, count: int) -> None:
    process = replica()
    with httpx.Client(base_url=frogs, trust_env=False, timeout=60) as client:

        def ask(request: tuple[str, dict[str, Any]]) -> tuple[int, str]:
            path, sent = request
            response = client.post(path, **sent)
            return response.status_code, f"{path} {response.text[:300]}"

        with ThreadPoolExecutor(4) as threads:
            warm = list(threads.map(ask, requests(60)))
            before = mib(process)
            found = warm + list(threads.map(ask, requests(count)))
        assert client.post("/v1/search", json={"text": "A frog."}).status_code == 200
    wrong = [said for status, said in found if status >= 500]
    assert not wrong, wrong[:3]
    assert Counter(status for status, _ in found)[200] < len(found)
    assert replica() == process
    assert mib(process) < before + MORE_MIB


def test_every_route_answers_as_its_description_says(frogs: str) -> None:
    session = Session()
    session.trust_env = False  # this machine needs no proxy
    routes = [one.ok() for one in schemathesis.openapi.from_url(f"{frogs}/openapi.json").get_all_operations()]
    assert {"/v1/answer", "/v1/chat/completions", "/v2/models/{name}/infer"} <= {one.path for one in routes}
    for route in routes:

        @settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        @given(case=route.as_strategy())
        def check(case: Any) -> None:
            case.call_and_validate(checks=CHECKS, session=session)

        check()
