"""Ray Serve's autoscaler, told by `scaling` how many replicas there are to be."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any

from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy

from .scaling import Memory, Objective, Seen, decide
from .spec import AutoscalingSpec

ARRIVALS, CAPACITY = "arrivals_per_s", "capacity_per_s"
"""What replicas tell of themselves: requests a second that came, and that they could compute."""
TELLS_EVERY_S = 0.5
"""Seconds between two messages of a replica, or of a handle, to the autoscaler."""
COUNTS_S = 2.0
"""Seconds over which a replica counts what comes."""
LOOKS_BACK_S = 2.0
"""Seconds over which the autoscaler takes the mean of what it is told."""


class Arrivals:
    """How much comes, counted over the last `COUNTS_S`."""

    def __init__(self) -> None:
        self._times: deque[float] = deque()

    def add(self, count: int = 1) -> None:
        """Count what comes now."""
        self._times.extend([time.monotonic()] * count)

    @property
    def per_s(self) -> float:
        """A second."""
        since = time.monotonic() - COUNTS_S
        while self._times and self._times[0] < since:
            self._times.popleft()
        return len(self._times) / COUNTS_S


def mixed(told: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """What one thread tells of all it does, by what it tells of each: ARRIVALS and CAPACITY.

    What comes takes as long as each of it takes; while nothing comes, as the first.
    """
    some = list(told)
    arrivals = sum(one[ARRIVALS] for one in some)
    busy = sum(one[ARRIVALS] / one[CAPACITY] for one in some)
    return {ARRIVALS: arrivals, CAPACITY: arrivals / busy if busy else some[0][CAPACITY]}


class ByObjective:
    """Serve's policy of a deployment; it lives in Serve's controller as long as the deployment's options.

    Args:
        latency_s, startup_s, keep: see `Objective`.
    """

    def __init__(self, latency_s: float, startup_s: float, keep: float) -> None:
        self._latency_s, self._startup_s, self._keep = latency_s, startup_s, keep
        self._memory, self._capacity = Memory(), 0.0

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """Decide, from what replicas and handles have told."""
        told = context.aggregated_metrics or {}
        if found := [one for one in told.get(CAPACITY, {}).values() if one > 0]:
            self._capacity = fmean(found)
        objective = Objective(
            self._latency_s,
            self._startup_s,
            context.capacity_adjusted_min_replicas,
            context.capacity_adjusted_max_replicas,
            self._keep,
        )
        seen = Seen(
            context.current_time or 0.0,
            context.current_num_replicas,
            context.total_num_requests,
            sum(told.get(ARRIVALS, {}).values()),
            # before any replica has told: what one does that takes all of the objective for a request
            self._capacity or 1 / self._latency_s,
        )
        target, self._memory = decide(seen, self._memory, objective)
        return target, {}


def autoscaling_config(spec: AutoscalingSpec) -> AutoscalingConfig:
    """What Serve is told: the policy, and to do at once what it says."""
    policy = AutoscalingPolicy(
        policy_function=ByObjective,
        policy_kwargs={"latency_s": spec.latency_s, "startup_s": spec.startup_s, "keep": spec.keep},
    )
    return AutoscalingConfig(
        min_replicas=spec.min_replicas,
        max_replicas=spec.max_replicas,
        upscale_delay_s=0.0,
        downscale_delay_s=0.0,
        metrics_interval_s=TELLS_EVERY_S,
        look_back_period_s=LOOKS_BACK_S,
        policy=policy,
    )
