"""A bundle served twice on one Ray, without moderation and with it: moderation_eagleray.py BUNDLE.

A request of one is followed by one of the other, so that whatever else the machine does hits both alike.
"""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from socket import socket
from urllib.parse import urlsplit

import numpy as np
from serving import body

REQUESTS, WARM = 300, 30


def main(bundle: Path, home: Path) -> dict[str, float]:
    """Milliseconds of an answer, by what it is about."""
    from eagleray.cluster.connect import connect

    with connect(None, home, 4, lambda line: print(line, file=sys.stderr)):
        from eagleray.actors.serving.running import deploy, stop
        from eagleray.actors.serving.spec import ModerationSpec, ServingOptions

        with socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        policies = {"plain": None, "moderated": ModerationSpec()}
        urls = {
            name: deploy(
                bundle,
                ServingOptions(application=name, route_prefix=f"/{name}", port=port, moderation=policy),
            ).url
            for name, policy in policies.items()
        }
        whole = json.loads(body())
        found: dict[str, float] = {}
        for what, keys in {
            "all": ("question", "image", "speech"),
            "picture": ("question", "image"),
            "question": ("question",),
        }.items():
            sent = json.dumps({key: whole[key] for key in keys}).encode()
            took: dict[str, list[float]] = {name: [] for name in urls}
            for number in range(WARM + REQUESTS):
                for name in list(urls) if number % 2 else list(urls)[::-1]:
                    ms = ask(urls[name], sent)
                    if number >= WARM:
                        took[name].append(ms)
            for name, all_ms in took.items():
                found |= {f"{name}_{what}_p{p}_ms": float(np.percentile(all_ms, p)) for p in (50, 99)}
        for name in urls:
            stop(name)
    return found


def ask(url: str, sent: bytes) -> float:
    """Milliseconds until the answer is there."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    begun = time.perf_counter()
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)
    connection.request("POST", f"{parts.path}/v1/answer", sent, {"content-type": "application/json"})
    response = connection.getresponse()
    answer = response.read()
    connection.close()
    assert response.status == 200, answer
    return 1e3 * (time.perf_counter() - begun)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        try:
            measured = main(Path(sys.argv[1]), Path(folder))
        finally:
            down = [sys.executable, "-m", "eagleray.cli", "down", "--home", folder]
            subprocess.run(down, check=False, capture_output=True)
    print(json.dumps(measured))
