"""A deployment's replicas, event by event: what a scaling policy would make of recorded arrivals."""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from statistics import fmean

from .scaling import Memory, Objective, Pace, Seen, decide


@dataclass(frozen=True)
class Arrival:
    """A request.

    Attributes:
        at_s: when it comes.
        cost: rows that it counts for.
        kills: whether it ends the replica that computes it.
    """

    at_s: float
    cost: float = 1.0
    kills: bool = False


@dataclass(frozen=True)
class Machine:
    """What a deployment's replicas can do.

    Attributes:
        batch_s: seconds of a batch, however small.
        row_s: seconds more for each row.
        max_batch_size: rows of a batch.
        startup_s: seconds from the decision to start a replica until it takes requests.
        max_ongoing: requests that a replica has in hand.
        max_queued: requests that wait for a replica; more are refused.
        control_s: seconds between two decisions.
        record_s: seconds between two looks at what is in hand.
        look_back_s: seconds over which decisions take the mean.
    """

    batch_s: float = 0.010
    row_s: float = 0.005
    max_batch_size: int = 16
    startup_s: float = 8.0
    max_ongoing: int = 32
    max_queued: int = 256
    control_s: float = 0.5
    record_s: float = 0.5
    look_back_s: float = 2.0

    def pace(self) -> Pace:
        """That of its replicas, as seen when one warms up: a batch of one row, and a full one."""
        pace = Pace(self.max_batch_size)
        for rows in (1, self.max_batch_size):
            pace.add(rows, self.batch_s + self.row_s * rows)
        return pace


@dataclass
class Outcome:
    """What became of a trace.

    Attributes:
        latencies: seconds of each request that was answered.
        refused: requests for which there was no room.
        lost: requests whose replica ended.
        replica_s: seconds that replicas were there, starting ones included.
        targets: (when, replicas) of each decision that changed something.
        batches: rows of each batch.
        unready_kills: replicas ended while they were needed and others had yet to start.
    """

    latencies: list[float] = field(default_factory=list)
    refused: int = 0
    lost: int = 0
    replica_s: float = 0.0
    targets: list[tuple[float, int]] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    unready_kills: int = 0

    def within(self, latency_s: float) -> float:
        """Share of all requests that were answered within an objective."""
        total = len(self.latencies) + self.refused + self.lost
        return sum(one <= latency_s for one in self.latencies) / total if total else 1.0


Policy = Callable[[Seen, int], int]
"""What is seen, and how many replicas there are to be now → how many there are to be."""


def by_objective(objective: Objective) -> Policy:
    """The policy of `scaling`, with its memory."""
    memory = Memory()

    def policy(seen: Seen, target: int) -> int:
        nonlocal memory
        wanted, memory = decide(seen, memory, objective)
        return wanted

    return policy


@dataclass
class _Replica:
    ready_s: float
    waiting: deque[Arrival] = field(default_factory=deque)
    batch: list[Arrival] = field(default_factory=list)
    started: bool = False
    leaving: bool = False
    ended: bool = False

    @property
    def ongoing(self) -> int:
        return len(self.waiting) + len(self.batch)


