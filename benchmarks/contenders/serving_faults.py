"""A bundle under ten times what it can do, and while parts of what serves it are killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from serving import body, wait

OBJECTIVE_S, WAIT_S = 0.1, 0.05
"""An answer shall take no longer, and nobody is admitted who would likely have to wait longer."""
TIMES, OVERLOAD_S, CAPACITY_S = 10, 60, 6
CLIENTS = (1, 2, 4, 8)
"""Capacity is the most that so many clients are answered."""
KILLED_S = 25
"""Seconds of load in which something is killed, a fifth of them before."""
PARTS = {"replica": "ray::ServeReplica:", "proxy": "haproxy", "controller": "ray::ServeController"}


def processes(home: str, part: str) -> list[int]:
    """Those of a home's cluster that are a part of what serves."""
    head = json.loads(Path(home, "cluster.json").read_text())["pid"]
    found: list[int] = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            pid = int(entry.name)
            words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            is_part = PARTS[part] in words.split(" ")[0]
            if is_part and os.getsid(pid) == head:
                found.append(pid)
    return found


def mib(pids: list[int]) -> float:
    """Memory that processes have."""
    total = 0
    for pid in pids:
        with suppress(OSError):
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            total += next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
    return total / 1024


class Load:
    """Asks for answers, and keeps when, how long and what came."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session, self._url, self._body = session, url, body()
        self.found: list[tuple[float, float, int, bool]] = []

    async def ask(self) -> None:
        """Ask once: begun, seconds, status (0 for none), and whether a refusal says when to come back."""
        begun = time.perf_counter()
        status, says = 0, False
        with suppress(aiohttp.ClientError, asyncio.TimeoutError):
            headers = {"content-type": "application/json"}
            async with self._session.post(self._url, data=self._body, headers=headers) as response:
                await response.read()
                status, says = response.status, "retry-after" in response.headers
        self.found.append((begun, time.perf_counter() - begun, status, says))

    async def clients(self, count: int, seconds: float) -> float:
        """So many that ask one after another; answers a second."""
        self.found.clear()
        until = time.perf_counter() + seconds

        async def client() -> None:
            while time.perf_counter() < until:
                await self.ask()
                if self.found[-1][2] != 200:
                    await asyncio.sleep(0.02)

        begun = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(count)))
        return sum(one[2] == 200 for one in self.found) / (time.perf_counter() - begun)

    async def arrivals(self, per_s: float, seconds: float) -> None:
        """As of people who know nothing of each other; where this machine can't, as fast as it can."""
        self.found.clear()
        random, asked = np.random.default_rng(0), set[asyncio.Task[None]]()
        begun, at = time.perf_counter(), 0.0
        while at < seconds and time.perf_counter() < begun + seconds:
            await asyncio.sleep(max(0.0, begun + at - time.perf_counter()))
            task = asyncio.create_task(self.ask())
            asked.add(task)
            task.add_done_callback(asked.discard)
            at += random.exponential(1 / per_s)
        await asyncio.gather(*asked)


def recovered(found: list[tuple[float, float, int, bool]], since: float) -> float:
    """Seconds from a moment until from when on everything is answered."""
    bad = [begun + took for begun, took, status, _ in found if status != 200 and begun + took > since]
    return max(bad, default=since) - since


async def overload(load: Load, home: str) -> dict[str, Any]:
    """Ten times what it can do, for a minute."""
    await load.clients(max(CLIENTS), CAPACITY_S)
    capacity = max([await load.clients(count, CAPACITY_S) for count in CLIENTS])
    before = mib(processes(home, "replica"))
    await load.arrivals(TIMES * capacity, OVERLOAD_S)
    after = mib(processes(home, "replica"))
    statuses = Counter(status for _, _, status, _ in load.found)
    took = [seconds for _, seconds, status, _ in load.found if status == 200]
    refused = [says for _, _, status, says in load.found if status in (429, 503)]
    offered = len(load.found) / OVERLOAD_S
    ended = time.perf_counter()
    await load.clients(2, 12)
    late = [begun + s - ended for begun, s, status, _ in load.found if status != 200 or s > 2 * OBJECTIVE_S]
    return {
        "capacity_per_s": capacity,
        "offered_times": offered / capacity,
        "answered_per_s": len(took) / OVERLOAD_S,
        "p99_admitted_ms": 1e3 * float(np.percentile(took, 99)),
        "refused_share_with_retry_after": sum(refused) / max(1, len(refused)),
        "other_statuses": {str(k): v for k, v in statuses.items() if k not in (200, 429, 503)},
        "more_mib": after - before,
        "recovery_s": max(late, default=0.0),
    }


async def killed(load: Load, home: str, part: str) -> dict[str, Any]:
    """A part is killed under load that it can do."""
    pids = processes(home, part)
    going = asyncio.create_task(load.clients(2, KILLED_S))
    await asyncio.sleep(KILLED_S / 5)
    at = time.perf_counter()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    await going
    statuses = Counter(status for _, _, status, _ in load.found)
    return {
        "killed": len(pids),
        "asked": len(load.found),
        "not_answered": sum(count for status, count in statuses.items() if status != 200),
        "longest_s": max(seconds for _, seconds, _, _ in load.found),
        "recovery_s": recovered(load.found, at),
    }


async def run(port: int, home: str, parts: list[str]) -> dict[str, Any]:
    """All of it, or some parts."""
    timeout = aiohttp.ClientTimeout(total=30)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        load = Load(session, f"http://127.0.0.1:{port}/v1/answer")
        found: dict[str, Any] = {}
        for part in parts:
            found[part] = await (overload(load, home) if part == "overload" else killed(load, home, part))
        return found


def main() -> None:
    """Serve, load, end, and print what was found."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [sys.executable, "-m", "eagleray.cli"]
    with tempfile.TemporaryDirectory() as home:
        options = ["--port", str(port), "--home", home, "--set", f"limits.max_wait_s={WAIT_S}"]
        server = subprocess.Popen(
            [*command, "serve", sys.argv[1], *options], stdout=sys.stderr, start_new_session=True
        )
        try:
            wait(f"http://127.0.0.1:{port}/healthz", server)
            time.sleep(2)
            print(json.dumps(asyncio.run(run(port, home, sys.argv[2:] or ["overload", *PARTS]))))
        finally:
            server.kill()
            server.wait()
            subprocess.run([*command, "down", "--home", home], check=False, capture_output=True)


if __name__ == "__main__":
    main()
