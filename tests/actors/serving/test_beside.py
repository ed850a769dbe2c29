"""A text beside a picture changes what is marked in it; without one, nothing does."""

import base64
import io

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image

from eagleray.actors.serving.application import Together, describe
from eagleray.actors.serving.batching import Encoder
from eagleray.actors.serving.exporting import ExportOptions, export_bundle
from eagleray.actors.serving.ingress import build_api
from eagleray.actors.serving.quantising import Forms
from eagleray.actors.serving.spec import ServingOptions
from eagleray.commands.assessing import assess_files
from eagleray.models.multimodal import MultimodalModel
from eagleray.models.spec import ModelSpec
from eagleray.pipelines.assessing.pictures import PictureAssessor
from eagleray.pipelines.bundle import BESIDE, MARKS, Lineage, load_bundle
from eagleray.pipelines.reading import read_info
from eagleray.workflows.errors import EaglerayError

SPEC = {
    "audio": None,
    "decoder": None,
    "vision": {
        **{"patch_size": 4, "window_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2]},
        **{"pyramid_width": 8, "findings": ["crack", "hole"], "reads_text": True},
    },
    "text": {"d_model": 16, "num_layers": 1, "num_heads": 2, "max_tokens": 8},
}
LINEAGE = Lineage(run_id="run", checkpoint="c" * 64, corpus="d" * 64)
REPORT = "A red frog and a blue star."


@pytest.fixture(scope="module")
def model(corpus_folder) -> MultimodalModel:
    info = read_info(corpus_folder)
    torch.manual_seed(0)
    vision = {**SPEC["vision"], "image_size": info.preparation.image_size}
    spec = ModelSpec.model_validate({**SPEC, "vision": vision})
    found = MultimodalModel(spec, info.vocab_size, 0, ["segmentation"]).eval()
    with torch.no_grad():
        found.heads.modulation.linear.weight *= 20  # at random weights a text says little
    return found


@pytest.fixture(scope="module")
def bundle(model, corpus_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("beside")
    forms = Forms(("int8", "float16"), max_flips=1.0)
    export_bundle(model, corpus_folder, folder, LINEAGE, ExportOptions(1e-4, 8, 4, 0, 8, forms=forms))
    return load_bundle(folder)


@pytest.fixture(scope="module")
def client(bundle):
    encoder = Encoder(lambda: bundle, 4, ServingOptions().limits, 1)
    api = build_api(
        Together(encoder, None), describe(bundle.info, "b" * 64, ServingOptions()), ServingOptions()
    )
    with TestClient(api) as found:
        yield found
    encoder.close()


def picture() -> np.ndarray:
    squares = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(squares).resize((96, 96), Image.Resampling.NEAREST))


def png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture()).save(buffer, "PNG")
    return buffer.getvalue()


def test_the_graphs_mark_as_torch_does_with_a_text_and_without(model, bundle):
    assert bundle.info.marking.reads_text
    assert {MARKS, BESIDE} == set(bundle.info.graphs)
    assessor = PictureAssessor(bundle, checks=())
    windows = np.random.default_rng(1).normal(size=(3, 3, *[bundle.info.marking.size] * 2)).astype(np.float32)
    row = bundle.prepare_text(REPORT)
    with torch.no_grad():
        told = model.modulate(
            torch.from_numpy(row["tokens"])[None], torch.from_numpy(row["token_mask"])[None]
        )
        by_text = model.segment(torch.from_numpy(windows), modulation=told.repeat(3, 1))
        alone = model.segment(torch.from_numpy(windows))
    np.testing.assert_allclose(bundle.mark(windows, bundle.told_beside(REPORT)), by_text, atol=1e-5)
    for nothing in (None, ""):
        np.testing.assert_allclose(bundle.mark(windows, bundle.told_beside(nothing)), alone, atol=1e-5)
    difference = assessor.probabilities(picture(), text=REPORT) - assessor.probabilities(picture())
    assert np.abs(difference).max() > 1e-3


def test_other_forms_are_held_to_what_is_marked_by_texts(bundle):
    for found in bundle.info.forms.values():
        assert found.decided["marks"] >= 2
    other = load_bundle(bundle._folder, "float16")
    told = other.told_beside(REPORT)
    np.testing.assert_allclose(
        *(next(iter(one.values())) for one in (told, bundle.told_beside(REPORT))), atol=0.02
    )


def test_a_text_is_read_beside_a_picture_over_http_and_by_the_command(client, bundle, tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    sent = base64.b64encode(png()).decode()
    for text in (REPORT, None):
        body = {"image": sent} | ({"text": text} if text else {})
        response = client.post("/v1/assess", json=body)
        assert response.status_code == 200, response.text
        (found,) = assess_files(bundle, [tmp_path / "a.png"], text=text)
        assert response.json()["picture"] == found.model_dump(mode="json")


def test_texts_that_nobody_reads_are_refused(client, bundle, tmp_path):
    assert client.post("/v1/assess", json={"text": "a", "document": "b"}).status_code == 422
    with pytest.raises(EaglerayError, match="one picture or scan"):
        assess_files(bundle, [tmp_path, tmp_path], text=REPORT)
