"""What is assessed whole: over HTTP, from what is sent to what is found, or why nothing is said."""

import base64
import io

import numpy as np
import onnx
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image
from pypdf import PdfWriter

from eagleray.actors.serving import quantising
from eagleray.actors.serving.application import Together, describe
from eagleray.actors.serving.batching import Encoder
from eagleray.actors.serving.exporting import (
    EXACT,
    Anomalies,
    ExportOptions,
    export_bundle,
    export_graph,
)
from eagleray.actors.serving.graphs import MarksGraph
from eagleray.actors.serving.ingress import build_api
from eagleray.actors.serving.layers import layers_of
from eagleray.actors.serving.quantising import Forms
from eagleray.actors.serving.spec import LimitsSpec, ServingOptions
from eagleray.commands.assessing import assess_files
from eagleray.models.anomaly import AnomalyDetector, PatchFeatures
from eagleray.models.heads.document import segmented
from eagleray.models.multimodal import MultimodalModel
from eagleray.models.spec import ModelSpec
from eagleray.pipelines.assessing.answers import check_answer
from eagleray.pipelines.assessing.documents import DocumentAssessor
from eagleray.pipelines.assessing.pictures import PictureAssessor
from eagleray.pipelines.bundle import AnomalyScoring, Lineage, LoadedBundle, load_bundle
from eagleray.pipelines.media.image import normalise
from eagleray.pipelines.reading import CorpusReader, read_info
from eagleray.pipelines.spec import Slicing
from eagleray.workflows.errors import EaglerayError

from .test_quantising import break_layer

SPEC = ModelSpec.model_validate(
    {
        "audio": None,
        "decoder": None,
        "vision": {
            **{"image_size": 16, "patch_size": 4, "window_size": 4, "embed_dim": 8, "depths": [1, 1]},
            **{"num_heads": [2, 2], "pyramid_width": 8, "findings": ["crack", "hole"]},
        },
        "text": {"d_model": 16, "num_layers": 1, "num_heads": 2, "max_tokens": 8, "overlap": 3},
    }
)
LINEAGE = Lineage(run_id="run", checkpoint="c" * 64, corpus="d" * 64)


@pytest.fixture(scope="module")
def model(corpus_folder) -> MultimodalModel:
    info = read_info(corpus_folder)
    torch.manual_seed(0)
    vision = SPEC.vision.model_copy(update={"image_size": info.preparation.image_size})
    spec = SPEC.model_copy(update={"vision": vision})
    return MultimodalModel(spec, info.vocab_size, len(info.classes), ["document", "segmentation"]).eval()


@pytest.fixture(scope="module")
def bundle(model, corpus_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("assessing")
    export_bundle(model, corpus_folder, folder, LINEAGE, ExportOptions(1e-4, 8, 4, 0, pixels_per_mm=10))
    return load_bundle(folder)


@pytest.fixture(scope="module")
def client(bundle):
    encoder = Encoder(lambda: bundle, 4, LimitsSpec(max_document_chars=5000), 1)
    options = ServingOptions(limits=LimitsSpec(max_document_chars=5000))
    api = build_api(Together(encoder, None), describe(bundle.info, "b" * 64, options), options)
    with TestClient(api) as found:
        yield found
    encoder.close()


def assess(client, **body):
    response = client.post("/v1/assess", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def sent(content: bytes) -> str:
    return base64.b64encode(content).decode()


def test_the_graph_reads_documents_as_torch_does(model, bundle, corpus_folder):
    tokens = CorpusReader(corpus_folder, "train").examples(np.arange(4), None)
    row, mask = tokens["tokens"][0], tokens["token_mask"][0]
    logits, added, segments = DocumentAssessor(bundle).read(np.tile(row[mask], 5))
    several = torch.from_numpy(np.tile(row[mask], 5))[None]
    with torch.no_grad():
        expected = model.classify_documents(several, torch.ones_like(several, dtype=torch.bool))[0]
    np.testing.assert_allclose(logits, expected.numpy(), atol=1e-5)
    np.testing.assert_allclose(added.sum(axis=0), logits, atol=1e-5)
    assert segments == segmented(several, 8, 3).shape[1]


def test_other_forms_are_held_to_what_is_marked_and_read(model, corpus_folder, tmp_path):
    forms = Forms(("int8", "float16"), max_flips=1.0)
    info = export_bundle(
        model, corpus_folder, tmp_path, LINEAGE, ExportOptions(1e-4, 8, 4, 0, 8, forms=forms)
    )
    assert set(info.forms) == {"int8", "float16"}
    for found in info.forms.values():
        assert found.decided["marks"] >= 2
        assert found.decided["document"] >= 2


@pytest.mark.parametrize(
    ("graph", "layer"),
    [
        ("document", "heads.document.classifier"),
        ("marks", "heads.segmentation.logits"),
        ("marks", "heads.segmentation.fuse.0"),
    ],
)
def test_a_broken_export_makes_no_bundle_and_its_layer_is_named(
    model, corpus_folder, tmp_path, monkeypatch, graph, layer
):
    convert = quantising.convert

    def breaks(path, output, form, feeds, layers, ranges):
        convert(path, output, form, feeds, layers, ranges)
        if path.name == f"{graph}.onnx":
            break_layer(output, layer, -30.0)

    monkeypatch.setattr(quantising, "convert", breaks)
    options = ExportOptions(1e-4, 8, 4, 0, 16, forms=Forms(("int8",), max_flips=0.1))
    with pytest.raises(EaglerayError, match=f"int8 decides .*{graph}") as caught:
        export_bundle(model, corpus_folder, tmp_path, LINEAGE, options)
    assert f"most at {layer} " in caught.value.cause
    assert caught.value.where == f"{graph}.int8.onnx"
    assert not (tmp_path / "bundle.json").exists()


def test_a_document_is_assessed_however_it_is_sent(client, bundle):
    words = "A red frog under a blue star. " * 5
    plain = assess(client, text=words)
    page = assess(client, document=sent(f"<html><body><p>{words}</p></body></html>".encode()))
    assert plain["document"]["category"] in bundle.info.classes
    assert page["document"]["probabilities"] == pytest.approx(plain["document"]["probabilities"], abs=0.05)
    assert page["problem"] is None
    assert page["picture"] is None


def encrypted() -> bytes:
    writer, buffer = PdfWriter(), io.BytesIO()
    writer.add_blank_page(100, 100)
    writer.encrypt("secret", algorithm="RC4-128")
    writer.write(buffer)
    return buffer.getvalue()


def scanned() -> bytes:
    """A page that is a picture."""
    buffer = io.BytesIO()
    Image.new("RGB", (90, 90), "white").save(buffer, "PDF")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (encrypted(), "encrypted-pdf"),
        (scanned(), "no-text"),
        (b"%PDF-1.7 broken", "corrupt-pdf"),
        (b"<html><body></body></html>", "no-text"),
        (b"  \n ", "no-text"),
        (b"\xff\xfe\x00", "not-text"),
        (b"a", "too-short"),
    ],
)
def test_a_document_that_can_not_be_read_is_not_assessed(client, content, reason):
    found = assess(client, document=sent(content))
    assert not found["assessable"]
    assert found["document"] is None
    assert found["problem"]["reason"] in (reason, "text-not-utf8") if reason == "not-text" else reason


