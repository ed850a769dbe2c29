"""Bundles whose model is a function of pixels."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from eagleray.pipelines.bundle import MARKS, PROBABILITIES, LoadedBundle, Marking


class FakeBundle(LoadedBundle):
    """Runs a function where a bundle would run its graph.

    Args:
        marking: what `bundle.json` says.
        model: windows (B, 3, S, S) in [-1, 1], or how they differ from their references → probabilities
            (B, K, S, S).

    Attributes:
        batches: how many windows each run was given.
    """

    def __init__(self, marking: Marking, model: Callable[[np.ndarray], np.ndarray]) -> None:
        self.info: Any = SimpleNamespace(marking=marking, anomaly=None)
        self.model, self.batches = model, list[int]()

    def run(self, graph: str, feed: dict[str, np.ndarray], outputs: tuple[str, ...]) -> dict[str, np.ndarray]:
        """As `LoadedBundle.run`."""
        assert (graph, outputs) == (MARKS, (PROBABILITIES,))
        windows = feed["image"]
        if self.info.marking.compares:
            assert feed["reference"].shape == windows.shape
            windows = windows - feed["reference"]
        else:
            assert set(feed) == {"image"}
        assert windows.dtype == np.float32
        assert windows.shape[1:] == (3, self.info.marking.size, self.info.marking.size)
        self.batches.append(len(windows))
        return {PROBABILITIES: self.model(windows).astype(np.float32)}


def bright(windows: np.ndarray) -> np.ndarray:
    """What is light in the own slice, or in green, is a finding: its brightness is how likely."""
    return (windows[:, 1:2] + 1) / 2
