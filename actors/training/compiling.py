"""Compiled layers, held to the same layers as they are: what a compiler makes of a layer may be wrong, and
nobody would see it. On an H100 with torch 2.11, a text model in bf16 got worse with every step, compiled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch import distributed as dist

from ...workflows.errors import EaglerayError
from .local import local_part

HELD_STEPS = 3
"""First steps of a training at which both are computed: an error may come with the first update."""
TOLERANCES = {"fp64": 1e-9, "fp32": 1e-3}
"""Precision → how far a gradient may be off, as a part of its norm; rounding in half precision is coarse."""
HALF_TOLERANCE = 0.1


def hold_to_eager(run: Callable[[], None], parameters: Iterable[nn.Parameter], precision: str) -> None:
    """Refuse compiled layers whose gradient isn't that of the layers as they are; all workers call it.

    Args:
        run: gives parameters a gradient; called twice.
        parameters: of this worker's part of the model; they have no gradient, before and after.
        precision: of the training.

    Raises:
        EaglerayError: with how far it is off.
    """
    mine = list(parameters)

    def gradients(stance: str) -> list[Tensor]:
        with torch.compiler.set_stance(stance):
            run()
        found = [local_part(p.grad).clone() for p in mine if p.grad is not None]
        for p in mine:
            p.grad = None
        return found

    eager, compiled = gradients("force_eager"), gradients("default")
    sums = torch.zeros(2, dtype=torch.float64)
    for one, other in zip(eager, compiled, strict=True):
        sums += torch.stack([(one - other).double().square().sum(), one.double().square().sum()]).cpu()
    dist.all_reduce(sums)
    off = math.sqrt(float(sums[0] / sums[1].clamp(min=1e-300)))
    if not off <= TOLERANCES.get(precision, HALF_TOLERANCE):
        raise EaglerayError(
            f"compiled layers have another gradient than the same layers as they are: it is {off:.2g} of its "
            "norm off",
            "set compile_layers=false; another version of torch may do better",
        )
