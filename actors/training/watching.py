"""What is seen of each layer at a step: whether its gradient fits its format, how far its weights moved."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch import distributed as dist

from .precision import SMALLEST, PrecisionState, Signals
from .spec import PrecisionControlSpec
from .tensor import local_part, num_holders


class Watch:
    """Begun when a step's gradients are there, asked when the optimizer has used them; by all workers alike.

    Args:
        model: this worker's part of it.
        state: layer → format, of the whole model.
        control: the controller's settings.
        depth: pipeline workers.
    """

    def __init__(
        self, model: nn.Module, state: PrecisionState, control: PrecisionControlSpec, depth: int
    ) -> None:
        self._layers = list(state.formats)
        scale = state.scale if state.is_scaled else control.loss_scale
        self._parameters: list[tuple[nn.Parameter, Tensor, int, int]] = []
        self._sums = torch.zeros(len(self._layers), 5, dtype=torch.float64)
        for name, p in model.named_parameters():
            if p.grad is None:
                continue
            # what is in none of them computes as the heads do, which are the last
            layer = next((i for i, path in enumerate(self._layers) if name.startswith(f"{path}.")), -1)
            holders = num_holders(p, dist.get_world_size() // depth)
            gradient, weight = local_part(p.grad), local_part(p).detach()
            size = gradient.abs() * scale
            found = ((~gradient.isfinite()).sum(), ((size > 0) & (size < SMALLEST)).sum(), (size > 0).sum())
            self._sums[layer, :3] += torch.stack(found).double().cpu() / holders
            self._parameters.append((p, weight.clone(), layer, holders))

    def signals(self) -> Mapping[str, Signals]:
        """By layer, of all workers."""
        for p, before, layer, holders in self._parameters:
            moved = torch.stack([(local_part(p).detach() - before).square().sum(), before.square().sum()])
            self._sums[layer, 3:] += moved.double().cpu() / holders
        dist.all_reduce(self._sums)
        return {
            layer: Signals(
                overflowed=bad > 0,
                underflow=small / used if used else 0.0,
                update=(moved / weights) ** 0.5 if weights else 1.0,
            )
            for layer, (bad, small, used, moved, weights) in zip(
                self._layers, self._sums.tolist(), strict=True
            )
            if used or bad
        }
