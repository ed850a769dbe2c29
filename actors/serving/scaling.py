"""How many replicas a latency objective needs: a pure function of what is seen of a deployment.

Enough that what is in hand by the time a new replica has started is done within the objective, with room for
chance; and as many more as are missing while lost ones are replaced. What was needed is kept for as long as a
start takes, several times over: to keep a replica costs less than to start it again soon, and where need goes
up and down by chance, its highest stays (rent or buy, Karlin et al., Algorithmica 11, 542). A replica that is
missed soon after it was let go is kept twice as long the next time, and less again once it is missed later.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil, sqrt

SOON = 2.0
"""How many times as long as it was kept a replica may be away, and still was let go too early."""


@dataclass(frozen=True)
class Objective:
    """What a deployment is to do, and what it can.

    Attributes:
        latency_s: seconds that an answer may take.
        startup_s: seconds from the decision to start a replica until it answers.
        min_replicas: without traffic; 0 lets the last one stop.
        max_replicas: under the heaviest.
        keep: how many times `startup_s` a replica is kept that isn't needed any more.
        patience: how many times that at the most, after it was missed.
        spare: standard deviations of arrivals that replicas have room for.
        watch: how many times `startup_s` a replica's loss is remembered.
    """

    latency_s: float
    startup_s: float
    min_replicas: int
    max_replicas: int
    keep: float = 4.0
    patience: float = 16.0
    spare: float = 2.0
    watch: float = 30.0


@dataclass(frozen=True)
class Seen:
    """What is seen of a deployment.

    Attributes:
        now_s: when, by any clock.
        running: replicas that take requests.
        ongoing: requests that wait or are computed.
        arrivals: requests a second.
        capacity: requests a second of one replica that always has enough to do.
    """

    now_s: float
    running: int
    ongoing: float
    arrivals: float
    capacity: float


@dataclass(frozen=True)
class Kept:
    """The past of a replica: of the second, whenever there were two.

    Attributes:
        needed_s: when it was needed last.
        patience: how many times `keep` it is kept.
        left_s: when it was let go; None while it is there.
    """

    needed_s: float
    patience: float = 1.0
    left_s: float | None = None


@dataclass(frozen=True)
class Memory:
    """What counts of the past.

    Attributes:
        kept: the first replica's past, the second's, and so on.
        losses: when a replica ended that nobody had asked to.
        running: replicas that took requests at the last decision, as far as they were to stay.
    """

    kept: tuple[Kept, ...] = ()
    losses: tuple[float, ...] = ()
    running: int = 0


def decide(seen: Seen, memory: Memory, objective: Objective) -> tuple[int, Memory]:
    """How many replicas there are to be, and what to remember for the next decision."""
    since = seen.now_s - objective.watch * objective.startup_s
    lost = max(0, memory.running - seen.running)
    losses = (*(when for when in memory.losses if when >= since), *([seen.now_s] * lost))
    need = needed(seen, objective)
    if need and losses:  # so many are missing at any moment, while others start in their stead
        need += ceil(len(losses) / objective.watch)
    need = min(max(need, objective.min_replicas), objective.max_replicas)
    keep_s = objective.keep * objective.startup_s
    past = memory.kept + tuple(Kept(seen.now_s) for _ in range(need - len(memory.kept)))
    staying = [
        number
        for number, one in enumerate(past, start=1)
        if one.left_s is None and seen.now_s - one.needed_s <= one.patience * keep_s
    ]
    target = min(max([need, *staying]), objective.max_replicas)
    kept = tuple(
        _needed_again(one, seen.now_s, keep_s, objective.patience)
        if number <= need
        else replace(one, left_s=seen.now_s)
        if number > target and one.left_s is None
        else one
        for number, one in enumerate(past, start=1)
    )
    return target, Memory(kept, losses, min(seen.running, target))


def _needed_again(one: Kept, now_s: float, keep_s: float, most: float) -> Kept:
    if one.left_s is None:
        return Kept(now_s, one.patience)
    away_s, soon_s = now_s - one.left_s, SOON * one.patience * keep_s
    if away_s <= soon_s:
        return Kept(now_s, min(2 * one.patience, most))
    return Kept(now_s, max(1.0, one.patience * soon_s / away_s))


def needed(seen: Seen, objective: Objective) -> int:
    """Replicas that this very moment asks for; 0 only where there is nothing to do."""
    if seen.ongoing <= 0 and seen.arrivals <= 0:
        return 0
    # those in hand when a replica that is started now is ready
    growth = (seen.arrivals - seen.running * seen.capacity) * objective.startup_s if seen.running else 0.0
    in_hand = max(0.0, seen.ongoing + growth)
    # arrivals within the objective are counts, whose variance is their mean (square-root staffing)
    expected = seen.arrivals * objective.latency_s
    within = max(expected + objective.spare * sqrt(expected), in_hand)
    return max(1, ceil(within / (seen.capacity * objective.latency_s) - 1e-9))


class Pace:
    """How fast a replica is, by its batches: seconds are a + b * rows, fitted with the latest weighing most.

    Args:
        max_batch_size: rows of a batch that is full.
        forgets: share of what was seen that a batch makes forget.
    """

    def __init__(self, max_batch_size: int, forgets: float = 0.01) -> None:
        self._full, self._keeps = max_batch_size, 1 - forgets
        self._weight = self._rows = self._seconds = self._squares = self._products = 0.0

    def add(self, rows: int, seconds: float) -> None:
        """Take a batch into account."""
        kept = self._keeps
        self._weight = kept * self._weight + 1
        self._rows = kept * self._rows + rows
        self._seconds = kept * self._seconds + seconds
        self._squares = kept * self._squares + rows * rows
        self._products = kept * self._products + rows * seconds

    @property
    def capacity(self) -> float:
        """Rows a second in full batches; 0 before the first."""
        if not self._weight:
            return 0.0
        rows, seconds = self._rows / self._weight, self._seconds / self._weight
        variance = self._squares / self._weight - rows * rows
        covariance = self._products / self._weight - rows * seconds
        # between nothing for a batch and nothing for a row
        slope = min(max(covariance / variance, 0.0), seconds / rows) if variance > 1e-9 else seconds / rows
        return self._full / (seconds + slope * (self._full - rows))
