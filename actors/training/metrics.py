"""Metrics as they are reported: a value, its interval, and what knowing nothing gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

Numbers = NDArray[np.float64]
Progress = Callable[[int, int], None]
"""Told how many of how many are done."""


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made.

    Attributes:
        resamples: how many.
        confidence: of the intervals.
        seed: of the resampling.
    """

    resamples: int
    confidence: float
    seed: int

    def interval(
        self, values: Numbers, weights: Numbers, groups: NDArray[np.int64]
    ) -> tuple[float, float] | None:
        """Percentile bootstrap of sum(values) / sum(weights) (N,), resampling whole groups (N,).

        Records of a group are not independent; from one group alone nothing follows.
        """
        _, index = np.unique(groups, return_inverse=True)
        sums, counts = np.bincount(index, values), np.bincount(index, weights)
        if len(sums) < 2:
            return None

        def ratio(total: Numbers, count: Numbers, axis: int = -1) -> Numbers:
            return total.sum(axis=axis) / count.sum(axis=axis)

        found = bootstrap(
            (sums, counts),
            ratio,
            paired=True,
            n_resamples=self.resamples,
            confidence_level=self.confidence,
            method="percentile",
            rng=np.random.default_rng(self.seed),
        ).confidence_interval
        return float(found.low), float(found.high)

    def percentiles(
        self, num_groups: int, holds: Callable[[Numbers], bool], measured: Callable[[Numbers], Numbers]
    ) -> tuple[Numbers, Numbers] | None:
        """Percentile bootstrap of anything that weighs whole groups; from one group alone nothing follows.

        Args:
            num_groups: to resample.
            holds: whether weights of the groups (G,) leave anything to measure; else others are drawn.
            measured: weights of the groups (G,) → values (M,).

        Returns:
            Least and greatest values (M,).
        """
        if num_groups < 2:
            return None
        rng = np.random.default_rng(self.seed)
        known: dict[bytes, Numbers] = {}  # of few groups there are few resamplings
        rows: list[Numbers] = []
        while len(rows) < self.resamples:
            drawn = np.bincount(rng.integers(num_groups, size=num_groups), minlength=num_groups)
            weights = drawn.astype(np.float64)
            if holds(weights):
                key = weights.tobytes()
                known[key] = found = known[key] if key in known else measured(weights)
                rows.append(found)
        tail = (1 - self.confidence) / 2
        low, high = np.quantile(np.stack(rows), [tail, 1 - tail], axis=0)
        return low, high


def report(
    name: str,
    values: Sequence[float] | Numbers,
    groups: Sequence[int] | NDArray[np.int64],
    chance: float,
    how: Bootstrap,
    *,
    weights: Sequence[float] | Numbers | None = None,
    unit: Literal["share", "bits"] = "share",
    parts: Mapping[str, NDArray[np.bool_]] = MappingProxyType({}),
) -> dict[str, Any]:
    """A metric: sum(values) / sum(weights), the mean where there are no weights.

    Args:
        name: of the metric.
        values: (N,).
        groups: (N,) equal where records are not independent.
        chance: what knowing nothing gives.
        how: the interval is made.
        weights: (N,).
        unit: of the value.
        parts: name → which of the values (N,) it is also reported of, if any.
    """
    of = np.asarray(values, np.float64)
    by = np.ones_like(of) if weights is None else np.asarray(weights, np.float64)
    found = how.interval(of, by, np.asarray(groups, np.int64))
    metric: dict[str, Any] = {
        "name": name,
        "value": float(of.sum() / by.sum()),
        "low": None if found is None else found[0],
        "high": None if found is None else found[1],
        "chance": chance,
        "queries": len(of),
        "unit": unit,
    }
    if parts:
        places = np.asarray(groups, np.int64)
        metric["parts"] = [
            report(part, of[mask], places[mask], chance, how, weights=by[mask], unit=unit)
            for part, mask in parts.items()
            if by[mask].sum() > 0
        ]
    return metric


def shown(metric: dict[str, Any]) -> str:
    """A metric on one line."""
    spelling = "{:.1%}" if metric["unit"] == "share" else "{:.3f} bits"
    value, chance = spelling.format(metric["value"]), spelling.format(metric["chance"])
    known = metric["low"] is not None
    between = f"[{spelling.format(metric['low'])}, {spelling.format(metric['high'])}]" if known else "[?]"
    return f"{metric['name']}: {value} {between}, chance {chance}"
