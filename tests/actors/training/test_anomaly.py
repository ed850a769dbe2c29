"""Detectors fitted to normal pictures: textures that have a spot or have none."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from eagleray.actors.stages.fit_anomaly import FitAnomalySpec, fit_anomaly
from eagleray.actors.training import anomaly as module
from eagleray.actors.training.anomalies import anomalies, gather, pieces, score
from eagleray.actors.training.anomaly import Marked, fit_detector, held_out, marks_of, normal_rows, read
from eagleray.actors.training.anomaly_spec import AnomalySpec
from eagleray.actors.training.checkpoint import load_model
from eagleray.actors.training.metrics import Bootstrap
from eagleray.pipelines.reading import CorpusReader
from eagleray.pipelines.stages.preprocess import PreprocessSpec, preprocess
from eagleray.workflows.artifacts import Checkpoint, Corpus
from eagleray.workflows.errors import EaglerayError

SIZE, NORMAL, DEFECTIVE = 32, 70, 12
SPEC = AnomalySpec(
    filters_px=(1.0,), components=3, passes=4, patches_per_picture=40, held_out=0.8, false_alarms=0.1
)


def texture(seed: int, spot: bool) -> tuple[np.ndarray, np.ndarray]:
    """Stripes with noise (S, S, 3), and where a bright spot is."""
    rng = np.random.default_rng(seed)
    stripes = 110 + 30 * np.sin((np.arange(SIZE) + rng.integers(8)) * 2 * np.pi / 8)
    pixels = np.repeat((stripes + rng.normal(0, 4, (SIZE, SIZE)))[..., None], 3, axis=2)
    mask = np.zeros((SIZE, SIZE), bool)
    if spot:
        row, column = rng.integers(6, SIZE - 10, 2)
        mask[row : row + 4, column : column + 4] = True
        pixels[mask] = 240
    return pixels.clip(0, 255).astype(np.uint8), mask


def png(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(array).save(content, "PNG")
    return content.getvalue()


@pytest.fixture(scope="module")
def textures(ray_cluster, tmp_path_factory):
    """A folder of textures in MVTec AD's layout, as a corpus."""
    source, work = tmp_path_factory.mktemp("textures"), tmp_path_factory.mktemp("corpus")
    for split, count, spot in (("train", NORMAL, False), ("test", 20, False), ("test", DEFECTIVE, True)):
        kind = "spot" if spot else "good"
        for number in range(count):
            pixels, mask = texture(hash_of(split, kind, number), spot)
            picture = source / split / kind / f"{number:03}.png"
            picture.parent.mkdir(parents=True, exist_ok=True)
            picture.write_bytes(png(pixels))
            if spot:
                drawn = source / "ground_truth" / kind / f"{number:03}_mask.png"
                drawn.parent.mkdir(parents=True, exist_ok=True)
                drawn.write_bytes(png(mask.astype(np.uint8) * 255))
    spec = {
        "source": {"kind": "mvtec-ad", "path": str(source)},
        "preparation": {"image_size": SIZE, "stored_image_size": SIZE},
        "splits": {"by_group": {"train/*": "train", "test/*": "test"}},
    }
    from ..conftest import _context

    preprocess.function(_context(work, "corpus"), PreprocessSpec.model_validate(spec))
    return work / "corpus"


def hash_of(split: str, kind: str, number: int) -> int:
    return {"train": 0, "test": 1000}[split] + {"good": 0, "spot": 500}[kind] + number


@pytest.fixture(scope="module")
def found(textures, model, tmp_path_factory):
    reader, scratch = CorpusReader(textures, "train"), tmp_path_factory.mktemp("scratch")
    return fit_detector(model, reader, SPEC, scratch, "c" * 64, lambda step, total: None, "stage")


def test_it_tells_what_it_never_saw(found, textures):
    detector, _ = found
    metrics = anomalies(
        detector, CorpusReader(textures, "test"), 8, Bootstrap(200, 0.95, 0), lambda step, total: None
    )
    by_name = {one["name"]: one for one in metrics}
    assert by_name["AUROC, pictures"]["value"] > 0.99
    assert by_name["AUROC, pixels"]["value"] > 0.95
    assert by_name["PRO up to 30% false positives"]["value"] > 0.9
    assert by_name["false alarms, of normal pictures"]["value"] <= 0.3
    defects = by_name["defects found"]
    assert (defects["value"], defects["queries"]) == (1.0, DEFECTIVE)
    assert [part["name"] for part in defects["parts"]] == ["5 to 16 px", "spot"]