def test_what_is_too_long_and_what_is_none_of_it_are_refused(client):
    assert client.post("/v1/assess", json={"text": "frog " * 2000}).status_code == 413
    assert client.post("/v1/assess", json={"document": "%%%"}).status_code == 400
    assert client.post("/v1/assess", json={"text": "a", "document": "b"}).status_code == 422
    not_read = client.post("/v1/assess", json={"text": "a", "image": "b"})
    assert (not_read.status_code, not_read.json()["code"]) == (422, "text-not-read")
    refused = client.post("/v1/assess", json={"volume": sent(bytes(400))})
    assert refused.status_code == 404
    assert refused.json()["code"] == "not-served"
    assert client.post("/v1/embed", json={"inputs": [{"text": "a"}]}).json()["code"] == "not-served"


def test_the_command_says_what_the_service_says(client, bundle, tmp_path):
    texts = {"a.txt": b"A red frog. " * 9, "b.pdf": scanned()}
    for name, content in texts.items():
        (tmp_path / name).write_bytes(content)
    reads = replace_marking(bundle)
    found = assess_files(reads, [tmp_path / name for name in texts], None, None)
    plain = assess(client, document=sent(texts["a.txt"]))
    assert found[0].model_dump(mode="json") == plain["document"]
    assert found[1].reason == "no-text"
    with pytest.raises(EaglerayError, match="no such file"):
        assess_files(reads, [tmp_path / "none"], None, None)
    with pytest.raises(EaglerayError, match="one scan"):
        assess_files(reads, [tmp_path / "a.txt"], tmp_path / "page.html", None)


@pytest.fixture(scope="module")
def anomalies(model, corpus_folder) -> Anomalies:
    """A density of the corpus's pictures, of which the brightest tenth is told."""
    images = torch.from_numpy(CorpusReader(corpus_folder, "train").examples(np.arange(8), None)["image"])
    detector = AnomalyDetector(PatchFeatures(model.vision, [1.0], 2), 2).eval()
    with torch.no_grad():
        rows = detector.features(images).movedim(1, -1).flatten(0, 2).double()
        spread = torch.cov(rows.T) + 0.05 * torch.eye(rows.shape[1])
        ones = torch.ones(rows.shape[1])
        detector.density.set_(
            0 * ones,
            ones,
            torch.tensor([0.3, 0.7]),
            torch.stack([rows.mean(0)] * 2),
            torch.stack([spread] * 2),
        )
        detector.threshold.fill_(float(detector(images).flatten().quantile(0.9)))
        detector.spread.fill_(5.0)
    return Anomalies(detector, 0.05)


def export_anomalies(model, corpus_folder, folder, anomalies, **options):
    given = ExportOptions(1e-4, 8, 4, 0, pixels_per_mm=10, **options)
    return export_bundle(model, corpus_folder, folder, LINEAGE, given, anomalies=anomalies)


