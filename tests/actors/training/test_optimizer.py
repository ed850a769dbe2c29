import math
from itertools import pairwise

import pytest
import torch

from eagleray.actors.training.group import run_group
from eagleray.actors.training.optimizer import clip_gradients, learning_rate
from eagleray.actors.training.spec import OptimizerSpec

SPEC = OptimizerSpec(learning_rate=1e-3, warmup_steps=10)


def test_learning_rate_rises_to_its_peak_then_falls_to_a_tenth():
    rates = [learning_rate(SPEC, step, 100) for step in range(101)]
    assert rates[9] == pytest.approx(1e-3)
    assert all(a < b for a, b in pairwise(rates[:10]))
    assert all(a >= b for a, b in pairwise(rates[10:]))
    assert math.isclose(rates[-1], 1e-4)


def clip(rank: int, value: float) -> float:
    parameter = torch.nn.Parameter(torch.zeros(4))
    parameter.grad = torch.full((4,), value)
    return clip_gradients([parameter], 1.0, world_size=1, depth=1)


def test_a_norm_that_is_not_finite_is_told_and_changes_nothing():
    assert run_group(clip, 1, 3.0) == [6.0]
    assert run_group(clip, 1, math.inf) == [math.inf]
