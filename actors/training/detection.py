"""How well candidates find what is there: LUNA16's evaluation (Setio et al. 2017), and Dice.

A candidate hits a nodule if its centre lies nearer to the nodule's than the nodule's radius. Several hits on
one nodule count once, with the greatest score, and the others are neither right nor wrong. So are candidates
that hit what is excluded: findings that are no nodules, or of which readers disagree. All others are false.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .metrics import Bootstrap, Numbers

RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False positives a scan at which sensitivities are averaged."""


@dataclass(frozen=True)
class Scan:
    """What is in a scan, and what was found; millimetres of one space.

    Attributes:
        centres_mm: (N, 3) of candidates.
        scores: (N,) of candidates, the greater the likelier.
        nodules_mm: (M, 3) centres.
        diameters_mm: (M,) of nodules.
        excluded_mm: (K, 3) centres of what is neither to be found nor wrong.
        excluded_diameters_mm: (K,) of that.
    """

    centres_mm: Numbers
    scores: Numbers
    nodules_mm: Numbers
    diameters_mm: Numbers
    excluded_mm: Numbers = field(default_factory=lambda: np.zeros((0, 3)))
    excluded_diameters_mm: Numbers = field(default_factory=lambda: np.zeros(0))


@dataclass(frozen=True)
class Outcome:
    """What became of a scan's candidates.

    Attributes:
        hits: (H,) scores of the nodules that were found.
        false: (F,) scores of candidates that hit nothing.
        nodules: how many there are.
    """

    hits: Numbers
    false: Numbers
    nodules: int


@dataclass(frozen=True)
class Froc:
    """A free-response curve, from no candidate on to all of them.

    Attributes:
        false_positives: (P,) a scan, growing.
        sensitivities: (P,) shares of the nodules that were found.
        thresholds: (P,) least score of the candidates that count; infinite at first.
    """

    false_positives: Numbers
    sensitivities: Numbers
    thresholds: Numbers

    def at(self, rates: Sequence[float] = RATES) -> Numbers:
        """Sensitivities at rates of false positives a scan: linear between points, the last one beyond."""
        return np.interp(rates, self.false_positives, self.sensitivities)

    def threshold_at(self, rate: float) -> float:
        """The least score that counts with no more than so many false positives a scan."""
        return float(self.thresholds[np.searchsorted(self.false_positives, rate, side="right") - 1])


def judge(scan: Scan) -> Outcome:
    """Which candidates are right and which are wrong."""
    hit = _near(scan.centres_mm, scan.nodules_mm, scan.diameters_mm)
    found = hit.any(axis=0)
    best = np.where(hit, scan.scores[:, None], -np.inf).max(axis=0, initial=-np.inf)
    excluded = _near(scan.centres_mm, scan.excluded_mm, scan.excluded_diameters_mm).any(axis=1)
    return Outcome(best[found], scan.scores[~hit.any(axis=1) & ~excluded], len(scan.nodules_mm))


def froc(outcomes: Sequence[Outcome]) -> Froc:
    """The curve of several scans; candidates with the same score count together.

    Raises:
        ValueError: when there is no nodule in them.
    """
    return _Pooled(outcomes, np.arange(len(outcomes))).curve(np.ones(len(outcomes)))


def cpm(curve: Froc) -> float:
    """The competition's performance metric: the mean sensitivity at `RATES`."""
    return float(curve.at().mean())


