"""Other forms of a bundle's graphs are smaller and decide alike; else they are refused, with the layer."""

import shutil

import httpx
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from eagleray.actors.serving import quantising
from eagleray.actors.serving.exporting import export_graph
from eagleray.actors.serving.graphs import ImageGraph
from eagleray.actors.serving.indexing import open_splits, sample_rows
from eagleray.actors.serving.layers import errors_by_layer, jumps, layers_of
from eagleray.actors.serving.parity import Decision, compare, decide
from eagleray.actors.serving.quantising import Forms, Recorder, write_forms
from eagleray.pipelines.bundle import graph_file, load_bundle, read_info, seal_bundle
from eagleray.workflows.errors import EaglerayError

FORMS = ("int8", "int8-dynamic", "float16")
LAYER = "vision.blocks.0.mlp.up"


@pytest.fixture(scope="module")
def rows(corpus_folder):
    return sample_rows(open_splits(corpus_folder), 8)


@pytest.fixture
def unsealed(bundle_folder, tmp_path):
    folder = tmp_path / "bundle"
    shutil.copytree(bundle_folder, folder)
    (folder / "bundle.json").unlink()
    return folder


def sealed(folder, info, forms):
    fields = {name: getattr(info, name) for name in type(info).model_fields if name not in ("files", "forms")}
    seal_bundle(folder, **fields, forms=forms)


def weights(path, layer):
    """Of a graph's layer, by the names of its operations' inputs."""
    model = onnx.load(path)
    names = set(layers_of(model)[layer])
    inputs = {name for node in model.graph.node if node.name in names for name in node.input}
    return {one.name: numpy_helper.to_array(one) for one in model.graph.initializer if one.name in inputs}


def test_other_forms_decide_as_the_bundle_does_and_take_less_room(bundle_folder, unsealed, rows):
    info = read_info(bundle_folder)
    found = write_forms(unsealed, info, rows, rows, Forms(FORMS, max_flips=0.5))
    sealed(unsealed, info, found)
    before = decide(load_bundle(bundle_folder), rows)
    for form in FORMS:
        after = decide(load_bundle(unsealed, form), rows)
        flips = {name: len(where) for name, where in compare(before, after).items()}
        assert flips == dict(found[form].flips)
        assert found[form].size_share < 1
    # half precision is closer than eight bits
    assert sum(found["float16"].flips.values()) <= sum(found["int8"].flips.values())
    embedding = {
        form: load_bundle(unsealed, form).embed("image", [{"image": one} for one in rows["image"]])
        for form in (None, *FORMS)
    }
    for form in FORMS:
        cosines = (embedding[None] * embedding[form]).sum(axis=1)
        assert cosines.min() > 0.98
        assert np.abs(embedding[None] - embedding[form]).max() > 0


def test_a_form_that_is_not_there_is_refused(bundle_folder):
    with pytest.raises(EaglerayError, match="no int8 graphs") as caught:
        load_bundle(bundle_folder, "int8")
    assert "forms: [int8]" in caught.value.remedy


def test_what_is_kept_stays_in_single_precision(bundle_folder, unsealed, rows):
    write_forms(
        unsealed, read_info(bundle_folder), rows, rows, Forms(("int8",), ("vision.blocks",), max_flips=1.0)
    )
    path = unsealed / graph_file("image", "int8")
    left = {node.name: node.op_type for node in onnx.load(path).graph.node}
    before = layers_of(onnx.load(bundle_folder / "image.onnx"))
    names = [name for layer, some in before.items() if layer.startswith("vision.blocks") for name in some]
    assert {left[name] for name in names} <= {"MatMul", "Gemm"}
    kept = weights(bundle_folder / "image.onnx", LAYER)
    after = {one.name: numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer}
    assert kept
    for name, values in kept.items():
        np.testing.assert_array_equal(after[name], values)


def test_a_layer_that_is_not_there_can_not_be_kept(bundle_folder, unsealed, rows):
    with pytest.raises(EaglerayError, match=r"no layer vision\.block\.0") as caught:
        write_forms(unsealed, read_info(bundle_folder), rows, rows, Forms(("int8",), ("vision.block.0",)))
    assert "vision.blocks.0" in caught.value.remedy


