"""The optimizer of what a worker holds of each parameter, its schedule, and the norm of a gradient that is
spread over the mesh.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.utils import get_total_norm
from torch.optim import Adagrad, AdamW, Optimizer

from .local import local_part, split_as
from .spec import OptimizerSpec


@dataclass(frozen=True)
class Part:
    """What a worker has of a parameter.

    Attributes:
        name: of the parameter.
        weight: to be changed in place.
        gradient: of it; None without one.
        holders: workers of a pipeline's stage that have the same.
        is_copy: whether another parameter is the same one.
    """

    name: str
    weight: Tensor
    gradient: Tensor | None
    holders: int
    is_copy: bool


class LocalOptimizer:
    """An elementwise optimizer over this worker's part of each parameter: no two workers update the same
    entry differently, and none needs another's.

    Biases, norms and other vectors are not decayed. Decay is apart from the gradient (arXiv 1711.05101)
    whatever the algorithm.

    Args:
        spec: its settings.
        parameters: by name; those that want a gradient are changed.
        rates: parameter → factor of its learning rate; 1 where there is none.
        copies: names of parameters that are copies of others: changed like them, but not counted in a norm.
        holders: parameter → workers of a pipeline's stage that have the same of it; 1 where there is none.
    """

    def __init__(
        self,
        spec: OptimizerSpec,
        parameters: Mapping[str, nn.Parameter],
        rates: Mapping[str, float] | None = None,
        copies: Collection[str] = (),
        holders: Mapping[str, int] | None = None,
    ) -> None:
        self.spec, self._copies, self._holders = spec, frozenset(copies), holders or {}
        self._whole = {name: p for name, p in parameters.items() if p.requires_grad}
        with torch.no_grad():
            self._local = {name: nn.Parameter(local_part(p)) for name, p in self._whole.items()}
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        self._group: dict[str, tuple[float, float]] = {}
        for name, p in self._whole.items():
            self._group[name] = (rates or {}).get(name, 1.0), spec.weight_decay if p.dim() > 1 else 0.0
            groups.setdefault(self._group[name], []).append(self._local[name])
        self._inner = _make(
            spec,
            [{"params": params, "rate": rate, "decay": decay} for (rate, decay), params in groups.items()],
        )
        for p in self._local.values():
            self._inner.state[p] = {key: torch.zeros_like(p) for key in spec.kept}
            self._inner.state[p]["step"] = torch.zeros((), dtype=torch.float32, device=p.device)

    @property
    def passes(self) -> int:
        """Parts of this worker's rows whose gradients are taken one after the other."""
        return 1

    @torch.no_grad()
    def take(self, number: int, scale: float) -> None:
        """Divide the gradients by the scale that they were multiplied by."""
        if scale != 1:
            found = [local_part(p.grad) for p in self._whole.values() if p.grad is not None]
            torch._foreach_div_(found, scale)  # pyright: ignore[reportPrivateUsage]

    def gather(self) -> None:
        """Nothing: gradients are the sums of all workers' already."""

    @torch.no_grad()
    def parts(self) -> list[Part]:
        """What this worker has of each parameter."""
        return [
            Part(
                name,
                local_part(p).detach(),
                None if p.grad is None else local_part(p.grad),
                self._holders.get(name, 1),
                name in self._copies,
            )
            for name, p in self._whole.items()
        ]

    def gradients(self) -> dict[str, Tensor]:
        """The gradient of each parameter, of its shape, after `gather`; zeros where there is none."""
        return {
            name: torch.zeros_like(p) if p.grad is None else p.grad.detach()
            for name, p in self._whole.items()
        }

    def decay(self, name: str, learning_rate: float) -> float:
        """Factor of a parameter in a step, before its gradient."""
        rate, decay = self._group[name]
        return 1 - learning_rate * rate * decay

    def step(self, learning_rate: float) -> None:
        """Change the parameters by their gradients; on any mesh, one that nothing was read from has 0."""
        with torch.no_grad():
            for name, p in self._whole.items():
                local = self._local[name]
                local.data = local_part(p)  # sharding may have moved it
                local.grad = torch.zeros_like(local) if p.grad is None else local_part(p.grad)
        for group in self._inner.param_groups:
            group["lr"] = learning_rate * group["rate"]
            if group["decay"] and group["params"]:
                kept = 1 - learning_rate * group["rate"] * group["decay"]
                with torch.no_grad():
                    torch._foreach_mul_(group["params"], kept)  # pyright: ignore[reportPrivateUsage]
        self._inner.step()

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for whole, local in zip(self._whole.values(), self._local.values(), strict=True):
            whole.grad = local.grad = None

    def kept(self, name: str) -> dict[str, Tensor]:
        """What it keeps of a parameter, as far as this worker has it."""
        return self._inner.state[self._local[name]]

    def state(self) -> dict[str, Tensor]:
        """What it keeps, by name, split as the parameters are."""
        return {
            f"{name}.{key}": value if key == "step" else split_as(value, p)
            for name, p in self._whole.items()
            for key, value in self.kept(name).items()
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take what `state` gave, here or elsewhere."""
        with torch.no_grad():
            for name in self._whole:
                for key, value in self.kept(name).items():
                    value.copy_(local_part(state[f"{name}.{key}"]))


def _make(spec: OptimizerSpec, groups: list[dict[str, Any]]) -> Optimizer:
    options: dict[str, Any] = {"lr": spec.learning_rate, "weight_decay": 0.0}
    if spec.algorithm == "adagrad":
        return Adagrad(groups, eps=spec.eps, **options)
    return AdamW(groups, betas=spec.betas, eps=spec.eps, fused=True, **options)


def learning_rate(spec: OptimizerSpec, step: int, steps: int) -> float:
    """Learning rate of a step (from 0): linear warm-up, then cosine decay to a tenth."""
    if step < spec.warmup_steps:
        return spec.learning_rate * (step + 1) / spec.warmup_steps
    done = (step - spec.warmup_steps) / max(1, steps - spec.warmup_steps)
    return spec.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))


@torch.no_grad()
def clip_gradients(parts: Iterable[Part], max_norm: float) -> float:
    """Scale gradients down to a global norm, and return what the norm was.

    One all-reduce: every worker adds the squares of what it holds, divided by how many workers
    hold the same.

    Args:
        parts: this worker's.
        max_norm: the largest norm that is left as it is.

    Returns:
        The norm; one that is not finite changes nothing.
    """
    gradients: list[Tensor] = []
    counted: dict[int, list[Tensor]] = {}
    for part in parts:
        if part.gradient is not None:
            gradients.append(part.gradient)
            if not part.is_copy:
                counted.setdefault(part.holders, []).append(part.gradient)
    square = torch.zeros((), dtype=torch.float64)
    for holders, found in counted.items():
        square += get_total_norm(found).double().square().cpu() / holders
    dist.all_reduce(square)
    norm = float(square.sqrt())
    if max_norm < norm < math.inf:
        torch._foreach_mul_(gradients, max_norm / norm)  # pyright: ignore[reportPrivateUsage]
    return norm
