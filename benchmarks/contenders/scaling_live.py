"""A served bundle under a load that asks for a second replica and then doesn't: scaling_live.py BUNDLE.

First one replica is measured: what a request and a full batch take. Then a trace is played to the service,
with replicas counted and each request timed, and the same trace is simulated with what was measured. The load
shares the machine with what it loads.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
from serving import body

from eagleray.actors.serving.scaling import Objective
from eagleray.actors.serving.simulating import Machine, Simulation, by_objective
from eagleray.actors.serving.spec import AutoscalingSpec, ServingOptions
from eagleray.actors.serving.traces import Trace

LATENCY_S, MOST, KEEP = 0.03, 2, 2.0
ALONE, CLIENTS, FULL_S = 150, 32, 8.0
QUIET_S, BURST_S, AFTER_S = 30.0, 45.0, 75.0
QUIET_NEED, BURST_NEED = 0.3, 1.3
"""Replicas that the policy asks for, before it rounds."""
SETTLES_S, LEARNS_S = 60.0, 30.0


@dataclass
class Watch:
    """Counts replicas, four times a second.

    Attributes:
        application: whose.
        counts: (when, those that start, those that run).
    """

    application: str
    counts: list[tuple[float, int, int]] = field(default_factory=list)
    _ends: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Count until it is ended."""
        from ray import serve

        while not self._ends.wait(0.25):
            states = serve.status().applications[self.application].deployments["Model"].replica_states
            starting = sum(count for state, count in states.items() if state in ("STARTING", "UPDATING"))
            self.counts.append((time.monotonic(), starting, states.get("RUNNING", 0)))

    def end(self) -> None:
        """Stop counting."""
        self._ends.set()

    def replica_s(self, since: float, until: float) -> float:
        """Replica-seconds, those that start included."""
        total, last, there = 0.0, since, 1
        for when, starting, running in self.counts:
            if when > since:
                total += (min(when, until) - last) * there
                last = min(when, until)
            there = starting + running
        return total + (until - last) * there

    def startup_s(self, since: float) -> float | None:
        """Seconds that the first replica took that started later than that; None if none did."""
        begun = next((when for when, starting, _ in self.counts if when > since and starting), None)
        if begun is None:
            return None
        return next(when for when, starting, _ in self.counts if when > begun and not starting) - begun

    async def settle(self) -> None:
        """Wait until there is one, and none that starts."""
        deadline = time.monotonic() + SETTLES_S
        while not self.counts or self.counts[-1][1:] != (0, 1):
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.counts[-1:]}, not one replica, after {SETTLES_S:g} s")
            await asyncio.sleep(0.1)


@contextmanager
def watching() -> Generator[Watch]:
    """Count the application's replicas meanwhile."""
    watch = Watch("live")
    thread = threading.Thread(target=watch.run)
    thread.start()
    try:
        yield watch
    finally:
        watch.end()
        thread.join()


def rate_for(need: float, capacity: float) -> float:
    """Arrivals a second for which the policy asks for so many replicas (see `scaling.needed`)."""
    return (sqrt(1 + need * capacity * LATENCY_S) - 1) ** 2 / LATENCY_S


async def ask(client: aiohttp.ClientSession, sent: bytes | None) -> bool:
    """Ask for an embedding, or for nothing; whether that was answered."""
    call = client.get("/healthz") if sent is None else client.post("/v1/embed", data=sent)
    async with call as answer:
        await answer.read()
        return answer.status == 200


async def alone(client: aiohttp.ClientSession, sent: bytes | None) -> float:
    """Seconds of a request with nobody else there."""
    found: list[float] = []
    for _ in range(ALONE):
        begun = time.perf_counter()
        assert await ask(client, sent)
        found.append(time.perf_counter() - begun)
    return median(found[10:])


async def full(client: aiohttp.ClientSession, sent: bytes) -> float:
    """Requests a second of a replica that has enough to do."""
    done: list[float] = []
    until = time.monotonic() + FULL_S

    async def asks() -> None:
        while time.monotonic() < until:
            if await ask(client, sent):
                done.append(time.monotonic())
            else:  # it has enough
                await asyncio.sleep(0.05)

    await asyncio.gather(*(asks() for _ in range(CLIENTS)))
    steady = done[CLIENTS:-CLIENTS]  # the first ones begin together, and the last ones end alone
    return (len(steady) - 1) / (steady[-1] - steady[0])


async def play(client: aiohttp.ClientSession, sent: bytes, arrivals: Sequence[float]) -> list[float | None]:
    """Seconds from when each request was to come until it was answered; None where it was refused."""
    begun = time.monotonic()

    async def comes(at_s: float) -> float | None:
        await asyncio.sleep(begun + at_s - time.monotonic())
        return time.monotonic() - begun - at_s if await ask(client, sent) else None

    return await asyncio.gather(*(comes(at_s) for at_s in arrivals))