def test_the_threshold_is_set_on_pictures_that_nothing_was_fitted_to(found, textures):
    detector, info = found
    rows = normal_rows(CorpusReader(textures, "train"), 16)
    assert info.pictures + info.held_out == len(rows) == NORMAL
    assert info.held_out == 56
    assert info.patches == 40 * info.pictures
    assert np.diff(info.log_likelihoods).min() > 0
    others = gather(score(detector, CorpusReader(textures, "train"), 16, lambda step, total: None))
    assert 0.02 <= (others.highest >= info.threshold).mean() <= 0.2


def test_neither_batches_nor_chunks_change_what_is_fitted(found, textures, model, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 97)
    spec = SPEC.model_copy(update={"batch_rows": 5})
    reader = CorpusReader(textures, "train")
    other, info = fit_detector(model, reader, spec, tmp_path, "c" * 64, lambda step, total: None, "stage")
    for name, ours in found[0].state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], ours, rtol=1e-6, atol=1e-6)
    assert info.threshold == pytest.approx(found[1].threshold, rel=1e-6)


def test_groups_are_held_out_whole():
    groups = np.repeat([7, 3, 9, 1], 25)
    out = held_out(groups.tolist(), 0.3, 0)
    assert len(set(groups[out])) == 1
    assert not set(groups[out]) & set(groups[~out])
    assert 0 < held_out([1, 2], 0.99, 0).sum() < 2
    assert held_out([5] * 50, 0.3, 0).sum() == 15


def test_pieces_join_over_corners_and_keep_their_labels():
    mask = np.zeros((6, 6), np.uint8)
    mask[0, 0] = mask[1, 1] = 1
    mask[4, 4] = 1
    mask[0, 5] = 2
    scores = np.arange(36.0, dtype=np.float32).reshape(6, 6)
    told = pieces(scores, Marked(mask, ("hole", "crack", "spot")))
    assert [(one.tolist(), label) for one, label in told] == [
        ([0, 7], "hole"),
        ([28], "hole"),
        ([5], "crack"),
    ]


def test_an_artifact_is_of_one_checkpoint(textures, checkpoint_folder, make_context):
    context, reader = make_context("anomaly"), CorpusReader(textures, "test")
    corpus = Corpus(textures, "d" * 64, "f", {})
    spec = FitAnomalySpec.model_validate({**SPEC.model_dump(), "encoder": True, "stride": 4})
    facts = fit_anomaly.function(
        context, spec, corpus=corpus, checkpoint=Checkpoint(checkpoint_folder, "c" * 64, "f", {})
    )
    assert sorted(path.name for path in context.output.iterdir()) == ["anomaly.json", "anomaly.safetensors"]
    assert facts["checkpoint"] == "c" * 64
    model = load_model(checkpoint_folder)
    detector, info = read(context.output, model, "c" * 64, "stage")
    assert info.spec == AnomalySpec.model_validate(spec.model_dump(include=set(AnomalySpec.model_fields)))
    assert float(detector.threshold) == pytest.approx(facts["threshold"])
    images = torch.from_numpy(reader.examples(np.arange(3), None)["image"])
    with torch.no_grad():
        assert detector(images).shape == (3, SIZE, SIZE)
    with pytest.raises(EaglerayError, match="features of checkpoint cccccccccccc, not of dddddddddddd"):
        read(context.output, model, "d" * 64, "stage")


def test_what_can_not_be_fitted_says_why(textures, model, corpus_folder, tmp_path):
    reader = CorpusReader(textures, "train")

    def fit(given, **changes):
        spec = SPEC.model_copy(update=changes)
        return fit_detector(model, given, spec, tmp_path, "c" * 64, lambda step, total: None, "stage")

    with pytest.raises(EaglerayError, match="has no masks"):
        marks_of(CorpusReader(corpus_folder, "train"), np.arange(2))
    with pytest.raises(EaglerayError, match="fewer than 5000 components"):
        fit(reader, components=5000)
    with pytest.raises(EaglerayError, match=r"56 normal pictures are held out; .* quantile takes 99"):
        fit(reader, rule="quantile", false_alarms=0.01)
