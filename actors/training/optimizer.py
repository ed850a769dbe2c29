"""The optimizer of what a worker holds of each parameter, its schedule, and the norm of a gradient that is
spread over the mesh.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm
from torch.optim import Adagrad, AdamW, Optimizer

from .spec import OptimizerSpec
from .tensor import local_part, num_holders

STATE = {"adamw": ("exp_avg", "exp_avg_sq"), "adagrad": ("sum",)}
"""What an algorithm keeps of each parameter, beside the number of its steps."""


class LocalOptimizer:
    """An elementwise optimizer over this worker's part of each parameter: no two workers update the same
    entry differently, and none needs another's.

    Biases, norms and other vectors are not decayed. Decay is apart from the gradient (arXiv 1711.05101)
    whatever the algorithm.

    Args:
        spec: its settings.
        model: whose parameters that want a gradient it changes.
        rates: parameter → factor of its learning rate; 1 where there is none.
    """

    def __init__(
        self, spec: OptimizerSpec, model: nn.Module, rates: Mapping[str, float] | None = None
    ) -> None:
        self.spec = spec
        self._whole = {name: p for name, p in model.named_parameters() if p.requires_grad}
        with torch.no_grad():
            self._local = {name: nn.Parameter(local_part(p)) for name, p in self._whole.items()}
        groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
        for name, parameter in self._whole.items():
            key = (rates or {}).get(name, 1.0), parameter.dim() > 1
            groups.setdefault(key, []).append(self._local[name])
        self._inner = _make(
            spec,
            [
                {"params": params, "rate": rate, "decay": spec.weight_decay if is_matrix else 0.0}
                for (rate, is_matrix), params in groups.items()
            ],
        )
        for p in self._local.values():
            self._inner.state[p] = {key: torch.zeros_like(p) for key in STATE[spec.algorithm]}
            self._inner.state[p]["step"] = torch.zeros((), dtype=torch.float32, device=p.device)

    def step(self, learning_rate: float) -> None:
        """Change the parameters by their gradients."""
        with torch.no_grad():
            for name, p in self._whole.items():
                local = self._local[name]
                local.data = local_part(p)  # sharding may have moved it
                local.grad = None if p.grad is None else local_part(p.grad)
        for group in self._inner.param_groups:
            group["lr"] = learning_rate * group["rate"]
            if group["decay"] and (moving := [p for p in group["params"] if p.grad is not None]):
                with torch.no_grad():
                    torch._foreach_mul_(moving, 1 - group["lr"] * group["decay"])  # pyright: ignore[reportPrivateUsage]
        self._inner.step()

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for whole, local in zip(self._whole.values(), self._local.values(), strict=True):
            whole.grad = local.grad = None

    def state(self) -> dict[str, Tensor]:
        """What it keeps, by name, split as the parameters are; to be saved, or loaded in place."""
        found: dict[str, Tensor] = {}
        for name, p in self._whole.items():
            for key, value in self._inner.state[self._local[name]].items():
                found[f"{name}.{key}"] = value if key == "step" else _split_as(value, p)
        return found

    def take_over(self, other: LocalOptimizer) -> None:
        """Go on where another one of the same parameters stands."""
        for name, p in self._local.items():
            self._inner.state[p] = other._inner.state[other._local[name]]


def _make(spec: OptimizerSpec, groups: list[dict[str, Any]]) -> Optimizer:
    options: dict[str, Any] = {"lr": spec.learning_rate, "weight_decay": 0.0}
    if spec.algorithm == "adagrad":
        return Adagrad(groups, eps=spec.eps, **options)
    return AdamW(groups, betas=spec.betas, eps=spec.eps, fused=True, **options)


def _split_as(value: Tensor, parameter: Tensor) -> Tensor:
    """A worker's part of something of a parameter's shape, as a part of the whole."""
    if not isinstance(parameter, DTensor):
        return value
    return DTensor.from_local(
        value,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def learning_rate(spec: OptimizerSpec, step: int, steps: int) -> float:
    """Learning rate of a step (from 0): linear warm-up, then cosine decay to a tenth."""
    if step < spec.warmup_steps:
        return spec.learning_rate * (step + 1) / spec.warmup_steps
    done = (step - spec.warmup_steps) / max(1, steps - spec.warmup_steps)
    return spec.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))


@torch.no_grad()
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
    gradients: list[Tensor] = []
    counted: dict[int, list[Tensor]] = {}
    for p in parameters:
        if p.grad is not None:
            gradients.append(local_part(p.grad))
            if id(p) not in known:
                counted.setdefault(num_holders(p.grad, world_size // depth), []).append(gradients[-1])
    square = torch.zeros((), dtype=torch.float64)
    for holders, found in counted.items():
        square += get_total_norm(found).double().square().cpu() / holders
    dist.all_reduce(square)
    norm = float(square.sqrt())
    if max_norm < norm < math.inf:
        torch._foreach_mul_(gradients, max_norm / norm)  # pyright: ignore[reportPrivateUsage]
    return norm
