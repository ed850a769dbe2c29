"""How well a model marks volumes, by the very steps that serving takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch

from ...models.multimodal import MultimodalModel
from ...pipelines.assessing.spec import NotAssessable
from ...pipelines.assessing.volumes import VolumeAssessor
from ...pipelines.bundle import (
    BESIDE,
    MODULATION,
    PROBABILITIES,
    Arrays,
    BundleInfo,
    Lineage,
    LoadedBundle,
    Marking,
)
from ...pipelines.media.patches import marks_of
from ...pipelines.media.volumes import Volume, of_row
from ...pipelines.reading import CorpusReader
from ...pipelines.spec import Slicing
from ...workflows.errors import EaglerayError
from . import detection
from .detection import Outcome, Scan, judge
from .metrics import Bootstrap, Progress, report

THRESHOLD = 0.5
"""Probability from which on a voxel belongs to a candidate, as in serving: at a lower one vessels join
nodules (measured: a CPM of 6.8 % at 0.1, of 58.6 % at 0.5)."""
OVERLAP_SHARE = 0.25


class _Torch(LoadedBundle):
    """A bundle whose graphs are a model of torch."""

    def __init__(self, model: MultimodalModel, reader: CorpusReader, slicing: Slicing) -> None:
        vision = model.spec.vision
        assert vision is not None
        info = BundleInfo(
            embed_dim=0,
            classes=(),
            preparation=reader.info.preparation,
            graphs={},
            decoding=None,
            marking=Marking(
                size=vision.image_size,
                findings=vision.findings,
                threshold=THRESHOLD,
                slicing=slicing,
                reads_text=vision.reads_text,
            ),
            lineage=Lineage(run_id="", checkpoint="", corpus=""),
            files={},
        )
        super().__init__(reader.folder, info)
        self._model = model

    def run(self, graph: str, feed: Arrays, outputs: Sequence[str] | None = None) -> Arrays:
        """See `LoadedBundle`."""
        given = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in feed.items()}
        with torch.inference_mode():
            if graph == BESIDE:
                return {MODULATION: self._model.modulate(given["tokens"], given["token_mask"]).numpy()}
            likely = self._model.segment(given["image"], modulation=given.get(MODULATION))
        return {PROBABILITIES: likely.numpy()}


def texts_beside(reader: CorpusReader, which: Literal["own", "none", "another's"]) -> Sequence[str | None]:
    """What is read beside each record: the caption in the corpus's first language, if it has one.

    Args:
        reader: of a split.
        which: its own, none, or that of the next record of another category; none where there is no such one.

    Raises:
        EaglerayError: when the corpus has no texts.
    """
    if which == "none":
        return [None] * len(reader)
    if "captions" not in reader.info.columns:
        raise EaglerayError(
            "the corpus has no captions, which the model reads beside volumes",
            "give it some (report_share of inserted-nodules), or evaluate without (texts: none)",
        )
    language = reader.info.preparation.caption_languages[0]
    table = reader.table(np.arange(len(reader)), ["captions", "category"]).to_pylist()
    own = [
        next((one["text"] for one in row["captions"] if one["language"] == language), None) for row in table
    ]
    if which == "own":
        return own
    found: list[str | None] = []
    for number, row in enumerate(table):
        others = [*range(number + 1, len(table)), *range(number)]
        other = (n for n in others if own[n] and table[n]["category"] != row["category"])
        found.append(next((own[n] for n in other), None))
    return found


def marked_volumes(
    model: MultimodalModel,
    reader: CorpusReader,
    slicing: Slicing,
    how: Bootstrap,
    progress: Progress,
    *,
    texts: Sequence[str | None] = (),
    by_scan: bool = False,
) -> list[dict[str, Any]]:
    """CPM on whole volumes (Setio et al. 2017), and Dice of what is marked.

    A volume that can't be assessed has no candidates: what is in it is missed. What is marked where something
    else lies than the model is to find is neither right nor wrong, in both metrics.

    Args:
        model: with a head for marks.
        reader: of a corpus of volumes in Hounsfield units, with findings and regions.
        slicing: how they are cut into the slices that the model marks.
        how: intervals are made, by group.
        progress: told volumes done and all.
        texts: that stand beside each volume, for a model that reads them; none by default.
        by_scan: resample scans for the intervals, and not groups of them.
    """
    names = model.spec.findings
    assessor = VolumeAssessor(_Torch(model, reader, slicing), OVERLAP_SHARE)
    outcomes: list[Outcome] = []
    overlaps: list[tuple[float, float]] = []
    rows = np.arange(len(reader))
    for row in rows.tolist():
        record = reader.table(np.array([row]), ["volume", "findings", "regions"]).to_pylist()[0]
        scan = of_row(record["volume"])
        found = assessor.find(scan, texts[row] if texts else None)
        marks = marks_of(record, scan, names)
        true = np.zeros(scan.voxels.shape, np.bool_) if marks is None else marks > 0
        if isinstance(found, NotAssessable):
            centres, scores = np.zeros((0, 3)), np.zeros(0)
            marked = np.zeros_like(true)
        else:
            told = found.assessment.findings
            centres = np.array([(one.x_mm, one.y_mm, one.z_mm) for one in told]).reshape(-1, 3)
            scores = np.array([one.score for one in told])
            marked = found.marked(scan, 0.5).any(axis=0) & ~_elsewhere(record, scan, names)
        outcomes.append(judge(_scan(centres, scores, record["findings"], names)))
        overlaps.append((2.0 * (marked & true).sum(), float(marked.sum() + true.sum())))
        progress(row + 1, len(reader))
    groups = rows.tolist() if by_scan else reader.groups_of(rows)
    metrics = [detection.report("CPM", outcomes, groups, how)] if any(one.nodules for one in outcomes) else []
    values, weights = np.array(overlaps).T
    if weights.sum():
        metrics.append(report("Dice", values, groups, 0.0, how, weights=weights))
    return metrics


def _elsewhere(record: Mapping[str, Any], scan: Volume, names: Sequence[str]) -> np.ndarray:
    """Where findings (D, H, W) are that the model isn't to find."""
    others = sorted({one["label"] for one in record["findings"]} - set(names))
    marks = marks_of(dict(record), scan, others) if others else None
    return np.zeros(scan.voxels.shape, np.bool_) if marks is None else marks > 0


def _scan(
    centres: np.ndarray, scores: np.ndarray, findings: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> Scan:
    def balls(wanted: bool) -> tuple[np.ndarray, np.ndarray]:
        some = [one for one in findings if (one["label"] in names) == wanted]
        places = np.array([(one["x_mm"], one["y_mm"], one["z_mm"]) for one in some]).reshape(-1, 3)
        return places, np.array([one["diameter_mm"] for one in some], np.float64)

    return Scan(centres, scores, *balls(True), *balls(False))
