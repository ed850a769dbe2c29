"""From scores of normal pictures alone to the score from which on one is told to be anomalous."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import numpy as np
from scipy.stats import genpareto

from .metrics import Numbers

Rule: TypeAlias = Literal["quantile", "pareto"]
PEAK_SHARE = 0.2
"""Of the greatest scores, those that are peaks."""
LEAST_PEAKS = 10
"""That a tail is fitted to."""


class TooFewError(ValueError):
    """There are fewer pictures than the rate needs.

    Attributes:
        needed: how many there must be.
    """

    def __init__(self, needed: int) -> None:
        super().__init__(f"it takes {needed} normal pictures")
        self.needed = needed


def threshold(scores: Numbers, false_alarms: float, rule: Rule) -> float:
    """The score above which no more than a share of normal pictures is.

    Args:
        scores: (N,) greatest score of each normal picture; none of them was fitted to.
        false_alarms: that share.
        rule: `quantile` or `pareto`.

    Raises:
        TooFewError: when there are too few pictures for that share.
    """
    return {"quantile": quantile, "pareto": pareto}[rule](scores, false_alarms)


def quantile(scores: Numbers, false_alarms: float) -> float:
    """The order statistic that one more picture of the same kind exceeds with no more than that probability.

    It is the (N + 1)(1 - rate)th, rounded up (conformal prediction, Vovk et al. 2005, 2.2.3).
    """
    rank = math.ceil((len(scores) + 1) * (1 - false_alarms) - 1e-9)
    if rank > len(scores):
        raise TooFewError(math.ceil(1 / false_alarms - 1e-9) - 1)
    return float(np.sort(scores)[rank - 1])


def pareto(scores: Numbers, false_alarms: float) -> float:
    """The quantile of a generalised Pareto distribution fitted to what peaks exceed a high quantile by.

    It also tells rates at which none of the pictures is (Siffer et al. 2017, doi:10.1145/3097983.3098144,
    equation 1). A picture's greatest score is what is fitted to, since neighbouring pixels hang together.
    """
    if len(scores) * PEAK_SHARE < LEAST_PEAKS:
        raise TooFewError(math.ceil(LEAST_PEAKS / PEAK_SHARE))
    if false_alarms >= PEAK_SHARE:
        return quantile(scores, false_alarms)
    start = float(np.quantile(scores, 1 - PEAK_SHARE))
    peaks = scores[scores > start] - start
    if not len(peaks):
        return start
    shape, _, scale = genpareto.fit(peaks, floc=0)
    share = len(peaks) / len(scores)
    return start + float(genpareto.isf(min(1.0, false_alarms / share), shape, scale=scale))
