"""Engines are made for a bundle and held to single precision; here they are what this machine has."""

import logging
import shutil

import onnx
import pytest
from onnx import numpy_helper

from eagleray.actors.serving.engines import EngineOptions, make_engines, trtexec_commands
from eagleray.actors.serving.layers import layers_of
from eagleray.pipelines import providers
from eagleray.pipelines.bundle import load_bundle, read_info, seal_bundle
from eagleray.workflows.errors import EaglerayError

LAYER = "vision.blocks.0.mlp.up"


def test_a_bundle_on_what_there_is_decides_as_on_the_cpu(bundle_folder, corpus_folder, tmp_path):
    lines = []
    made = make_engines(
        bundle_folder, corpus_folder, EngineOptions(folder=tmp_path, max_rows=2, check_rows=8), lines.append
    )
    assert lines[0] == made.choice.line
    assert made.seconds.keys() == made.engines.keys() == read_info(bundle_folder).graphs.keys()
    assert made.decided["category"] >= 2
    if made.choice.provider == "cpu":
        assert set(made.flips.values()) == {0}
        assert set(made.engines.values()) == {None}


def test_a_form_that_decides_otherwise_there_is_refused_with_its_layer(
    bundle_folder, corpus_folder, tmp_path
):
    folder = tmp_path / "bundle"
    shutil.copytree(bundle_folder, folder)
    info = read_info(bundle_folder)
    for graph in info.graphs:
        shutil.copyfile(folder / f"{graph}.onnx", folder / f"{graph}.float16.onnx")
    model = onnx.load(folder / "image.onnx")
    names = set(layers_of(model)[LAYER])
    (weight,) = {node.input[1] for node in model.graph.node if node.name in names}
    for one in model.graph.initializer:
        if one.name == weight:
            one.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(one) * -3, weight))
    onnx.save(model, folder / "image.float16.onnx")
    form = {
        "decided": {},
        "flips": {},
        "right": {},
        "size_share": 1.0,
    }
    fields = {name: getattr(info, name) for name in type(info).model_fields if name not in ("files", "forms")}
    (folder / "bundle.json").unlink()
    seal_bundle(folder, **fields, forms={"float16": form})
    options = EngineOptions("float16", folder=tmp_path / "engines", max_rows=2, check_rows=24)
    with pytest.raises(EaglerayError, match=r"decides .* otherwise") as caught:
        make_engines(folder, corpus_folder, options)
    assert f"most at {LAYER} " in caught.value.cause


def test_tensorrts_own_tool_is_told_the_same(bundle_folder, tmp_path):
    lines = trtexec_commands(bundle_folder, EngineOptions("float16", folder=tmp_path, max_rows=4))
    assert len(lines) == len(read_info(bundle_folder).graphs)
    (image,) = (line for line in lines if "image.float16.onnx" in line)
    assert image.startswith("trtexec ")
    assert "--minShapes=image:1x3x32x32" in image
    assert "--maxShapes=image:4x3x32x32" in image
    assert "--fp16" in image


def test_a_bundle_says_once_what_its_graphs_run_on(bundle_folder, caplog):
    bundle = load_bundle(bundle_folder)
    before = bundle.run("text", {name: array[None] for name, array in bundle.blank("text").items()})
    providers.tell_once.cache_clear()
    with caplog.at_level(logging.WARNING, "eagleray.providers"):
        choice = bundle.accelerate("auto")
        load_bundle(bundle_folder).accelerate("auto")
    assert [record.getMessage() for record in caplog.records] == [choice.line]
    after = bundle.run("text", {name: array[None] for name, array in bundle.blank("text").items()})
    assert before.keys() == after.keys()
    if choice.provider == "cpu":
        assert "graphs run on the CPU" in choice.line
