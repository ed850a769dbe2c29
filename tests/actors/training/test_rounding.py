"""What was trained in sight of eight bits is what its int8 graph computes, and mends what rounding broke."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F

from eagleray.actors.serving.exporting import export_graph
from eagleray.actors.serving.graphs import DocumentGraph, MarksGraph
from eagleray.actors.serving.layers import layers_of
from eagleray.actors.serving.quantising import convert
from eagleray.actors.stages.finetune import FinetuneSpec
from eagleray.actors.training.certificate import Training
from eagleray.actors.training.certifying import certify
from eagleray.actors.training.checkpoint import load_limits
from eagleray.actors.training.group import run_group
from eagleray.actors.training.rounding import (
    Limits,
    RoundedLinear,
    limits_of,
    move_limits,
    rounded_weights,
    use_rounding,
)
from eagleray.actors.training.spec import AdaptationSpec
from eagleray.models.heads.document import pooled
from eagleray.models.multimodal import MultimodalModel
from eagleray.models.spec import ModelSpec
from eagleray.pipelines.bundle import open_graph

from .conftest import job_of, losses
from .test_certifying import CASES, SMALL, SPLIT, spec_of

SPEC = ModelSpec.model_validate(
    {
        **{"vision": None, "audio": None, "decoder": None},
        "text": {"d_model": 32, "num_layers": 2, "num_heads": 2, "max_tokens": 16, "overlap": 4},
    }
)
CLASSES, VOCAB, FIRST = 4, 100, 20
INT8 = AdaptationSpec(quantise="int8")


def documents(count, generator):
    """Random words, one of which tells the category: two words each."""
    tokens = torch.randint(FIRST, VOCAB, (count, 16), generator=generator)
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    places = torch.randint(0, 15, (count,), generator=generator)
    tokens[torch.arange(count), places] = 3 + 2 * labels + torch.randint(0, 2, (count,), generator=generator)
    return tokens, torch.ones_like(tokens, dtype=torch.bool), labels


def learn(model, steps):
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    model.train()
    for step in range(steps):
        tokens, mask, labels = documents(64, generator)
        optimizer.zero_grad()
        F.cross_entropy(model.classify_documents(tokens, mask), labels).backward()
        optimizer.step()
        move_limits(limits_of(model), step)
    return model.eval()


def fresh():
    torch.manual_seed(0)
    return MultimodalModel(SPEC, VOCAB, CLASSES, ("document",))


def add_outliers(model, factor):
    """Let one channel of all normalised states be larger, and what reads it the smaller."""
    with torch.no_grad():
        for block in model.text.blocks:
            attention, mlp = block.attention, block.mlp
            readers = (
                (block.norm_attention, (attention.query, attention.key, attention.value)),
                (block.norm_mlp, (mlp.up,)),
            )
            for norm, layers in readers:
                norm.weight[3] *= factor
                norm.bias[3] *= factor
                for layer in layers:
                    layer.weight[:, 3] /= factor


def ranges_of(model):
    state = {name: tensor for name, tensor in model.state_dict().items() if name.endswith(".limits")}
    return {name.removesuffix(".limits"): tuple(tensor.tolist()) for name, tensor in state.items()}


def logits_in_int8(model, tokens, mask, folder):
    """Of documents, by the exported graph of the plain model, with the ranges that were learned if any."""
    plain = fresh().eval()
    plain.load_state_dict(model.state_dict(), strict=False)
    inputs = plain.segments(tokens), plain.segments(mask)
    path, output = folder / "document.onnx", folder / "document.int8.onnx"
    export_graph(DocumentGraph(plain), inputs, path, 1e-3)
    feed = dict(zip(("tokens", "token_mask"), (tensor.numpy() for tensor in inputs), strict=True))
    convert(path, output, "int8", [feed], list(layers_of(onnx.load(path))), ranges_of(model))
    evidence, scores = open_graph(output).run(None, feed)
    return pooled(torch.from_numpy(evidence.sum(axis=1)), torch.from_numpy(scores), len(tokens)).numpy()


def test_fine_tuning_mends_what_outliers_break_and_the_graph_is_what_was_trained(tmp_path):
    tokens, mask, labels = documents(256, torch.Generator().manual_seed(2))

    def share_right(logits):
        return float((logits.argmax(axis=1) == labels.numpy()).mean())

    model = learn(fresh(), 120)
    add_outliers(model, 1000.0)
    with torch.no_grad():
        plain = model.classify_documents(tokens, mask).numpy()
    broken = logits_in_int8(model, tokens, mask, tmp_path)
    assert share_right(plain) > 0.99
    assert share_right(broken) < 0.8
    use_rounding(model)
    learn(model, 100)
    with torch.no_grad():
        trained = model.classify_documents(tokens, mask).numpy()
    mended = logits_in_int8(model, tokens, mask, tmp_path)
    assert share_right(mended) > 0.98
    np.testing.assert_array_equal(mended.argmax(axis=1), trained.argmax(axis=1))
    # a value that lies on the border between two steps may fall on either side, all else is equal
    assert np.median(np.abs(mended - trained)) < 1e-5
    assert np.abs(mended - trained).max() < 0.05
    exact = open_graph(tmp_path / "document.onnx")
    feed = {"tokens": model.segments(tokens).numpy(), "token_mask": model.segments(mask).numpy()}
    evidence, scores = exact.run(None, feed)
    unrounded = pooled(torch.from_numpy(evidence.sum(axis=1)), torch.from_numpy(scores), len(tokens)).numpy()
    assert np.median(np.abs(mended - unrounded)) > 1e3 * np.median(np.abs(mended - trained))


def test_convolutions_are_trained_as_their_graph_computes(tmp_path):
    torch.manual_seed(0)
    vision = {
        **{"image_size": 16, "patch_size": 4, "window_size": 4, "embed_dim": 8, "depths": [1, 1]},
        **{"num_heads": [2, 2], "pyramid_width": 8, "findings": ["crack", "hole"]},
    }
    spec = ModelSpec.model_validate({"audio": None, "decoder": None, "text": None, "vision": vision})
    model = MultimodalModel(spec, VOCAB, CLASSES, ("segmentation",)).eval()
    images = torch.randn(8, 3, 16, 16)
    graph, path, output = MarksGraph(model), tmp_path / "marks.onnx", tmp_path / "marks.int8.onnx"
    export_graph(graph, (images,), path, 1e-4)
    use_rounding(model.train())
    graph(images)
    move_limits(limits_of(model), 0)
    model.eval()
    with torch.no_grad():
        expected = graph(images)[0].numpy()
    feed = {"image": images.numpy()}
    convert(path, output, "int8", [feed], list(layers_of(onnx.load(path))), ranges_of(model))
    (found,) = open_graph(output).run(None, feed)
    (plain,) = open_graph(path).run(None, feed)
    assert np.abs(found - expected).mean() < 0.2 * np.abs(found - plain).mean()
    assert {node.op_type for node in onnx.load(output).graph.node} >= {"QuantizeLinear", "DequantizeLinear"}


def test_limits_follow_what_is_seen_and_round_nothing_before():
    limits = Limits(torch.zeros(()))
    x = torch.tensor([-1.0, 0.3333, 3.0], requires_grad=True)
    assert torch.equal(limits(x), x)
    limits.move(0.5)
    assert limits.limits.tolist() == [-1.0, 3.0]
    limits(torch.tensor([5.0]))
    limits.move(0.75)
    assert limits.limits.tolist() == [-0.75, 3.5]
    found = limits(torch.tensor([-2.0, 0.3, 4.0], requires_grad=True))
    step = 4.25 / 255
    assert found.tolist() == pytest.approx([-45 * step, 18 * step, 210 * step])
    y = torch.tensor([-2.0, 0.3, 4.0], requires_grad=True)
    limits(y).sum().backward()
    assert y.grad.tolist() == [0.0, 1.0, 0.0]


def test_weights_are_rounded_row_by_row_and_their_gradient_is_whole():
    weights = torch.tensor([[127.0, 0.4, -3.6], [1.27, 0.004, -0.036]], requires_grad=True)
    found = rounded_weights(weights)
    torch.testing.assert_close(found, torch.tensor([[127.0, 0.0, -4.0], [1.27, 0.0, -0.04]]))
    found.sum().backward()
    assert torch.equal(weights.grad, torch.ones(2, 3))


def test_what_hangs_on_no_input_is_left_as_it_is():
    model = MultimodalModel(SMALL, VOCAB, CLASSES, ("contrastive",))
    use_rounding(model)
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    plain = {name for name, module in linear.items() if not isinstance(module, RoundedLinear)}
    assert plain
    assert all("position_bias" in name or name.endswith("per_head") for name in plain)


@pytest.mark.parametrize(
    ("objective", "model", "parallel"),
    [
        CASES["document"],
        ({"contrastive": 1.0, "caption": 0.25, "classification": 0.3}, SMALL, SPLIT),
        CASES["segmentation"],
    ],
    ids=["document", "usual", "segmentation"],
)
def test_every_mesh_rounds_as_one_process_does(objective, model, parallel):
    found = certify(Training(spec_of(objective, **parallel), model, INT8))
    assert all(finding.holds for finding in found), found


def test_limits_are_in_checkpoints_and_go_to_another_mesh(corpus_folder, tmp_path):
    def job(**parallel):
        found = job_of(corpus_folder, **parallel)
        return type(found)(found.spec, found.model, found.corpus, adaptation=INT8)

    (expected,) = run_group(losses, 1, job(), None, tmp_path / "alone")
    run_group(losses, 2, job(tensor=2), None, tmp_path / "first")
    (reports, _) = run_group(losses, 2, job(data=2), tmp_path / "first" / "2", tmp_path / "second")
    for mine, theirs in zip(reports, expected[2:], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-11, abs=1e-12)
    found, alone = (load_limits(tmp_path / name) for name in ("second/4", "alone/4"))
    assert "text.blocks.0.mlp.up.of_input" in found
    assert found.keys() == alone.keys()
    for name, limits in found.items():
        assert limits == pytest.approx(alone[name], rel=1e-9)


@pytest.mark.parametrize("other", [{"lora": {}}, {"batching": {}}], ids=lambda one: next(iter(one)))
def test_what_does_not_go_with_it_is_refused(other):
    with pytest.raises(ValidationError, match=f"{next(iter(other))}.*quantise|quantise.*{next(iter(other))}"):
        FinetuneSpec.model_validate({"quantise": "int8", **other})