class Simulation:
    """One run of a trace.

    Args:
        machine: what replicas can do.
        policy: decides how many there are.
        first: replicas at the beginning, all of them ready.
        seed: of the router, which offers a request to the less busy of two.
    """

    def __init__(self, machine: Machine, policy: Policy, first: int = 1, seed: int = 0) -> None:
        self._machine, self._policy = machine, policy
        self._random = random.Random(seed)
        self._replicas = [_Replica(0.0, started=True) for _ in range(first)]
        self._target = first
        self._queue: deque[Arrival] = deque()
        self._arrived: deque[float] = deque()
        self._looks: deque[tuple[float, int]] = deque()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._now = 0.0
        self._pace = machine.pace()
        self.outcome = Outcome()

    def run(self, arrivals: Sequence[Arrival], until_s: float) -> Outcome:
        """Let requests come, and go on until a moment; what is in hand then is lost."""
        for arrival in arrivals:
            self._at(arrival.at_s, lambda one=arrival: self._take(one))
        self._at(0.0, self._look)
        self._at(0.0, self._control)
        while self._events and self._events[0][0] <= until_s:
            at_s, _, happen = heapq.heappop(self._events)
            self.outcome.replica_s += (at_s - self._now) * len(self._replicas)
            self._now = at_s
            happen()
        self.outcome.replica_s += (until_s - self._now) * len(self._replicas)
        self.outcome.lost += len(self._queue) + sum(replica.ongoing for replica in self._replicas)
        return self.outcome

    def _at(self, when_s: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when_s, next(self._order), happen))

    def _take(self, arrival: Arrival) -> None:
        self._arrived.append(self._now)
        if len(self._queue) >= self._machine.max_queued:
            self.outcome.refused += 1
            return
        self._queue.append(arrival)
        self._offer()

    def _offer(self) -> None:
        """Give what waits to replicas that have room."""
        most = self._machine.max_ongoing
        while self._queue:
            open_ones = [one for one in self._taking() if one.ongoing < most]
            if not open_ones:
                return
            two = self._random.sample(open_ones, min(2, len(open_ones)))
            chosen = min(two, key=lambda one: one.ongoing)
            chosen.waiting.append(self._queue.popleft())
            self._start_batch(chosen)

    def _taking(self) -> Iterable[_Replica]:
        return (one for one in self._staying() if one.started)

    def _start_batch(self, replica: _Replica) -> None:
        if replica.batch or not replica.waiting or not replica.started:
            return
        size = min(len(replica.waiting), self._machine.max_batch_size)
        replica.batch = [replica.waiting.popleft() for _ in range(size)]
        self.outcome.batches.append(size)
        takes_s = self._machine.batch_s + self._machine.row_s * sum(one.cost for one in replica.batch)
        self._pace.add(size, takes_s)
        self._at(self._now + takes_s, lambda: self._finish(replica))

    def _finish(self, replica: _Replica) -> None:
        if replica.ended:
            return
        done, replica.batch = replica.batch, []
        if any(one.kills for one in done):
            self.outcome.lost += len(done) + len(replica.waiting)
            self._end(replica)
            self._fit()
            return
        self.outcome.latencies += [self._now - one.at_s for one in done]
        if replica.leaving and not replica.waiting:
            self._end(replica)
            return
        self._start_batch(replica)
        self._offer()

    def _end(self, replica: _Replica) -> None:
        replica.ended = True
        self._replicas.remove(replica)

    def _look(self) -> None:
        machine = self._machine
        ongoing = len(self._queue) + sum(one.ongoing for one in self._replicas)
        self._looks.append((self._now, ongoing))
        while self._looks[0][0] < self._now - machine.look_back_s:
            self._looks.popleft()
        while self._arrived and self._arrived[0] < self._now - machine.look_back_s:
            self._arrived.popleft()
        self._at(self._now + machine.record_s, self._look)

    def _control(self) -> None:
        machine = self._machine
        seen = Seen(
            self._now,
            sum(1 for _ in self._taking()),
            fmean(ongoing for _, ongoing in self._looks),
            len(self._arrived) / min(machine.look_back_s, max(self._now, machine.record_s)),
            self._pace.capacity,
        )
        target = self._policy(seen, self._target)
        if target != self._target:
            self.outcome.targets.append((self._now, target))
            self._target = target
        self._fit()
        self._at(self._now + machine.control_s, self._control)

    def _staying(self) -> list[_Replica]:
        return [one for one in self._replicas if not one.leaving]

    def _fit(self) -> None:
        """Start replicas, or end some: those first that have yet to start, then the least busy."""
        more = self._target - len(self._staying())
        for _ in range(more):
            replica = _Replica(self._now + self._machine.startup_s)
            self._replicas.append(replica)
            self._at(replica.ready_s, lambda one=replica: self._ready(one))
        for _ in range(-more):
            staying = self._staying()
            chosen = min(staying, key=lambda one: (one.started, one.ongoing))
            starting = [one for one in staying if not one.started]
            self.outcome.unready_kills += chosen.started and bool(starting)
            chosen.leaving = True
            if not chosen.ongoing:
                self._end(chosen)

    def _ready(self, replica: _Replica) -> None:
        if not replica.ended:
            replica.started = True
            self._offer()
