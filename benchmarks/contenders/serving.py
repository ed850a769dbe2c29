"""What serving contenders share: the request, the load, and the model as a peer would call it.

Run as a program it loads a server that listens already: serving.py PORT BUNDLE.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

QUESTION = "What colour is the frog?"
SIDE, SECONDS, RATE = 500, 2.4, 44_100
"""Of the picture, pixels, and of the speech, Hertz: what Tux Paint's stamps have."""
ALONE_S, STEADY_S, WARM_S, FULL_S = 8, 25, 20, 12
PER_S, CLIENTS = 4, 32
READY_S = 120


def body() -> bytes:
    """A picture, speech and a question, as JSON."""
    import soundfile
    from PIL import Image, ImageDraw

    picture = Image.new("RGBA", (SIDE, SIDE), (255, 255, 255, 0))
    draw = ImageDraw.Draw(picture)
    random = np.random.default_rng(0)
    for _ in range(400):
        x, y, r = (int(one) for one in random.integers(0, SIDE, 3))
        colour = tuple(int(one) for one in random.integers(0, 255, 3))
        draw.ellipse((x, y, x + r // 6, y + r // 6), fill=(*colour, 255))
    png, ogg = io.BytesIO(), io.BytesIO()
    picture.save(png, "PNG")
    t = np.arange(int(SECONDS * RATE)) / RATE
    wave = np.sin(2 * np.pi * (180 + 40 * np.sin(5 * t)) * t) * (0.3 + 0.2 * np.sin(9 * t))
    soundfile.write(ogg, wave + 0.01 * random.standard_normal(len(t)), RATE, format="OGG", subtype="VORBIS")
    sent = {"question": QUESTION}
    for name, data in (("image", png), ("speech", ogg)):
        sent[name] = base64.b64encode(data.getvalue()).decode()
    return json.dumps(sent).encode()


class Whole:
    """The model in one process: what a peer's handler calls.

    Args:
        folder: the bundle.
    """

    def __init__(self, folder: str) -> None:
        from eagleray.pipelines.bundle import load_bundle

        self.bundle = load_bundle(Path(folder))
        warm = self.prepare(json.loads(body()))
        for rows in (1, 16):
            self.answer([warm] * rows)

    def prepare(self, sent: Mapping[str, str]) -> dict[str, Any]:
        """Decode a request."""
        bundle = self.bundle
        rows: dict[str, Any] = {"text": bundle.prepare_text(sent["question"])}
        rows["image"] = bundle.prepare_image(base64.b64decode(sent["image"]))
        rows["speech"] = bundle.prepare_speech(base64.b64decode(sent["speech"]))
        return {"rows": rows, "kind": bundle.decoding.question_type(sent["question"])}

    def answer(self, prepared: Sequence[Mapping[str, Any]]) -> list[str]:
        """Answer a batch."""
        from eagleray.actors.serving.decoding import AnswerBatch, Sampling

        encoded: dict[str, Any] = {
            modality: self.bundle.encode(modality, [one["rows"][modality] for one in prepared])
            for modality in ("image", "text", "speech")
        }
        parts: list[Any] = [{name: rows[i] for name, rows in encoded.items()} for i in range(len(prepared))]
        evidence = self.bundle.gather(parts, [one["kind"] for one in prepared])
        batch = AnswerBatch(self.bundle)
        answers = batch.join(evidence, [Sampling(batch.max_tokens)] * len(prepared))
        while batch.answers:
            batch.step()
        return [one.text.strip() for one in answers]


def contend(command: Sequence[str], ready: str, environment: Mapping[str, str] = {}) -> None:
    """Start a server in a session of its own, load it, end it, and print what was found.

    Args:
        command: of the server; PORT in it is replaced by a free one.
        ready: path that answers once it is ready.
        environment: beside this process's.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    server = subprocess.Popen(
        [one.replace("PORT", port) for one in command],
        env={**os.environ, **environment, "PORT": port},
        stdout=sys.stderr,
        start_new_session=True,
    )
    try:
        wait(f"http://127.0.0.1:{port}{ready}", server)
        load = [sys.executable, __file__, port]
        loaded = {**os.environ, **environment}
        done = subprocess.run(load, stdout=subprocess.PIPE, text=True, check=True, env=loaded)
        print(done.stdout.strip().splitlines()[-1])
    finally:
        os.killpg(server.pid, signal.SIGINT)
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)


def wait(url: str, server: subprocess.Popen[bytes]) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    until = time.monotonic() + READY_S
    while time.monotonic() < until and server.poll() is None:
        try:
            with opener.open(url, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise RuntimeError(f"{url} did not answer within {READY_S} s")


async def load(port: str) -> dict[str, float]:
    """Alone, at a steady rate, and with many clients: milliseconds and answers a second."""
    import aiohttp

    url, sent = f"http://127.0.0.1:{port}/v1/answer", body()
    if "WRAP" in os.environ:  # as a list of one, by that name
        sent = json.dumps({os.environ["WRAP"]: [json.loads(sent)]}).encode()
    headers = {"content-type": "application/json"}
    took: list[float] = []

    async with aiohttp.ClientSession() as session:

        async def ask() -> None:
            begun = time.perf_counter()
            async with session.post(url, data=sent, headers=headers) as response:
                answer = await response.read()
                assert response.status == 200, answer
            took.append(1e3 * (time.perf_counter() - begun))

        async def client(seconds: float) -> None:
            until = time.perf_counter() + seconds
            while time.perf_counter() < until:
                await ask()

        def percentile(share: float) -> float:
            return float(np.percentile(took, share))

        await client(2)
        took.clear()
        await client(ALONE_S)
        found = {"p50_alone_ms": percentile(50), "p99_alone_ms": percentile(99)}
        took.clear()
        random = np.random.default_rng(0)
        asked: list[asyncio.Task[None]] = []
        begun, at = time.perf_counter(), 0.0
        while at < STEADY_S:  # arrivals as of people who know nothing of each other
            await asyncio.sleep(max(0.0, begun + at - time.perf_counter()))
            asked.append(asyncio.create_task(ask()))
            at += random.exponential(1 / PER_S)
        await asyncio.gather(*asked)
        found |= {"p50_steady_ms": percentile(50), "p99_steady_ms": percentile(99)}
        await asyncio.gather(*(client(WARM_S) for _ in range(CLIENTS)))
        took.clear()
        begun = time.perf_counter()
        await asyncio.gather(*(client(FULL_S) for _ in range(CLIENTS)))
        found["answers_per_s"] = len(took) / (time.perf_counter() - begun)
        return found | {"p50_full_ms": percentile(50), "p99_full_ms": percentile(99)}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(load(sys.argv[1]))))