def test_what_looks_like_nothing_normal_is_told_beside_what_is_marked(
    model, anomalies, corpus_folder, tmp_path
):
    info = export_anomalies(model, corpus_folder, tmp_path, anomalies)
    assert info.anomaly == AnomalyScoring(size=32, false_alarms=0.05, pixels_per_mm=10)
    assert info.assesses == ("document", "picture")
    pixels, _ = CorpusReader(corpus_folder, "train").stored_pictures(np.arange(3))
    bundle = load_bundle(tmp_path)
    assessor = PictureAssessor(bundle, checks=())
    with torch.no_grad():
        nats = anomalies.detector(torch.from_numpy(normalise(pixels[:1, :32, :32])))[0].numpy()
    scores = assessor.scores(pixels[0, :32, :32])[0]
    np.testing.assert_allclose(scores, 1 / (1 + np.exp((anomalies.detector.threshold - nats) / 5)), atol=1e-4)
    told = assessor.assess(pixels[0, :32, :32])
    found = [one for one in told.findings if one.label == "anomaly"]
    assert found
    assert all(one.score >= 0.5 for one in found)
    assert [one.score for one in told.findings] == sorted((one.score for one in told.findings), reverse=True)
    first = found[0]
    box = np.s_[first.top : first.top + first.height, first.left : first.left + first.width]
    assert scores[box].max() == pytest.approx(first.score)
    assert first.area_mm2 == pytest.approx(first.area_px / 100)


def test_other_forms_are_held_to_what_anomalies_they_tell(model, anomalies, corpus_folder, tmp_path):
    forms = Forms(("int8", "float16"), max_flips=1.0)
    info = export_anomalies(model, corpus_folder, tmp_path, anomalies, calibration_rows=8, forms=forms)
    assert all(one.decided["anomaly"] >= 2 for one in info.forms.values())
    eight = onnx.load(tmp_path / "anomaly.int8.onnx")
    kept = [node for layer, names in layers_of(eight).items() if layer in EXACT for node in names]
    assert kept
    quantised = {
        name for node in eight.graph.node if node.op_type == "DequantizeLinear" for name in node.output
    }
    by_name = {node.name: node for node in eight.graph.node}
    assert not any(quantised & set(by_name[name].input) for name in kept)
    assert quantised


def test_anomalies_alone_are_served_and_in_volumes_refused(anomalies, model, corpus_folder, tmp_path):
    seeing = MultimodalModel(model.spec, 300, 2, ["classification"]).eval()
    info = export_anomalies(seeing, corpus_folder, tmp_path, anomalies)
    assert (info.assesses, set(info.graphs)) == (("picture",), {"anomaly"})
    bundle = load_bundle(tmp_path)
    path, body = bundle.sample
    encoder = Encoder(lambda: bundle, 4, LimitsSpec(), 1)
    options = ServingOptions()
    with TestClient(
        build_api(Together(encoder, None), describe(bundle.info, "b" * 64, options), options)
    ) as api:
        answer = api.post(path, json=body)
    encoder.close()
    assert answer.status_code == 200
    assert {"assessable", "picture", "problem"} <= set(answer.json())
    slicing = Slicing(spacing_mm=(1, 1, 1), low_hu=-1000, high_hu=400)
    with pytest.raises(EaglerayError, match="is of pictures, and slicing is of volumes"):
        export_anomalies(seeing, corpus_folder, tmp_path, anomalies, slicing=slicing)


def replace_marking(bundle):
    """The same bundle, as if it read documents only."""
    return LoadedBundle(bundle._folder, bundle.info.model_copy(update={"marking": None}))


def test_a_bundle_says_what_it_assesses_and_has_a_sample_of_it(client, bundle):
    health = client.get("/healthz").json()
    assert (health["assesses"], health["embeds"]) == (["document", "picture"], False)
    path, body = bundle.sample
    assert path == "/v1/assess"
    assert client.post(path, json=body).status_code == 200
    assert client.get("/v2/models/embed/ready").status_code == 404


def test_what_was_exported_says_of_its_sample_what_it_said_then(model, corpus_folder, tmp_path):
    folder = tmp_path / "bundle"
    folder.mkdir()
    options = ExportOptions(1e-4, 8, 4, 0, 8, forms=Forms(("int8",), max_flips=1.0))
    export_bundle(model, corpus_folder, folder, LINEAGE, options)
    for form in (None, "int8"):
        check_answer(load_bundle(folder, form))
    graph = folder / "marks.onnx"
    loaded = load_bundle(folder)  # digests are checked here, and the graph is opened later
    with torch.no_grad():
        model.heads.segmentation.logits.bias.add_(1.0)
    export_graph(MarksGraph(model), (torch.zeros(2, 3, 32, 32),), graph, 1e-4)
    with torch.no_grad():
        model.heads.segmentation.logits.bias.sub_(1.0)
    with pytest.raises(EaglerayError, match="something else of its sample"):
        check_answer(loaded)
