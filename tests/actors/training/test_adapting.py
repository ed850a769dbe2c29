"""What stays, what learns slower, and low-rank layers: they learn, are split as any other, and are merged."""

import pytest
import torch

from eagleray.actors.training.adapting import LoraLinear, adapt, layer_rates, merge
from eagleray.actors.training.optimizer import LocalOptimizer
from eagleray.actors.training.spec import AdaptationSpec, LoraSpec, OptimizerSpec
from eagleray.models.multimodal import MultimodalModel
from eagleray.workflows.errors import EaglerayError

from ..conftest import MODEL, TASKS

LORA = AdaptationSpec(lora=LoraSpec(rank=2, layers=("query", "output", "down")))


@pytest.fixture
def fresh():
    torch.manual_seed(0)
    return MultimodalModel(MODEL, 300, 2, TASKS)


def learning(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_what_is_frozen_learns_nothing_and_the_rest_does(fresh):
    every = learning(fresh)
    adapt(fresh, AdaptationSpec(freeze=("vision", "text.blocks.0")))
    assert learning(fresh) == {n for n in every if not n.startswith(("vision.", "text.blocks.0."))}


def test_a_path_that_is_none_is_refused_with_those_there_are(fresh):
    with pytest.raises(EaglerayError, match="freeze: the model has no 'vison'") as caught:
        adapt(fresh, AdaptationSpec(freeze=("vison",)))
    assert "audio.blocks" in caught.value.remedy
    with pytest.raises(EaglerayError, match="no layer is named qwery"):
        adapt(fresh, AdaptationSpec(lora=LoraSpec(layers=("qwery",))))


def test_layers_further_from_the_top_learn_slower(fresh):
    rates = layer_rates(fresh, 0.5)
    blocks = len(fresh.text.blocks)
    assert rates["text.norm.weight"] == 1
    assert rates[f"text.blocks.{blocks - 1}.mlp.up.weight"] == 0.5
    assert rates["text.embed.weight"] == 0.5 ** (blocks + 1)
    assert rates["heads.log_scale"] == rates["decoder.embed.weight"] == 1
    before = {name: p.detach().clone() for name, p in fresh.named_parameters()}
    optimizer = LocalOptimizer(OptimizerSpec(weight_decay=0.5), dict(fresh.named_parameters()), rates)
    for p in fresh.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step(0.1)  # of decay alone, which is of matrices alone
    for name, p in fresh.named_parameters():
        kept = 1 - 0.1 * rates[name] * 0.5 if p.dim() > 1 else 1.0
        torch.testing.assert_close(p.detach(), before[name] * kept)


def test_low_rank_layers_change_nothing_at_first_and_alone_learn(fresh):
    images = torch.randn(2, 3, 32, 32)
    before = fresh.embed_image(images)
    adapt(fresh, LORA)
    torch.testing.assert_close(fresh.embed_image(images), before, atol=1e-6, rtol=0)
    outside = {name for name in learning(fresh) if not name.startswith("heads.")}
    assert outside
    assert all(
        name.rpartition(".")[2] in ("lora_down", "lora_up") or name.startswith("gate") for name in outside
    )
    assert not any(isinstance(layer, LoraLinear) for layer in fresh.heads.modules())


def test_merged_layers_compute_the_same(fresh):
    names = set(fresh.state_dict())
    adapt(fresh, LORA)
    for name, parameter in fresh.named_parameters():
        if name.endswith("lora_up"):
            torch.nn.init.normal_(parameter, std=0.3)
    images = torch.randn(2, 3, 32, 32)
    before = fresh.embed_image(images)
    merge(fresh)
    torch.testing.assert_close(fresh.embed_image(images), before)
    assert set(fresh.state_dict()) == names
