"""Whole volumes are evaluated by what is in them, with the text that stands beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eagleray.actors.stages.evaluate import EvaluateSpec
from eagleray.actors.training.marking_volumes import OVERLAP_SHARE, _Torch, marked_volumes, texts_beside
from eagleray.actors.training.metrics import Bootstrap
from eagleray.models.multimodal import MultimodalModel
from eagleray.models.spec import ModelSpec
from eagleray.pipelines.assessing.volumes import VolumeAssessor
from eagleray.pipelines.media.patches import marks_of
from eagleray.pipelines.media.volumes import of_row
from eagleray.pipelines.reading import CorpusReader
from eagleray.pipelines.spec import Slicing
from eagleray.pipelines.stages.preprocess import PreprocessSpec, preprocess
from eagleray.workflows.errors import EaglerayError

from ...pipelines.chest_files import write_chest
from ..conftest import MakeContext, _context

HOW = Bootstrap(100, 0.95, 0)
SLICING = Slicing(spacing_mm=(4.0, 3.0, 3.0))
VISION = {
    **{"image_size": 32, "patch_size": 4, "window_size": 4, "embed_dim": 8, "depths": [1], "num_heads": [2]},
    **{"pyramid_width": 8, "findings": ["nodule"]},
}


class Marker(MultimodalModel):
    """Marks everything, and nothing once a text says that there is a nodule."""

    def segment(self, image: torch.Tensor, modulation: torch.Tensor | None = None) -> torch.Tensor:
        told = 0.0 if modulation is None else modulation[:, :1, None, None]
        return torch.full_like(image[:, :1], 50.0) - told

    def modulate(self, tokens: torch.Tensor, token_mask: torch.Tensor) -> torch.Tensor:
        return 100.0 * (token_mask.sum(dim=1, keepdim=True) > 12)


def corpus(make_context: MakeContext, folder: Path, **fields: object) -> Path:
    source = {"kind": "inserted-nodules", "path": str(folder), "digest": None, "diameter_mm": [12, 24]}
    spec = PreprocessSpec.model_validate(
        {
            "source": {**source, "variants": 5, "empty_share": 0.4, "cts": ["radiomics-lung1"], **fields},
            "preparation": {"image_size": 32, "stored_image_size": 32, "vocab_size": 300, "max_tokens": 64},
            "splits": {"by_group": {"*": "train"}},
        }
    )
    context = make_context("corpus")
    preprocess.function(context, spec)
    return context.output


@pytest.fixture(scope="module")
def reader(ray_cluster, tmp_path_factory) -> CorpusReader:
    work = tmp_path_factory.mktemp("volumes")
    folder = corpus(lambda name: _context(work, name), write_chest(work / "chest"), report_share=1)
    return CorpusReader(folder, "train", ("nodule",))


def marker(reads_text: bool = False) -> MultimodalModel:
    text = {"d_model": 16, "num_layers": 1, "num_heads": 2} if reads_text else None
    vision = {**VISION, "reads_text": reads_text}
    spec = ModelSpec.model_validate({"audio": None, "decoder": None, "text": text, "vision": vision})
    return Marker(spec, 300, 0, ["segmentation"]).eval()


def measured(reader: CorpusReader, model: MultimodalModel, **how: Any) -> list[dict[str, Any]]:
    return marked_volumes(model, reader, SLICING, HOW, lambda step, total: None, **how)


def values(metrics: list[dict[str, Any]]) -> dict[str, float]:
    return {one["name"]: one["value"] for one in metrics}


def test_what_is_not_to_be_found_is_neither_right_nor_wrong(reader):
    assessor = VolumeAssessor(_Torch(marker(), reader, SLICING), OVERLAP_SHARE)
    hits, sizes = 0, 0
    for row in range(len(reader)):
        record = reader.table(np.array([row]), ["volume", "findings", "regions"]).to_pylist()[0]
        scan = of_row(record["volume"])
        true, lesion = (marks_of(record, scan, [name]) > 0 for name in ("nodule", "lesion"))
        marked = assessor.find(scan).marked(scan, 0.5).any(axis=0)
        assert (marked & lesion).any()
        marked &= ~lesion
        hits, sizes = hits + 2 * (marked & true).sum(), sizes + marked.sum() + true.sum()
    assert values(measured(reader, marker()))["Dice"] == pytest.approx(hits / sizes)


def test_intervals_are_over_patients_or_over_scans(reader):
    patients, scans = (measured(reader, marker(), by_scan=by_scan) for by_scan in (False, True))
    assert values(patients) == values(scans)
    # one patient: nothing follows for another; several scans: something for further ones of that patient
    assert {one["low"] for one in patients} == {None}
    assert all(one["low"] <= one["value"] <= one["high"] for one in scans)


def test_a_model_that_reads_texts_is_given_those_that_are_asked_for(reader):
    plain = values(measured(reader, marker()))
    without, by_own = (
        values(measured(reader, marker(reads_text=True), texts=texts_beside(reader, which)))
        for which in ("none", "own")
    )
    assert without == plain
    assert by_own["Dice"] == 0 < plain["Dice"]  # it marks nothing where a nodule is told


def test_texts_are_ones_own_or_contradict(reader):
    kinds = [one["category"] for one in reader.table(np.arange(len(reader)), ["category"]).to_pylist()]
    assert set(kinds) == {"none", "nodules"}
    own, another = (texts_beside(reader, which) for which in ("own", "another's"))
    assert [one == "No nodule is seen." for one in own] == [kind == "none" for kind in kinds]
    assert [one == "No nodule is seen." for one in another] == [kind != "none" for kind in kinds]
    assert texts_beside(reader, "none") == [None] * len(reader)


def test_a_corpus_without_texts_is_told(ray_cluster, make_context, tmp_path):
    folder = corpus(make_context, write_chest(tmp_path / "chest"), variants=1)
    with pytest.raises(EaglerayError, match="no captions"):
        texts_beside(CorpusReader(folder, "train"), "own")


@pytest.mark.parametrize("fields", [{"resampled": "scan"}, {"texts": "none"}])
def test_what_is_for_volumes_needs_slicing(fields):
    with pytest.raises(ValueError, match="slicing"):
        EvaluateSpec.model_validate(fields)
    EvaluateSpec.model_validate({**fields, "slicing": {"spacing_mm": [1, 1, 1]}})
