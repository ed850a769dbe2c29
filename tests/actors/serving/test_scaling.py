"""The scaling policy, by itself and in a simulation; see `test_running.py` for a real deployment."""

from dataclasses import replace
from itertools import cycle, pairwise
from math import inf, log2

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eagleray.actors.serving.scaling import Memory, Objective, Pace, Seen, decide
from eagleray.actors.serving.simulating import Arrival, Machine, Simulation, by_objective
from eagleray.actors.serving.traces import TRACES, Trace

MACHINE = Machine()
OBJECTIVE = Objective(latency_s=0.2, startup_s=MACHINE.startup_s, min_replicas=1, max_replicas=12)

numbers = st.floats(0, 1000)
objectives = st.builds(
    Objective,
    latency_s=st.floats(0.01, 10),
    startup_s=st.floats(0.1, 120),
    min_replicas=st.integers(0, 3),
    max_replicas=st.integers(3, 50),
    keep=st.floats(0, 10),
    patience=st.floats(1, 32),
)


def seen(now_s, running=1, ongoing=0.0, arrivals=0.0, capacity=100.0):
    return Seen(now_s, running, ongoing, arrivals, capacity)


def targets(objective, looks):
    memory, found = Memory(), []
    for look in looks:
        target, memory = decide(look, memory, objective)
        found.append(target)
    return found


@given(objectives, st.lists(st.tuples(numbers, numbers, st.integers(0, 50)), min_size=1, max_size=30))
def test_the_bounds_are_kept_whatever_is_seen(objective, looks):
    shown = [
        seen(float(i), running, ongoing, arrivals) for i, (ongoing, arrivals, running) in enumerate(looks)
    ]
    for target in targets(objective, shown):
        assert objective.min_replicas <= target <= objective.max_replicas


@given(objectives, st.lists(st.tuples(numbers, numbers), max_size=10))
def test_without_load_nothing_grows_and_everything_ends(objective, busy):
    shown = [seen(float(i), 1, *look) for i, look in enumerate(busy)]
    step = max(0.5, objective.patience * objective.keep * objective.startup_s / 20)
    quiet = [seen(len(busy) + i * step, 1) for i in range(24)]
    found = targets(objective, [*shown, *quiet])[len(busy) :]
    assert found == sorted(found, reverse=True)
    assert found[-1] == objective.min_replicas


@given(objectives, st.floats(0.1, 500), st.integers(1, 50))
def test_a_load_that_stays_asks_for_what_stays(objective, arrivals, running):
    found = targets(objective, [seen(float(i), running, arrivals * 0.01, arrivals) for i in range(40)])
    assert len(set(found)) == 1


@given(objectives, numbers, numbers, st.integers(1, 20), st.floats(1.1, 5))
def test_more_load_never_asks_for_less(objective, ongoing, arrivals, running, factor):
    (less,) = targets(objective, [seen(0.0, running, ongoing, arrivals)])
    (more,) = targets(objective, [seen(0.0, running, factor * ongoing, factor * arrivals)])
    assert more >= less


def test_what_waits_for_a_first_replica_starts_one():
    from_zero = replace(OBJECTIVE, min_replicas=0)
    assert targets(from_zero, [seen(0.0, 0, ongoing=1.0)]) == [1]
    assert targets(from_zero, [seen(0.0, 0)]) == [0]


def test_a_replica_that_is_lost_is_made_up_for():
    busy = {"ongoing": 2.0, "arrivals": 50.0}
    assert targets(OBJECTIVE, [seen(0.0, 2, **busy), seen(1.0, 2, **busy)])[-1] == 1
    assert targets(replace(OBJECTIVE, min_replicas=2), [seen(0.0, 2, **busy), seen(1.0, 1, **busy)])[-1] == 2
    assert targets(OBJECTIVE, [seen(0.0, 1, **busy), seen(1.0, 0, **busy), seen(9.0, 1, **busy)]) == [1, 2, 2]


@given(st.floats(0.001, 1), st.floats(0.001, 0.1), st.lists(st.integers(1, 32), min_size=1, max_size=50))
def test_pace_tells_what_full_batches_would_make(batch_s, row_s, sizes):
    pace = Pace(32)
    for rows in sizes:
        pace.add(rows, batch_s + row_s * rows)
    full = 32 / (batch_s + 32 * row_s)
    if len(set(sizes)) > 1:
        assert pace.capacity == pytest.approx(full, rel=1e-3)
    else:  # of one size, no more than what those batches made
        assert pace.capacity == pytest.approx(sizes[0] / (batch_s + row_s * sizes[0]), rel=1e-6)


