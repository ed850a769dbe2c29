"""How far what is asked lies from what the model was trained on: the population stability index.

With shares p of what is asked and q of the corpus in the same bins, it is Σ (p - q) ln(p / q), the sum of
both Kullback–Leibler divergences (Jeffreys 1946). Of n inputs like the corpus's and m of the corpus, in
B bins, chance alone makes about (B - 1)(1/n + 1/m) of it (Yurdakul 2018), which is taken off. By custom
0.1 is a small shift, and 0.25 one to act on.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import log

import numpy as np
from numpy.typing import NDArray

from ...pipelines.bundle import EMBEDDING, Arrays, LoadedBundle, Modality
from ...pipelines.media.cleaning import identify_language
from ...pipelines.statistics import Distribution, Measure
from .measuring import DriftGauge
from .messages import Message

ALARM = 0.25
"""From here on it is a shift to act on."""
LEAST = 200
"""Inputs of a modality without which nothing is told."""
WINDOW = 1000
"""Inputs of a modality that count: the last ones that were looked at."""
LOOKS_PER_S = 2.0
"""Inputs that are looked at in the long run; the first ones all are, until something can be told."""
TELLS_EVERY = 20
"""Inputs after which it is told anew."""


class Shift(Message):
    """How far a quantity lies from the corpus's."""

    quantity: str
    """Such as `image.brightness`."""
    index: float
    """Population stability index, less what chance makes of it; 0 at the least."""
    inputs: int
    """That it is of."""
    alarm: bool
    """Whether it is a shift to act on."""


class DriftResponse(Message):
    """How far what was asked lately lies from what the model was trained on."""

    shifts: list[Shift]
    """Of what there are enough inputs for, the largest first."""
    looked_at: dict[str, int]
    """Modality → inputs that count."""
    needed: int = LEAST
    """Inputs of a modality before its quantities are told."""


def stability(asked: Sequence[int], corpus: Sequence[int]) -> float:
    """The index of counts in the same bins, less what chance makes of it; 0 at the least.

    Half an input is added to each bin, so that none is empty.
    """
    bins, n, m = len(asked), sum(asked), sum(corpus)
    index = 0.0
    for here, there in zip(asked, corpus, strict=True):
        p, q = (here + 0.5) / (n + 0.5 * bins), (there + 0.5) / (m + 0.5 * bins)
        index += (p - q) * log(p / q)
    return max(0.0, index - (bins - 1) * (1 / n + 1 / m))


@dataclass
class _Window:
    """The last inputs of a modality, as the bins that their quantities are in."""

    known: dict[str, Distribution]
    rows: deque[tuple[int, ...]] = field(default_factory=deque[tuple[int, ...]])
    counts: dict[str, list[int]] = field(default_factory=dict[str, list[int]])
    allowance: float = LEAST
    since: float = 0.0
    told: int = 0

    def __post_init__(self) -> None:
        self.counts = {name: [0] * len(one.counts) for name, one in self.known.items()}

    def looks(self, now: float) -> bool:
        """Whether an input that comes now is looked at."""
        self.allowance = min(LEAST, self.allowance + (now - self.since) * LOOKS_PER_S)
        self.since = now
        if self.allowance < 1:
            return False
        self.allowance -= 1
        return True

    def add(self, row: tuple[int, ...]) -> None:
        """Count an input, and the oldest no more."""
        self.rows.append(row)
        gone = self.rows.popleft() if len(self.rows) > WINDOW else None
        for i, counts in enumerate(self.counts.values()):
            counts[row[i]] += 1
            if gone is not None:
                counts[gone[i]] -= 1


class Drift:
    """Compares what a replica is asked with what its model was trained on.

    Args:
        bundle: of the replica; without statistics nothing is compared.
        clock: seconds, of any start.
    """

    def __init__(self, bundle: LoadedBundle, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._gauge = clock, DriftGauge()
        self._windows: dict[str, _Window] = {}
        statistics = bundle.statistics
        if statistics is None:
            return
        self._measure = Measure(
            bundle.info.preparation, bundle.tokenizer, statistics.tokens, statistics.means
        )
        for modality, quantities in statistics.quantities.items():
            if quantities:
                self._windows[modality] = _Window(dict(quantities), since=clock())
        if "text" in self._windows:
            identify_language("")  # which loads it before anyone waits

    def add(self, modality: Modality, row: Arrays, outputs: Arrays) -> None:
        """Look at an input, as it was prepared and as its graph saw it; not at each of very many."""
        window = self._windows.get(modality)
        if window is None or not window.looks(self._clock()):
            return
        embedding: NDArray[np.float32] = outputs[EMBEDDING]
        found = self._measure(modality, row, embedding)
        window.add(tuple(one.bin_of(found[name]) for name, one in window.known.items()))
        window.told += 1
        if len(window.rows) >= LEAST and window.told >= TELLS_EVERY:
            window.told = 0
            for shift in self._shifts(modality, window):
                self._gauge.set(shift.quantity, shift.index)

    def told(self) -> DriftResponse | None:
        """What there is to tell; None if the bundle has no statistics."""
        if not self._windows:
            return None
        shifts = [
            shift
            for modality, window in self._windows.items()
            if len(window.rows) >= LEAST
            for shift in self._shifts(modality, window)
        ]
        return DriftResponse(
            shifts=sorted(shifts, key=lambda one: -one.index),
            looked_at={modality: len(window.rows) for modality, window in self._windows.items()},
        )

    def _shifts(self, modality: str, window: _Window) -> list[Shift]:
        found: list[Shift] = []
        for name, known in window.known.items():
            index = stability(window.counts[name], known.counts)
            found.append(
                Shift(
                    quantity=f"{modality}.{name}",
                    index=round(index, 4),
                    inputs=len(window.rows),
                    alarm=index >= ALARM,
                )
            )
        return found
