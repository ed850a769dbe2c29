import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from eagleray.actors.training.group import run_group
from eagleray.actors.training.optimizer import LocalOptimizer, Part, clip_gradients, learning_rate
from eagleray.actors.training.spec import OptimizerSpec

SPEC = OptimizerSpec(learning_rate=1e-3, warmup_steps=10)


def test_learning_rate_rises_to_its_peak_then_falls_to_a_tenth():
    rates = [learning_rate(SPEC, step, 100) for step in range(101)]
    assert rates[9] == pytest.approx(1e-3)
    assert all(a < b for a, b in pairwise(rates[:10]))
    assert all(a >= b for a, b in pairwise(rates[10:]))
    assert math.isclose(rates[-1], 1e-4)


def clip(rank: int, value: float) -> float:
    part = Part("a", torch.zeros(4), torch.full((4,), value), holders=1, is_copy=False)
    return clip_gradients([part], 1.0)


def test_a_norm_that_is_not_finite_is_told_and_changes_nothing():
    assert run_group(clip, 1, 3.0) == [6.0]
    assert run_group(clip, 1, math.inf) == [math.inf]


@pytest.mark.parametrize("algorithm", ["adamw", "adagrad"])
def test_it_computes_what_torch_does(algorithm):
    torch.manual_seed(0)
    ours, theirs = nn.Linear(5, 3).double(), nn.Linear(5, 3).double()
    theirs.load_state_dict(ours.state_dict())
    spec = OptimizerSpec(algorithm=algorithm, weight_decay=0.1, eps=1e-6)
    mine = LocalOptimizer(spec, dict(ours.named_parameters()))
    if algorithm == "adamw":
        decayed = [{"params": [theirs.weight], "weight_decay": 0.1}, {"params": [theirs.bias]}]
        other = torch.optim.AdamW(decayed, betas=spec.betas, eps=1e-6, weight_decay=0.0)
    else:
        other = torch.optim.Adagrad(theirs.parameters(), eps=1e-6)
    for step in range(4):
        x = torch.randn(7, 5, dtype=torch.float64)
        for model in (ours, theirs):
            model(x).square().sum().backward()
        for group in other.param_groups:
            group["lr"] = 0.1 / (step + 1)
        if algorithm == "adagrad":
            with torch.no_grad():
                theirs.weight.mul_(1 - 0.1 * 0.1 / (step + 1))
        mine.step(0.1 / (step + 1))
        other.step()
        for optimizer in (mine, other):
            optimizer.zero_grad()
        torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(ours.bias, theirs.bias, rtol=1e-12, atol=1e-14)
