"""How well an anomaly detector tells normal pictures, pixels and regions from others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...models.anomaly import AnomalyDetector
from ...pipelines.media.morphology import parts
from ...pipelines.reading import CorpusReader
from .anomaly import Marked, marks_of
from .localisation import Region, picture_metric, pixel_metrics
from .metrics import Bootstrap, Progress, report

RATES = (0.05, 0.1, 0.2)
"""False alarms at which it is told what is found: shares of the split's normal pictures."""
SIZES = {"up to 4 px": 4, "5 to 16 px": 16, "17 to 64 px": 64, "over 64 px": np.inf}
"""Name → the largest area of a defect in it, pixels."""
Scores = NDArray[np.float32]


@dataclass(frozen=True)
class Scored:
    """What a detector says of a split.

    Attributes:
        highest: (N,) greatest score of each picture, nats.
        normal: scores of its pixels on which nothing is marked.
        defective: (N,) whether anything is.
        groups: (N,) numbers from 0 on.
        defects: of all pictures.
    """

    highest: Scores
    normal: Sequence[Scores]
    defective: NDArray[np.bool_]
    groups: NDArray[np.int64]
    defects: Sequence[Region]


def score(
    detector: AnomalyDetector, reader: CorpusReader, batch_rows: int, progress: Progress
) -> Iterator[tuple[Scores, Marked, int]]:
    """Scores (S, S), marks and group of every picture of which it is known what is marked."""
    for start in range(0, len(reader), batch_rows):
        rows = np.arange(start, min(start + batch_rows, len(reader)))
        with torch.inference_mode():
            maps = detector(torch.from_numpy(reader.examples(rows, None)["image"])).numpy()
        for nats, marked, group in zip(maps, marks_of(reader, rows), reader.groups_of(rows), strict=True):
            if marked is not None:
                yield nats, marked, group
        progress(int(rows[-1]) + 1, len(reader))


def gather(pictures: Iterable[tuple[Scores, Marked, int]]) -> Scored:
    """What scores (S, S) say of pictures, given what is marked in each, and its group."""
    highest: list[float] = []
    normal: list[Scores] = []
    groups: list[int] = []
    defects: list[list[tuple[Scores, str]]] = []
    for scores, marked, group in pictures:
        highest.append(float(scores.max()))
        normal.append(scores[marked.mask == 0])
        groups.append(group)
        defects.append(pieces(scores, marked))
    _, numbers = np.unique(groups, return_inverse=True)
    return Scored(
        highest=np.array(highest, np.float32),
        normal=normal,
        defective=np.array([bool(some) for some in defects], np.bool_),
        groups=numbers.astype(np.int64),
        defects=[
            Region(one, number, label)
            for some, number in zip(defects, numbers.tolist(), strict=True)
            for one, label in some
        ],
    )


def pieces(scores: Scores, marked: Marked) -> list[tuple[Scores, str]]:
    """Scores (P,) of each defect's pixels in a picture (S, S), and what it is."""
    found: list[tuple[Scores, str]] = []
    for number, label in enumerate(marked.labels, 1):
        numbered, count = parts(marked.mask == number)
        found += [(scores[numbered == piece], label) for piece in range(1, count + 1)]
    return found


def anomalies(
    detector: AnomalyDetector, reader: CorpusReader, batch_rows: int, how: Bootstrap, progress: Progress
) -> list[dict[str, Any]]:
    """AUROC over pictures and pixels, PRO, false alarms, and defects found by kind and by size.

    A defect is found if any of its pixels reaches the threshold; a normal picture in which one does is a
    false alarm. Besides the detector's own threshold there are those at which `RATES` of the split's own
    normal pictures are: these say what the scores are worth where the threshold is right, and their intervals
    don't count that they were chosen on the split.

    Args:
        detector: that is evaluated.
        reader: of the split.
        batch_rows: pictures scored together.
        how: intervals are made, by group.
        progress: told pictures done and all.
    """
    scored = gather(score(detector, reader, batch_rows, progress))
    metrics = told(scored, how)
    own, normal = float(detector.threshold), ~scored.defective
    if normal.any():
        alarms = (scored.highest[normal] >= own).astype(np.float64)
        metrics.append(report("false alarms, of normal pictures", alarms, scored.groups[normal], 0.0, how))
    if scored.defects:
        metrics.append(found_at(own, "defects found", scored.defects, how))
    return metrics


def told(scored: Scored, how: Bootstrap) -> list[dict[str, Any]]:
    """What scores are worth, whatever the threshold: see `anomalies`."""
    metrics: list[dict[str, Any]] = []
    normal, defects = ~scored.defective, scored.defects
    if normal.any() and not normal.all():
        metrics.append(picture_metric(scored.highest, scored.defective, scored.groups, how))
    if defects and any(len(one) for one in scored.normal):
        metrics += pixel_metrics(scored.normal, scored.groups, defects, how)
    for rate in RATES if defects and normal.any() else ():
        reached = float(np.quantile(scored.highest[normal], 1 - rate))
        metrics.append(found_at(reached, f"defects found at {rate:.0%} false alarms", defects, how))
    return metrics


def found_at(threshold: float, name: str, defects: Sequence[Region], how: Bootstrap) -> dict[str, Any]:
    """The share of defects that reach a threshold; its parts by size and by kind."""
    hits = np.array([one.scores.max() >= threshold for one in defects], np.float64)
    areas = np.array([one.scores.size for one in defects])
    labels = np.array([one.label for one in defects])
    limits = [0, *SIZES.values()]
    some = {
        size: (areas > least) & (areas <= most)
        for size, least, most in zip(SIZES, limits, limits[1:], strict=False)
    }
    some |= {label: labels == label for label in dict.fromkeys(labels.tolist())}
    return report(name, hits, [one.group for one in defects], 0.0, how, parts=some)
