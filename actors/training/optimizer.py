"""AdamW over sharded parameters, its schedule, and the norm of a gradient that is spread over the mesh."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import distributed as dist
from torch import nn
from torch.optim import AdamW

from .spec import OptimizerSpec
from .tensor import local_part, num_holders


def make_optimizer(spec: OptimizerSpec, model: nn.Module, rates: Mapping[str, float] | None = None) -> AdamW:
    """AdamW; biases, norms and other vectors are not decayed.

    Args:
        spec: its settings.
        model: whose parameters that want a gradient it changes.
        rates: parameter → factor of its learning rate; 1 where there is none.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = (rates or {}).get(name, 1.0), parameter.dim() > 1
            groups.setdefault(key, []).append(parameter)
    return AdamW(
        [
            {"params": params, "weight_decay": spec.weight_decay if is_matrix else 0.0, "rate": rate}
            for (rate, is_matrix), params in sorted(groups.items(), key=lambda group: group[0], reverse=True)
        ],
        lr=spec.learning_rate,
        betas=spec.betas,
    )


def learning_rate(spec: OptimizerSpec, step: int, steps: int) -> float:
    """Learning rate of a step (from 0): linear warm-up, then cosine decay to a tenth."""
    if step < spec.warmup_steps:
        return spec.learning_rate * (step + 1) / spec.warmup_steps
    done = (step - spec.warmup_steps) / max(1, steps - spec.warmup_steps)
    return spec.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))


def clip_gradients(
    parameters: Iterable[nn.Parameter],
    max_norm: float,
    world_size: int,
    depth: int,
    copies: Sequence[nn.Parameter] = (),
) -> float:
    """Scale gradients down to a global norm, and return what the norm was.

    One all-reduce: every worker adds the squares of what it holds, divided by how many workers
    hold the same.

    Args:
        parameters: this worker's, sharded (DTensor) or whole.
        max_norm: the largest norm that is left as it is.
        world_size: workers in the mesh.
        depth: pipeline workers; each parameter belongs to one of them.
        copies: of other parameters, among these: scaled like them, but not counted again.

    Returns:
        The norm; one that is not finite changes nothing.
    """
    known = {id(copy) for copy in copies}
    gradients = [(p.grad, id(p) in known) for p in parameters if p.grad is not None]
    square = torch.zeros((), dtype=torch.float64)
    for gradient, is_known in gradients:
        if is_known:
            continue
        holders = num_holders(gradient, world_size // depth)
        square += local_part(gradient).double().square().sum().cpu() / holders
    dist.all_reduce(square)
    norm = float(square.sqrt())
    if max_norm < norm < math.inf:
        for gradient, _ in gradients:
            gradient.mul_(max_norm / norm)
    return norm
