"""How well a model marks pictures: what is found at which rate of false alarms, and how exactly."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from ...models.multimodal import MultimodalModel
from ...pipelines.assessing.pictures import told_of
from ...pipelines.media.morphology import parts
from ...pipelines.reading import CorpusReader
from . import detection
from .data import batches
from .detection import Outcome
from .metrics import Bootstrap, Numbers, Progress, report

RATES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""False alarms a picture at which it is told what is found."""
STATED = 0.1
"""The rate at which it is told by kind."""
THRESHOLD = 0.5
"""Probability of anything from which on a pixel counts for Dice."""
FLOOR = 0.02
"""Probability below which a pixel is no candidate."""
PEAK_PX = 4
"""Around a peak no other is one."""
BESIDE_PX = 2
"""Around a finding a peak is none of its own."""


def marked(
    model: MultimodalModel, reader: CorpusReader, batch_rows: int, how: Bootstrap, progress: Progress
) -> list[dict[str, Any]]:
    """Found findings by false alarms a picture, by kind at `STATED`, and Dice by kind.

    A finding is a connected piece of what is marked, of one kind. It is found if the model marks a pixel of
    it, as whatever. A false alarm is a peak of the probability that lies in no finding nor beside one; of a
    piece that the model marks, there is one at least.

    Args:
        model: with a head for marks.
        reader: of the split, with the model's findings as `marks`.
        batch_rows: pictures marked together.
        how: intervals are made, by group.
        progress: told pictures done and all.
    """
    names = model.spec.findings
    outcomes: list[Outcome] = []
    kinds: list[list[int]] = []
    scores: list[list[float]] = []
    overlaps: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    groups: list[int] = []
    for rows, batch in batches(reader, model.spec, batch_rows, progress):
        with torch.inference_mode():
            beside = (
                model.modulate(batch["tokens"], batch["token_mask"]) if model.spec.marks_by_text else None
            )
            likely = model.segment(batch["image"], batch.get("reference"), beside).numpy()
        known = batch["marks"].flatten(1)[:, 0] >= 0
        for place in known.nonzero().flatten().tolist():
            marks = batch["marks"][place].numpy()
            found, kind, false = judge(likely[place], marks)
            told = told_of(likely[place], THRESHOLD)
            outcomes.append(Outcome(found[found > 0], false, len(found)))
            kinds.append(kind)
            scores.append(found.tolist())
            for number, name in enumerate(names):
                one, other = told == number + 1, marks == number + 1
                overlaps[name].append((2.0 * (one & other).sum(), float(one.sum() + other.sum())))
        groups += reader.groups_of(rows[known.numpy()])
    metrics: list[dict[str, Any]] = []
    if any(kinds):
        metrics.append(detection.report("findings found", outcomes, groups, how, RATES, "picture"))
        threshold = detection.froc(outcomes).threshold_at(STATED)
        flat = [
            (kind, score >= threshold, group)
            for some, found, group in zip(kinds, scores, groups, strict=True)
            for kind, score in zip(some, found, strict=True)
        ]
        for number, name in enumerate(names):
            hits = [(hit, group) for kind, hit, group in flat if kind == number]
            if hits:
                title = f"found at {STATED:g} false alarms a picture, {name}"
                metrics.append(report(title, [float(hit) for hit, _ in hits], [g for _, g in hits], 0.0, how))
    for name, pairs in overlaps.items():
        values, weights = np.array(pairs, np.float64).T
        if weights.sum():
            metrics.append(report(f"Dice, {name}", values, groups, 0.0, how, weights=weights))
    return metrics


def judge(likely: NDArray[np.float32], marks: NDArray[np.int64]) -> tuple[Numbers, list[int], Numbers]:
    """What becomes of a picture's findings.

    Args:
        likely: (K, H, W) probabilities.
        marks: (H, W) 0 nothing, k the finding k - 1.

    Returns:
        Of each finding the greatest probability of anything in it, 0 below `FLOOR`, and its kind; and the
        greatest probability of each false alarm.
    """
    anything = likely.sum(axis=0, dtype=np.float64)
    anything[anything < FLOOR] = 0
    found: list[float] = []
    kinds: list[int] = []
    for number in range(len(likely)):
        pieces, count = parts(marks == number + 1)
        if count:
            found += np.asarray(ndimage.maximum(anything, pieces, range(1, count + 1))).tolist()
            kinds += [number] * count
    beside = ndimage.maximum_filter(marks > 0, 2 * BESIDE_PX + 1)
    highest = ndimage.maximum_filter(anything, 2 * PEAK_PX + 1)
    peaks, count = parts((anything == highest) & (anything > 0) & np.logical_not(beside))
    heights = ndimage.maximum(anything, peaks, range(1, count + 1)) if count else []
    return np.array(found), kinds, np.array(heights)