def break_layer(path, layer, factor=-3.0):
    """Multiply the scales that a quantised layer's weights have."""
    model = onnx.load(path)
    names = set(layers_of(model)[layer])
    (read,) = {node.input[1] for node in model.graph.node if node.name in names}
    (scale,) = {node.input[1] for node in model.graph.node if read in node.output}
    for one in model.graph.initializer:
        if one.name == scale:
            one.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(one) * np.float32(factor), scale))
    onnx.save(model, path)


def test_a_broken_export_is_caught_and_its_layer_is_named(bundle_folder, unsealed, rows, monkeypatch):
    convert = quantising.convert

    def breaks(path, output, form, feeds, layers, ranges):
        convert(path, output, form, feeds, layers, ranges)
        if path.name == "image.onnx":
            break_layer(output, LAYER)

    monkeypatch.setattr(quantising, "convert", breaks)
    with pytest.raises(EaglerayError, match="int8 decides") as caught:
        write_forms(unsealed, read_info(bundle_folder), rows, rows, Forms(("int8",), max_flips=0.1))
    assert f"most at {LAYER} " in caught.value.cause
    assert f"keep=[{LAYER}]" in caught.value.remedy


def test_errors_are_told_by_layer_in_order(bundle_folder, unsealed, rows):
    info = read_info(bundle_folder)
    write_forms(unsealed, info, rows, rows, Forms(("int8",), max_flips=1.0))
    recorder = Recorder(bundle_folder, info)
    decide(recorder, rows)
    pair = bundle_folder / graph_file("image"), unsealed / graph_file("image", "int8")
    errors = errors_by_layer(*pair, recorder.fed["image"][0])
    assert list(errors) == [one for one in layers_of(onnx.load(pair[0])) if one in errors]
    assert max(errors.values()) < 0.5
    assert jumps({"a": 0.1, "b": 0.4, "c": 0.3, "d": 0.6}, 2) == [
        ("b", pytest.approx(0.3)),
        ("d", pytest.approx(0.2)),
    ]


class Louder(nn.Linear):
    """Exports something else than it computes."""

    def forward(self, input):
        found = super().forward(input)
        return found * 1.5 if torch.compiler.is_exporting() else found


def test_a_graph_that_is_not_torch_names_the_layer_from_which_on(model, rows, tmp_path, monkeypatch):
    mlp = model.vision.blocks[0].mlp
    louder = Louder(mlp.up.in_features, mlp.up.out_features, bias=mlp.up.bias is not None)
    louder.load_state_dict(mlp.up.state_dict())
    monkeypatch.setitem(mlp._modules, "up", louder)
    images = torch.from_numpy(rows["image"])
    with pytest.raises(EaglerayError, match=rf"away from torch.*, from {LAYER.replace('.', '[.]')} on"):
        export_graph(ImageGraph(model), (images,), tmp_path / "image.onnx", 1e-4)


def test_flips_are_told_with_what_was_decided():
    before = Decision(("image",), (3, 5), ("frog", "toad"), ("frog", "frog"))
    after = Decision(("image",), (3, 5), ("frog", "cat"), ("frog", "frog"))
    assert compare({"category": before}, {"category": after}) == {"category": ["row 5: 'toad', then 'cat'"]}
    assert (before.share_right, after.share_right) == (0.5, 0.5)


def test_a_form_is_served(ray_cluster, bundle_folder, unsealed, rows, free_port):
    from ray import serve

    from eagleray.actors.serving import running
    from eagleray.actors.serving.spec import ServingOptions

    info = read_info(bundle_folder)
    sealed(unsealed, info, write_forms(unsealed, info, rows, rows, Forms(("int8",), max_flips=1.0)))
    serve.shutdown()
    options = ServingOptions(application="int8", port=free_port, form="int8")
    with pytest.raises(EaglerayError, match="no int8 graphs"):
        running.deploy(bundle_folder, options)
    deployed = running.deploy(unsealed, options)
    bundle = load_bundle(unsealed, "int8")
    expected = bundle.embed("text", [bundle.prepare_text("a frog")])[0]
    with httpx.Client(base_url=deployed.url, trust_env=False, timeout=30) as http:
        assert http.get("/healthz").json()["form"] == "int8"
        told = http.post("/v1/embed", json={"inputs": [{"text": "a frog"}]}).json()["embeddings"][0]
    np.testing.assert_allclose(told, expected, atol=1e-5)
    serve.shutdown()
