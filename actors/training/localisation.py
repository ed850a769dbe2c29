"""How well scores tell what is anomalous: areas under curves, over pictures, pixels and regions.

All of it hangs on how often each score is reached, so scores are counted once, by group, and a resampling is
but other weights of the groups.

Shape letters: G groups, T distinct scores, or as many ranks as are told apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .metrics import Bootstrap, Numbers

RANKS = 2**14
"""That scores are told apart by; a tie counts half, so an area is off by less than 1 / 2**15."""
MOST_FALSE = 0.3
"""False positive rate up to which regions' overlap is integrated (Bergmann et al. 2021, 5.2)."""
Places = NDArray[np.int64]


@dataclass(frozen=True)
class Region:
    """A defect that hangs together, over sides and corners.

    Attributes:
        scores: (P,) of its pixels.
        group: number of its picture's group.
        label: what it is.
    """

    scores: NDArray[np.float32]
    group: int
    label: str


class Ranked:
    """Scores counted by group and rank, the greatest first.

    Args:
        edges: (T,) least score of each rank, rising.
        num_groups: of the pictures.
    """

    def __init__(self, edges: NDArray[np.float32], num_groups: int) -> None:
        self._edges = edges
        self.counts = np.zeros((num_groups, len(edges)))

    def add(self, scores: NDArray[np.float32], group: int, weight: float = 1.0) -> None:
        """Count scores (any shape) of a group, each as `weight`."""
        rank = np.searchsorted(self._edges, scores.ravel(), side="right") - 1
        self.counts[group] += weight * np.bincount(np.maximum(rank, 0), minlength=len(self._edges))[::-1]


def edges_of(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """The least score of each rank: all distinct ones, or quantiles where those are more than `RANKS`."""
    distinct = np.unique(scores)
    if len(distinct) <= RANKS:
        return distinct
    return np.unique(np.sort(scores.ravel())[np.linspace(0, scores.size - 1, RANKS).astype(np.int64)])


def auroc(positive: Numbers, negative: Numbers) -> float:
    """Share of pairs in which the positive one has the greater score, ties half.

    Args:
        positive: (T,) how many are of each rank, the greatest first.
        negative: (T,) likewise.
    """
    below = negative.sum() - np.cumsum(negative)
    return float((positive * (below + negative / 2)).sum() / (positive.sum() * negative.sum()))


def region_overlap(regions: Numbers, normal: Numbers, num_regions: float) -> float:
    """The mean share of regions that is reached, over false positive rates up to `MOST_FALSE` (PRO).

    Args:
        regions: (T,) sum over regions of the share of their pixels that is of each rank, the greatest first.
        normal: (T,) normal pixels of each rank.
        num_regions: how many there are.

    Returns:
        From 0 to 1: the area is divided by `MOST_FALSE`.
    """
    false = np.concatenate([[0.0], np.cumsum(normal) / normal.sum()])
    reached = np.concatenate([[0.0], np.cumsum(regions) / num_regions])
    after = int(np.searchsorted(false, MOST_FALSE))  # the curve may rise straight up there: not seen any more
    before = slice(after - 1, after + 1)
    last = float(np.interp(MOST_FALSE, false[before], reached[before]))
    x, y = np.append(false[:after], MOST_FALSE), np.append(reached[:after], last)
    return float(np.trapezoid(y, x) / MOST_FALSE)


def metric(
    name: str,
    measured: Callable[[Numbers], float],
    there: Sequence[Numbers],
    queries: int,
    chance: float,
    how: Bootstrap,
) -> dict[str, Any]:
    """A metric as `metrics.report` gives it, of anything that weighs groups.

    Args:
        name: of the metric.
        measured: weights of the groups (G,) → value.
        there: (G,) each: what must not all be without weight for the metric to say anything.
        queries: how many it is of.
        chance: what knowing nothing gives.
        how: the interval is made.
    """
    num_groups = len(there[0])
    found = how.percentiles(
        num_groups,
        lambda weights: all(weights @ one > 0 for one in there),
        lambda weights: np.array([measured(weights)]),
    )
    low, high = (None, None) if found is None else (float(one[0]) for one in found)
    bounds = {"value": measured(np.ones(num_groups)), "low": low, "high": high, "chance": chance}
    return {"name": name, **bounds, "queries": queries, "unit": "share"}


def pixel_metrics(
    normal: Sequence[NDArray[np.float32]],
    groups: Places,
    regions: Sequence[Region],
    how: Bootstrap,
) -> list[dict[str, Any]]:
    """AUROC over pixels, and PRO.

    Args:
        normal: scores of the pixels that nothing is marked on, by picture.
        groups: (N,) of the pictures, from 0 on without gaps.
        regions: of all pictures.
        how: intervals are made.
    """
    num_groups = int(groups.max()) + 1
    edges = edges_of(np.concatenate([*normal, *(one.scores for one in regions)]))
    wrong, right, shares = (Ranked(edges, num_groups) for _ in range(3))
    for scores, group in zip(normal, groups.tolist(), strict=True):
        wrong.add(scores, group)
    for one in regions:
        right.add(one.scores, one.group)
        shares.add(one.scores, one.group, 1 / one.scores.size)
    negatives, positives, counts = wrong.counts, right.counts, shares.counts.sum(axis=1)
    there = [counts, negatives.sum(axis=1)]
    return [
        metric(
            "AUROC, pixels",
            lambda weights: auroc(weights @ positives, weights @ negatives),
            there,
            int(positives.sum()),
            0.5,
            how,
        ),
        metric(
            f"PRO up to {MOST_FALSE:.0%} false positives",
            lambda weights: region_overlap(
                weights @ shares.counts, weights @ negatives, float(weights @ counts)
            ),
            there,
            len(regions),
            MOST_FALSE / 2,
            how,
        ),
    ]


def picture_metric(
    highest: NDArray[np.float32], defective: NDArray[np.bool_], groups: Places, how: Bootstrap
) -> dict[str, Any]:
    """AUROC over pictures.

    Args:
        highest: (N,) greatest score of each.
        defective: (N,) whether anything is marked.
        groups: (N,) from 0 on without gaps.
        how: the interval is made.
    """
    edges = edges_of(highest)
    right, wrong = (Ranked(edges, int(groups.max()) + 1) for _ in range(2))
    for score, is_defective, group in zip(highest, defective.tolist(), groups.tolist(), strict=True):
        (right if is_defective else wrong).add(np.atleast_1d(score), group)
    return metric(
        "AUROC, pictures",
        lambda weights: auroc(weights @ right.counts, weights @ wrong.counts),
        [right.counts.sum(axis=1), wrong.counts.sum(axis=1)],
        len(highest),
        0.5,
        how,
    )