def measure(bundle: Path, home: Path) -> dict[str, Any]:
    """Serve, measure, play, simulate."""
    from eagleray.cluster.connect import connect

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    sent = json.dumps({"inputs": [{"image": json.loads(body())["image"]}]}).encode()
    with connect(None, home, 1.0 + MOST, lambda line: None):
        from ray import serve

        from eagleray.actors.serving.running import deploy

        def served(most: int) -> str:
            scaling = AutoscalingSpec(max_replicas=most, latency_s=LATENCY_S, keep=KEEP)
            return deploy(bundle, ServingOptions(application="live", port=port, autoscaling=scaling)).url

        try:
            costs = asyncio.run(_costs(served(1), sent))
            url = served(MOST)
            with watching() as watch:
                return asyncio.run(_compared(url, sent, watch, *costs))
        finally:
            serve.shutdown()


def _client(url: str) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        url,
        headers={"content-type": "application/json"},
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(60),
    )


async def _capacity() -> float:
    """Requests a second that a replica tells the policy it could compute."""
    from ray import serve

    told = await serve.get_deployment_handle("Model", "live").record_autoscaling_stats.remote()
    return told["capacity_per_s"]


async def _costs(url: str, sent: bytes) -> tuple[float, float, float]:
    async with _client(url) as client:
        return await alone(client, sent), await alone(client, None), await full(client, sent)


async def _compared(
    url: str,
    sent: bytes,
    watch: Watch,
    one_s: float,
    nothing_s: float,
    most_per_s: float,
) -> dict[str, Any]:
    end = QUIET_S + BURST_S + AFTER_S
    async with _client(url) as client:
        await watch.settle()
        # a new replica learns what requests take; seldom enough that nothing is started, and then missed
        gentle = Trace(LEARNS_S, lambda second: rate_for(QUIET_NEED, most_per_s)).arrivals()
        await play(client, sent, [one.at_s for one in gentle])
        told_per_s = await _capacity()
        quiet, burst = rate_for(QUIET_NEED, told_per_s), rate_for(BURST_NEED, told_per_s)
        trace = Trace(end, lambda second: burst if QUIET_S <= second < QUIET_S + BURST_S else quiet)
        arrivals = trace.arrivals()
        begun = time.monotonic()
        latencies = await play(client, sent, [one.at_s for one in arrivals])
        await asyncio.sleep(max(0.0, begun + end - time.monotonic()))
    # one row takes a + b, and of a full batch each a / 16 + b
    size = ServingOptions().max_batch_size
    batch_s = max(0.0, (one_s - nothing_s - 1 / most_per_s) * size / (size - 1))
    machine = Machine(
        batch_s=batch_s,
        row_s=1 / most_per_s - batch_s / size,
        max_batch_size=size,
        startup_s=watch.startup_s(begun) or AutoscalingSpec().startup_s,
        max_ongoing=512,
        control_s=0.1,
    )
    objective = Objective(LATENCY_S, AutoscalingSpec().startup_s, 1, MOST, KEEP)
    outcome = Simulation(machine, by_objective(objective)).run(arrivals, end)
    in_time = [one is not None and one <= LATENCY_S for one in latencies]
    return {
        "replica_s": watch.replica_s(begun, begun + end),
        "within": sum(in_time) / len(in_time),
        "simulated_replica_s": outcome.replica_s,
        "simulated_within": outcome.within(LATENCY_S - nothing_s),
        "p50_ms": 1e3 * median(one for one in latencies if one is not None),
        "simulated_p50_ms": 1e3 * (median(outcome.latencies) + nothing_s),
        "refused": sum(one is None for one in latencies),
        "one_ms": 1e3 * one_s,
        "nothing_ms": 1e3 * nothing_s,
        "full_per_s": most_per_s,
        "told_per_s": told_per_s,
        "startup_s": machine.startup_s,
        "quiet_per_s": quiet,
        "burst_per_s": burst,
        "requests": len(arrivals),
        "load": os.getloadavg()[1] / (os.cpu_count() or 1),  # over 1, others take CPU, too
        "replicas": [
            (round(when - begun, 1), starting, running)
            for before, (when, starting, running) in zip(watch.counts, watch.counts[1:], strict=False)
            if when > begun and before[1:] != (starting, running)
        ],
        "simulated_targets": [(round(when, 1), target) for when, target in outcome.targets],
        "p50_by_ten_s": [
            round(1e3 * median(found)) if found else None for found in _by_ten_s(arrivals, latencies)
        ],
        "simulated_capacity": machine.pace().capacity,
    }


def _by_ten_s(arrivals: Sequence[Any], latencies: Sequence[float | None]) -> list[list[float]]:
    found: list[list[float]] = [[] for _ in range(int(arrivals[-1].at_s) // 10 + 1)]
    for arrival, latency in zip(arrivals, latencies, strict=True):
        if latency is not None:
            found[int(arrival.at_s) // 10].append(latency)
    return found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        try:
            result = measure(Path(sys.argv[1]), Path(folder))
        finally:
            from eagleray.cluster.local import shut_down

            shut_down(Path(folder))
    print(json.dumps(result))
