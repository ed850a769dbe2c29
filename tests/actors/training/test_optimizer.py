import math
from itertools import pairwise

import pytest

from eagleray.actors.training.optimizer import learning_rate
from eagleray.actors.training.spec import OptimizerSpec

SPEC = OptimizerSpec(learning_rate=1e-3, warmup_steps=10)


def test_learning_rate_rises_to_its_peak_then_falls_to_a_tenth():
    rates = [learning_rate(SPEC, step, 100) for step in range(101)]
    assert rates[9] == pytest.approx(1e-3)
    assert all(a < b for a, b in pairwise(rates[:10]))
    assert all(a >= b for a, b in pairwise(rates[10:]))
    assert math.isclose(rates[-1], 1e-4)
