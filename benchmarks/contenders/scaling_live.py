"""A served bundle under a load that asks for a second replica and then doesn't: scaling_live.py BUNDLE.

First the service is measured: what a request and a full batch take, and a start. Then a trace is played to
it, with replicas counted and each request timed, and the same trace is simulated with what was measured.
The load shares the machine with what it loads.
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
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path
from statistics import median
from typing import Any

import httpx
from serving import body

from eagleray.actors.serving.scaling import Objective
from eagleray.actors.serving.simulating import Machine, Simulation, by_objective
from eagleray.actors.serving.spec import AutoscalingSpec, ServingOptions
from eagleray.actors.serving.traces import Trace

LATENCY_S, MOST, KEEP = 0.05, 2, 2.0
ALONE, CLIENTS, FULL_S = 150, 32, 20.0
QUIET_S, BURST_S, AFTER_S = 30.0, 45.0, 75.0
QUIET_NEED, BURST_NEED = 0.5, 1.4
"""Replicas that the policy asks for, before it rounds."""
SETTLES_S = 90.0


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

    def wait_for(self, running: int) -> float:
        """When there are so many, and none that start."""
        deadline = time.monotonic() + SETTLES_S
        while time.monotonic() < deadline:
            if self.counts and self.counts[-1][1:] == (0, running):
                return self.counts[-1][0]
            time.sleep(0.1)
        raise RuntimeError(f"{self.counts[-1:]}, not {running} replicas, after {SETTLES_S:g} s")


def rate_for(need: float, capacity: float) -> float:
    """Arrivals a second for which the policy asks for so many replicas (see `scaling.needed`)."""
    return (sqrt(1 + need * capacity * LATENCY_S) - 1) ** 2 / LATENCY_S


async def alone(client: httpx.AsyncClient, sent: bytes) -> tuple[float, float]:
    """Seconds of a request with nobody else there, and of one that asks for nothing."""
    found: dict[bool, list[float]] = {True: [], False: []}
    for i in range(2 * ALONE):
        asks = bool(i % 2)
        begun = time.perf_counter()
        done = await (client.post("/v1/embed", content=sent) if asks else client.get("/healthz"))
        found[asks].append(time.perf_counter() - begun)
        done.raise_for_status()
    return median(found[True][10:]), median(found[False][10:])


async def full(client: httpx.AsyncClient, sent: bytes, watch: Watch) -> tuple[float, float]:
    """Requests a second of a replica that has enough to do, and seconds that a second one takes to start."""
    done: list[float] = []
    begun = time.monotonic()

    async def ask() -> None:
        while time.monotonic() < begun + FULL_S:
            (await client.post("/v1/embed", content=sent)).raise_for_status()
            done.append(time.monotonic())

    await asyncio.gather(*(ask() for _ in range(CLIENTS)))
    asked = next(when for when, starting, running in watch.counts if when > begun and starting + running > 1)
    runs = next(when for when, _, running in watch.counts if when > asked and running > 1)
    within = [when for when in done if begun + 1 < when < asked]  # the second one's start takes CPU
    return (len(within) - 1) / (within[-1] - within[0]), runs - asked


async def play(client: httpx.AsyncClient, sent: bytes, arrivals: Sequence[float]) -> list[float | None]:
    """Seconds from when each request was to come until it was answered; None where it was refused."""
    begun = time.monotonic()

    async def ask(at_s: float) -> float | None:
        await asyncio.sleep(begun + at_s - time.monotonic())
        try:
            answer = await client.post("/v1/embed", content=sent)
        except httpx.HTTPError:
            return None
        return time.monotonic() - begun - at_s if answer.status_code == 200 else None

    return await asyncio.gather(*(ask(at_s) for at_s in arrivals))


def measure(bundle: Path, home: Path) -> dict[str, Any]:
    """Serve, measure, play, simulate."""
    from eagleray.cluster.connect import connect

    scaling = AutoscalingSpec(max_replicas=MOST, latency_s=LATENCY_S, keep=KEEP)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    options = ServingOptions(application="live", port=port, autoscaling=scaling)
    with connect(None, home, 1.0 + MOST, lambda line: None):
        from ray import serve

        from eagleray.actors.serving.running import deploy

        url = deploy(bundle, options).url
        watch = Watch("live")
        thread = threading.Thread(target=watch.run)
        thread.start()
        try:
            return asyncio.run(_measured(url, scaling, watch))
        finally:
            watch.end()
            thread.join()
            serve.shutdown()


async def _measured(url: str, scaling: AutoscalingSpec, watch: Watch) -> dict[str, Any]:
    from ray import serve

    picture = json.loads(body())["image"]
    sent = json.dumps({"inputs": [{"image": picture}]}).encode()
    limits = httpx.Limits(max_connections=256, max_keepalive_connections=256)
    headers = {"content-type": "application/json"}
    async with httpx.AsyncClient(
        base_url=url, headers=headers, timeout=30, limits=limits, trust_env=False
    ) as client:
        one_s, nothing_s = await alone(client, sent)
        most_per_s, startup_s = await full(client, sent, watch)
        await asyncio.to_thread(watch.wait_for, 1)
        told = await serve.get_deployment_handle("Model", "live").record_autoscaling_stats.remote()
        capacity = told["capacity_per_s"]
        quiet, burst = rate_for(QUIET_NEED, capacity), rate_for(BURST_NEED, capacity)
        end = QUIET_S + BURST_S + AFTER_S
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
        startup_s=startup_s,
        max_ongoing=512,
        control_s=0.1,
    )
    objective = Objective(LATENCY_S, scaling.startup_s, scaling.min_replicas, MOST, scaling.keep)
    outcome = Simulation(machine, by_objective(objective)).run(arrivals, end)
    in_time = [one is not None and one <= LATENCY_S for one in latencies]
    return {
        "replica_s": watch.replica_s(begun, begun + end),
        "within": sum(in_time) / len(in_time),
        "simulated_replica_s": outcome.replica_s,
        "simulated_within": outcome.within(LATENCY_S - nothing_s),
        "one_ms": 1e3 * one_s,
        "nothing_ms": 1e3 * nothing_s,
        "full_per_s": most_per_s,
        "told_per_s": capacity,
        "startup_s": startup_s,
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
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = measure(Path(sys.argv[1]), Path(folder))
        finally:
            from eagleray.cluster.local import shut_down

            shut_down(Path(folder))
    print(json.dumps(found))