def report(
    name: str,
    outcomes: Sequence[Outcome],
    groups: Sequence[int],
    how: Bootstrap,
    rates: Sequence[float] = RATES,
    scan: str = "scan",
) -> dict[str, Any]:
    """The mean sensitivity as `metrics.report` gives a metric, its parts the sensitivities at each rate.

    Args:
        name: of the metric.
        outcomes: of what is evaluated.
        groups: (N,) equal for scans of one patient, which are resampled together.
        how: the intervals are made. From one group alone nothing follows.
        rates: of false positives a scan; by default those of CPM.
        scan: what a scan is called.

    Raises:
        ValueError: when there is no nodule in the scans.
    """
    _, index = np.unique(np.asarray(groups), return_inverse=True)
    pooled = _Pooled(outcomes, index)
    num_groups = int(index.max()) + 1
    at = pooled.curve(np.ones(num_groups)).at(rates)
    low, high = _interval(pooled, num_groups, how, rates)
    nodules = sum(one.nodules for one in outcomes)

    def metric(name: str, value: float, low: float | None, high: float | None) -> dict[str, Any]:
        bounds = {"value": value, "low": low, "high": high, "chance": 0.0}
        return {"name": name, **bounds, "queries": nodules, "unit": "share"}

    names = [f"at {rate:g} false positives a {scan}" for rate in rates]
    rows = [metric(*one) for one in zip(names, at.tolist(), low[1:], high[1:], strict=True)]
    return {**metric(name, float(at.mean()), low[0], high[0]), "parts": rows}


def dice(found: NDArray[Any], true: NDArray[Any]) -> float:
    """Dice's coefficient of two masks of one shape: twice what they share over what they have; 1 where both
    are empty.
    """
    one, other = np.asarray(found, np.bool_), np.asarray(true, np.bool_)
    if one.shape != other.shape:
        raise ValueError(f"masks of {one.shape} and {other.shape} can't be compared")
    total = int(one.sum()) + int(other.sum())
    return 2 * int((one & other).sum()) / total if total else 1.0


class _Pooled:
    """The candidates of all scans, sorted once, so that a resampling is but other weights of groups.

    Args:
        outcomes: of the scans.
        groups: (N,) number of each scan's group.
    """

    def __init__(self, outcomes: Sequence[Outcome], groups: NDArray[np.int64]) -> None:
        kinds = [(one.hits, True) for one in outcomes] + [(one.false, False) for one in outcomes]
        scores = np.concatenate([scores for scores, _ in kinds])
        order = np.argsort(-scores, kind="stable")
        self._right = np.concatenate([np.full(len(scores), right) for scores, right in kinds])[order]
        owners = [np.full(len(scores), n) for (scores, _), n in zip(kinds, [*groups, *groups], strict=True)]
        self._owners = np.concatenate(owners).astype(np.int64)[order]
        scores = scores[order]
        self._last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True)[: len(scores)])
        self._thresholds = np.concatenate([[np.inf], scores[self._last]])
        self._scans = np.bincount(groups)
        self._nodules = np.bincount(groups, [one.nodules for one in outcomes])

    def curve(self, weights: Numbers) -> Froc:
        """The curve where each group counts `weights` (G,) times."""
        scans, nodules = float(weights @ self._scans), float(weights @ self._nodules)
        if not nodules:
            raise ValueError("there is no nodule to be found in the scans")
        each = weights[self._owners]
        right = np.cumsum(each * self._right)[self._last] / nodules
        wrong = np.cumsum(each * ~self._right)[self._last] / scans
        return Froc(np.concatenate([[0], wrong]), np.concatenate([[0], right]), self._thresholds)

    def holds_nodules(self, weights: Numbers) -> bool:
        """Whether there is anything to be found."""
        return float(weights @ self._nodules) > 0


def _interval(
    pooled: _Pooled, num_groups: int, how: Bootstrap, rates: Sequence[float]
) -> tuple[list[float] | list[None], list[float] | list[None]]:
    """Percentile bootstrap of the mean and of the sensitivities, over whole groups.

    A resampling without any nodule says nothing and is drawn again.
    """

    def measured(weights: Numbers) -> Numbers:
        at = pooled.curve(weights).at(rates)
        return np.append(at.mean(), at)

    found = how.percentiles(num_groups, pooled.holds_nodules, measured)
    if found is None:
        nothing = [None] * (1 + len(rates))
        return nothing, nothing
    return found[0].tolist(), found[1].tolist()


def _near(points: Numbers, centres: Numbers, diameters: Numbers) -> NDArray[np.bool_]:
    """Which points (N, 3) lie within which balls (M): (N, M)."""
    square = ((points[:, None] - centres[None]) ** 2).sum(axis=-1)
    return square < (diameters / 2) ** 2
