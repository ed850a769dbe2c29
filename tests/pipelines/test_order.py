"""The order of training."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from eagleray.pipelines.order import BURST, LANES, rows_at

SIZES = st.one_of(st.integers(1, 300), st.integers(1, 40_000))


@given(st.integers(0, 2**32), SIZES, st.integers(50, 5000))
@settings(deadline=None, max_examples=60)
def test_each_epoch_is_a_permutation_whatever_the_batch_size(seed, num_records, batch_size):
    edges = [*range(0, 2 * num_records, batch_size), 2 * num_records]
    order = np.concatenate([rows_at(seed, num_records, *edge)[0] for edge in itertools.pairwise(edges)])
    for epoch in range(2):
        part = order[epoch * num_records : (epoch + 1) * num_records]
        assert np.array_equal(np.sort(part), np.arange(num_records))


@given(st.integers(0, 2**32), SIZES, st.data())
@settings(deadline=None, max_examples=60)
def test_any_position_is_reached_without_those_before_it(seed, num_records, data):
    whole = rows_at(seed, num_records, 0, 2 * num_records)
    start = data.draw(st.integers(0, 2 * num_records))
    stop = data.draw(st.integers(start, 2 * num_records))
    for part, expected in zip(rows_at(seed, num_records, start, stop), whole, strict=True):
        assert np.array_equal(part, expected[start:stop])


def test_a_row_gets_another_seed_in_every_epoch_and_run():
    seeds = np.concatenate([rows_at(seed, 50, 0, 1000)[1] for seed in (0, 1)])
    assert len(np.unique(seeds)) == 2000


def test_epochs_and_runs_have_orders_of_their_own():
    orders = {tuple(rows_at(seed, 50, 50 * e, 50 * e + 50)[0]) for seed in (0, 1) for e in range(3)}
    assert len(orders) == 6


@pytest.mark.parametrize("num_records", [200_000, 1_000_003])
def test_the_order_has_nothing_to_do_with_the_files_order(num_records):
    """A uniformly random permutation of n would have a correlation of about 1/sqrt(n)."""
    for seed in range(3):
        order = rows_at(seed, num_records, 0, num_records)[0]
        assert abs(spearmanr(order, np.arange(num_records))[0]) < 0.01
        next_epoch = rows_at(seed, num_records, num_records, 2 * num_records)[0]
        # 64 lanes turned by independent angles: a standard deviation of 0.056.
        assert abs(spearmanr(np.argsort(order), np.argsort(next_epoch))[0]) < 0.2


def test_every_window_is_spread_over_the_whole_corpus():
    """So that a corpus sorted by class gives no batch of one class."""
    num_records, batch = 100_000, 256
    order = rows_at(0, num_records, 0, num_records)[0]
    shares = np.array(
        [np.histogram(order[i : i + batch], 8, (0, num_records))[0] for i in range(0, 99_000, batch)]
    )
    assert shares.min() > 0
    assert shares.std(axis=0).max() < 1.3 * np.sqrt(batch / 8)


def test_shards_are_read_front_to_back():
    """In each lane, from window to window, rows follow each other and go around once at most."""
    num_records, window = 150_000, LANES * BURST
    order = rows_at(7, num_records, 0, num_records)[0]
    lanes = np.searchsorted(
        np.arange(1, LANES + 1) * num_records // LANES, np.arange(num_records), side="right"
    )
    num_windows = num_records // window
    for lane in range(LANES):
        starts: list[int] = []
        for number in range(num_windows - 1):
            rows = np.sort(order[number * window : (number + 1) * window])
            mine = rows[lanes[rows] == lane]
            assert len(mine) == BURST
            gaps = np.flatnonzero(np.diff(mine) != 1)
            assert len(gaps) <= 1  # once around
            starts.append(int(mine[0] if not len(gaps) else mine[gaps[0] + 1]))
        assert sum(later < earlier for earlier, later in itertools.pairwise(starts)) <= 1
