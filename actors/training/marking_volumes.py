"""How well a model marks volumes, by the very steps that serving takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...models.multimodal import MultimodalModel
from ...pipelines.assessing.spec import NotAssessable
from ...pipelines.assessing.volumes import VolumeAssessor
from ...pipelines.bundle import PROBABILITIES, Arrays, BundleInfo, Lineage, LoadedBundle, Marking
from ...pipelines.media.patches import marks_of
from ...pipelines.media.volumes import of_row
from ...pipelines.reading import CorpusReader
from ...pipelines.spec import Slicing
from . import detection
from .detection import Outcome, Scan, judge
from .metrics import Bootstrap, Progress, report

THRESHOLD = 0.5
"""Probability from which on a voxel belongs to a candidate, as in serving: at a lower one vessels join
nodules (measured: a CPM of 6.8 % at 0.1, of 58.6 % at 0.5)."""
OVERLAP_SHARE = 0.25


class _Torch(LoadedBundle):
    """A bundle whose one graph is a model of torch."""

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
                size=vision.image_size, findings=vision.findings, threshold=THRESHOLD, slicing=slicing
            ),
            lineage=Lineage(run_id="", checkpoint="", corpus=""),
            files={},
        )
        super().__init__(Path(), info)
        self._model = model

    def run(self, graph: str, feed: Arrays, outputs: Sequence[str] | None = None) -> Arrays:
        """See `LoadedBundle`."""
        with torch.inference_mode():
            likely = self._model.segment(torch.from_numpy(np.ascontiguousarray(feed["image"])))
        return {PROBABILITIES: likely.numpy()}


def marked_volumes(
    model: MultimodalModel, reader: CorpusReader, slicing: Slicing, how: Bootstrap, progress: Progress
) -> list[dict[str, Any]]:
    """CPM on whole volumes (Setio et al. 2017), and Dice of what is marked.

    A volume that can't be assessed has no candidates: what is in it is missed.

    Args:
        model: with a head for marks.
        reader: of a corpus of volumes in Hounsfield units, with findings and regions.
        slicing: how they are cut into the slices that the model marks.
        how: intervals are made, by group.
        progress: told volumes done and all.
    """
    names = model.spec.findings
    assessor = VolumeAssessor(_Torch(model, reader, slicing), OVERLAP_SHARE)
    outcomes: list[Outcome] = []
    overlaps: list[tuple[float, float]] = []
    rows = np.arange(len(reader))
    for row in rows.tolist():
        record = reader.table(np.array([row]), ["volume", "findings", "regions"]).to_pylist()[0]
        scan = of_row(record["volume"])
        found = assessor.find(scan)
        marks = marks_of(record, scan, names)
        true = np.zeros(scan.voxels.shape, np.bool_) if marks is None else marks > 0
        if isinstance(found, NotAssessable):
            centres, scores = np.zeros((0, 3)), np.zeros(0)
            marked = np.zeros_like(true)
        else:
            told = found.assessment.findings
            centres = np.array([(one.x_mm, one.y_mm, one.z_mm) for one in told]).reshape(-1, 3)
            scores = np.array([one.score for one in told])
            marked = found.marked(scan, 0.5).any(axis=0)
        outcomes.append(judge(_scan(centres, scores, record["findings"], names)))
        overlaps.append((2.0 * (marked & true).sum(), float(marked.sum() + true.sum())))
        progress(row + 1, len(reader))
    groups = reader.groups_of(rows)
    metrics = [detection.report("CPM", outcomes, groups, how)] if any(one.nodules for one in outcomes) else []
    values, weights = np.array(overlaps).T
    if weights.sum():
        metrics.append(report("Dice", values, groups, 0.0, how, weights=weights))
    return metrics


def _scan(
    centres: np.ndarray, scores: np.ndarray, findings: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> Scan:
    def balls(wanted: bool) -> tuple[np.ndarray, np.ndarray]:
        some = [one for one in findings if (one["label"] in names) == wanted]
        places = np.array([(one["x_mm"], one["y_mm"], one["z_mm"]) for one in some]).reshape(-1, 3)
        return places, np.array([one["diameter_mm"] for one in some], np.float64)

    return Scan(centres, scores, *balls(True), *balls(False))
