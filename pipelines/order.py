"""The order in which records are trained on: a pure function of seed, epoch and position.

The rows of a split are cut into LANES contiguous stretches of equal length. A window takes the next BURST
rows of every lane and shuffles them; the next window goes on where it stopped. So a window is spread evenly
over the whole split, every shard is read front to back (from a place that each epoch draws anew, around
once), and any position can be reached without going through those before it.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

LANES = 64
BURST = 32

Rows = NDArray[np.int64]
Seeds = NDArray[np.uint64]


def rows_at(seed: int, num_records: int, start: int, stop: int) -> tuple[Rows, Seeds]:
    """The rows at positions `start` … `stop` of an endless training, and a seed for each.

    Epochs are permutations, laid end to end without a gap: a batch may straddle two.

    Args:
        seed: of the whole order.
        num_records: of the split.
        start: first position, counted from the first record of the first epoch.
        stop: one more than the last position.

    Returns:
        rows (stop - start,) int64 and seeds (stop - start,) uint64.
    """
    positions = np.arange(start, stop, dtype=np.int64)
    epochs, places = positions // num_records, positions % num_records
    rows = np.empty(len(positions), np.int64)
    window = LANES * BURST
    last = max(0, num_records // LANES // BURST - 1)
    windows = np.minimum(places // window, last)
    for epoch, number in np.unique(np.stack([epochs, windows]), axis=1).T.tolist():
        here = (epochs == epoch) & (windows == number)
        rows[here] = _window(seed, epoch, number, number == last, num_records)[places[here] - number * window]
    return rows, mix(mix(np.uint64(seed), epochs), rows)


def share(start: int, stop: int, rank: int, num_ranks: int) -> tuple[int, int]:
    """The part of positions `start` … `stop` that one of `num_ranks` workers takes: contiguous, all of
    one size but for one record.
    """
    count = stop - start
    return start + rank * count // num_ranks, start + (rank + 1) * count // num_ranks


@lru_cache(maxsize=4)
def _window(seed: int, epoch: int, number: int, is_last: bool, num_records: int) -> Rows:
    """The rows of one window, shuffled; the last one takes what is left of every lane."""
    edges = np.arange(LANES + 1, dtype=np.int64) * num_records // LANES
    lengths = np.diff(edges)
    # A lane starts anywhere, but all lanes together evenly, so that no window leans to the split's beginning.
    draw = np.random.default_rng([seed, epoch])
    offsets = ((draw.permutation(LANES) + draw.random()) / LANES * lengths).astype(np.int64)
    begin = number * BURST
    rows: list[Rows] = []
    for lane in np.flatnonzero(lengths).tolist():
        end = int(lengths[lane]) if is_last else begin + BURST
        rows.append(edges[lane] + (offsets[lane] + np.arange(begin, end)) % lengths[lane])
    order = np.random.default_rng([seed, epoch, number]).permutation(np.concatenate(rows))
    order.flags.writeable = False
    return order


def mix(seeds: Seeds | np.uint64, values: Rows | int) -> Seeds:
    """Hash seeds with values, elementwise: SplitMix64's finaliser (Steele et al. 2014, figure 11)."""
    with np.errstate(over="ignore"):
        mixed = seeds + (np.asarray(values).astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))