@pytest.mark.parametrize("rate", [1.0, 20.0, 178.0, 261.0, 400.0])
@pytest.mark.parametrize("least", [0, 2])
def test_a_constant_load_is_answered_without_swinging(rate, least):
    arrivals = [Arrival(i / rate) for i in range(int(200 * rate))]
    policy = by_objective(replace(OBJECTIVE, min_replicas=least))
    outcome = Simulation(MACHINE, policy).run(arrivals, 200)
    counts = [count for _, count in outcome.targets]
    top = counts.index(max(counts)) if counts else 0
    assert counts[top:] == sorted(counts[top:], reverse=True)  # what the start asked for goes, and stays away
    assert max(outcome.batches) <= MACHINE.max_batch_size
    assert outcome.unready_kills == 0


def most_changes(seconds, objective):
    """Of a replica that is missed whenever it is let go: twice as rarely each time, up to `patience`."""
    longest_s = objective.patience * objective.keep * objective.startup_s
    return 2 * (log2(objective.patience) + seconds / longest_s + 1)


@given(st.lists(st.floats(0, 2), min_size=1, max_size=20), st.sampled_from([1.0, 2.0, 16.0, 256.0]))
def test_what_is_missed_soon_is_kept_longer_so_a_border_moves_replicas_seldom(away, patience):
    objective = replace(OBJECTIVE, patience=patience)
    two, one = {"arrivals": 130.0}, {"arrivals": 20.0}
    assert targets(objective, [seen(0.0, 2, **two), seen(0.0, 2, **one)]) == [2, 2]
    shares = cycle(away)
    memory, found, needed_s, again_s = Memory(), [], 0.0, 0.0
    for second in range(3600):
        looked = seen(float(second), 2, **(two if second >= again_s else one))
        target, memory = decide(looked, memory, objective)
        found.append(target)
        if second >= again_s:
            needed_s, again_s = second, inf
        elif again_s == inf and target == 1:  # away for up to twice as long as it was kept
            again_s = second + next(shares) * (second - 1 - needed_s)
    changes = sum(before != after for before, after in pairwise(found))
    assert changes <= most_changes(3600, objective)


def test_what_is_missed_late_is_kept_as_long_as_at_first_again():
    two, one = {"arrivals": 130.0}, {"arrivals": 20.0}
    keep_s = int(OBJECTIVE.keep * OBJECTIVE.startup_s)

    def kept_s(memory, now_s):
        """How long two are kept once they were needed, and what is remembered then."""
        _, memory = decide(seen(now_s, 2, **two), memory, OBJECTIVE)
        for second in range(1, 40 * keep_s):
            target, memory = decide(seen(now_s + second, 2, **one), memory, OBJECTIVE)
            if target == 1:
                return second - 1, memory
        raise AssertionError("they are kept for ever")

    first, memory = kept_s(Memory(), 0.0)
    then, memory = kept_s(memory, 2.0 * keep_s)
    later, _ = kept_s(memory, 1000.0 * keep_s)
    assert (first, then, later) == (keep_s, 2 * keep_s, keep_s)


def test_chance_at_a_border_moves_replicas_seldom():
    trace = Trace(1200, lambda second: 114.0)  # where one replica is nearly enough
    outcome = Simulation(MACHINE, by_objective(OBJECTIVE)).run(trace.arrivals(), 1200)
    assert len(outcome.targets) <= most_changes(1200, OBJECTIVE)


def test_a_simulation_ends_where_the_load_does():
    objective = replace(OBJECTIVE, min_replicas=0)
    outcome = Simulation(MACHINE, by_objective(objective)).run([Arrival(1.0), Arrival(2.0)], 120)
    assert outcome.targets[-1][1] == 0
    assert outcome.replica_s < 60
    assert len(outcome.latencies) == 2


@pytest.mark.parametrize("name", TRACES)
def test_fewer_replicas_answer_at_least_as_many_in_time_as_by_serves_default(name):
    from eagleray.actors.serving.peers import serves_own

    trace = TRACES[name]
    arrivals, end = trace.arrivals(), trace.seconds + 30
    theirs = Simulation(
        replace(MACHINE, look_back_s=30.0),
        serves_own(min_replicas=1, max_replicas=OBJECTIVE.max_replicas),
    ).run(arrivals, end)
    ours = Simulation(MACHINE, by_objective(OBJECTIVE)).run(arrivals, end)
    assert ours.within(OBJECTIVE.latency_s) >= theirs.within(OBJECTIVE.latency_s)
    assert ours.replica_s <= 0.7 * theirs.replica_s
