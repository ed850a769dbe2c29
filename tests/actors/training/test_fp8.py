"""Products in 8 bits: close to those of full precision, forward and backward; training gets on with them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from eagleray.actors.training.fp8 import EightBitLinear, quantised, use_eight_bits
from eagleray.actors.training.group import run_group
from eagleray.actors.training.mesh import check_topology
from eagleray.actors.training.spec import ObjectiveSpec, OptimizerSpec, ParallelSpec, TrainingSpec
from eagleray.workflows.errors import EaglerayError

from ..conftest import MODEL
from .test_precision import STEPS, job_of, run


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e5])
def test_the_largest_entry_just_fits(kind, size):
    tensor = size * torch.randn(32, 64).t()
    eight, scale = quantised(tensor, kind)
    assert eight.is_contiguous()  # a GPU multiplies no other
    assert eight.float().isfinite().all()
    assert float(eight.float().abs().max()) == torch.finfo(kind).max
    off = (eight.float() * scale - tensor).abs() / tensor.abs().clamp(min=tensor.abs().max() / 50)
    assert float(off.max()) < torch.finfo(kind).eps


def test_nothing_but_zeros_stays_so():
    eight, scale = quantised(torch.zeros(16, 16), torch.float8_e4m3fn)
    assert not (eight.float() * scale).any()


def far(mine: torch.Tensor, theirs: torch.Tensor) -> float:
    mine, theirs = mine.detach().float(), theirs.detach().float()
    return float((mine - theirs).norm() / theirs.norm())


def test_a_layer_and_its_gradients_are_close_to_those_of_full_precision():
    torch.manual_seed(0)
    exact = nn.Linear(96, 64)
    layer = nn.Sequential(nn.Linear(96, 64)).bfloat16()
    layer[0].load_state_dict(exact.state_dict())
    use_eight_bits(layer)
    assert isinstance(layer[0], EightBitLinear)
    x, weights = torch.randn(4, 8, 96), torch.randn(4, 8, 64)
    inputs = [x.clone().requires_grad_(), x.bfloat16().requires_grad_()]
    found = [exact(inputs[0]), layer(inputs[1])]
    for given in found:
        (given * weights).sum().backward()
    assert 0.001 < far(found[1], found[0]) < 0.05
    for mine, theirs in ((inputs[1], inputs[0]), (layer[0].weight, exact.weight)):
        assert 0.001 < far(mine.grad, theirs.grad) < 0.1
    assert far(layer[0].bias.grad, exact.bias.grad) < 0.01


def test_sizes_that_the_device_has_no_product_for_are_multiplied_in_16():
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(96, 64)).bfloat16()
    x = torch.randn(5, 96).bfloat16()
    expected = layer(x)
    use_eight_bits(layer)
    assert torch.equal(layer(x), expected)


def test_training_gets_on_as_with_16_bits(corpus_folder):
    rates = {}
    objective = ObjectiveSpec(caption=1.0, classification=0.3)
    for precision in ("bf16", "fp8"):
        seen = run_group(run, 2, job_of(corpus_folder, precision, objective=objective, data=2))[0]
        rates[precision] = [loss for loss, *_ in seen]
    assert len(rates["fp8"]) == STEPS
    assert rates["fp8"] != rates["bf16"]
    assert rates["fp8"] == pytest.approx(rates["bf16"], rel=0.05)


def test_layers_of_8_bits_are_not_divided():
    spec = TrainingSpec(
        kind="pretrain",
        precision="fp8",
        objective=ObjectiveSpec(contrastive=1.0),
        optimizer=OptimizerSpec(),
        parallel=ParallelSpec(tensor=2),
    )
    with pytest.raises(EaglerayError, match="8 bits are not divided") as caught:
        check_topology(spec, MODEL, "pretrain")
    assert "pretrain.parallel.tensor=1" in caught.value.remedy
