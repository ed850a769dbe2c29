"""Arrivals to try a scaling policy on, drawn from rates that change as rates of services do.

A trace is the same wherever it is drawn: a Poisson process, thinned (Lewis and Shedler, Naval Research
Logistics 26, 403), from a seed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import cos, pi

from .simulating import Arrival


@dataclass(frozen=True)
class Trace:
    """What comes.

    Attributes:
        seconds: how long it goes on.
        rate: requests a second, by the moment.
        slow: share of requests that cost as much as `slow_rows` rows.
        slow_rows: see above.
        deadly: share of requests that end the replica that computes them.
    """

    seconds: float
    rate: Callable[[float], float]
    slow: float = 0.0
    slow_rows: float = 1.0
    deadly: float = 0.0

    def arrivals(self, seed: int = 0) -> list[Arrival]:
        """Draw the requests."""
        drawn = random.Random(seed)
        most = max(self.rate(second) for second in range(int(self.seconds) + 1))
        found: list[Arrival] = []
        now = drawn.expovariate(most)
        while now < self.seconds:
            if drawn.random() < self.rate(now) / most:
                cost = self.slow_rows if drawn.random() < self.slow else 1.0
                found.append(Arrival(now, cost, drawn.random() < self.deadly))
            now += drawn.expovariate(most)
        return found


def _bursts(second: float) -> float:
    return 300.0 if second % 240 >= 210 else 10.0


def _day(second: float) -> float:
    """A day in half an hour."""
    return 10 + 190 * (1 - cos(2 * pi * second / 1800)) / 2


def _crowd(second: float) -> float:
    """Ten times as many within ten seconds, which then lose interest."""
    if second < 300:
        return 20.0
    if second < 310:
        return 20.0 + 18.0 * (second - 300)
    return 20.0 + 180.0 * 0.5 ** ((second - 310) / 120)


TRACES: Mapping[str, Trace] = {
    "steady": Trace(1200, lambda second: 100.0),
    "burst": Trace(1200, _bursts),
    "diurnal": Trace(1800, _day),
    "flash crowd": Trace(1200, _crowd),
    "poison": Trace(1200, lambda second: 80.0, slow=0.01, slow_rows=40.0, deadly=0.0002),
}
