"""What is seen of each layer at a step: whether its gradient fits its format, how far its weights moved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch import distributed as dist

from .optimizer import Part
from .precision import SMALLEST, PrecisionState, Signals
from .spec import PrecisionControlSpec


class Watch:
    """Begun when a step's gradients are there, asked when the optimizer has used them; by all workers alike.

    Args:
        parts: what this worker has of each parameter, with its gradient.
        state: layer → format, of the whole model.
        control: the controller's settings.
    """

    def __init__(self, parts: Iterable[Part], state: PrecisionState, control: PrecisionControlSpec) -> None:
        self._layers = list(state.formats)
        scale = state.scale if state.is_scaled else control.loss_scale
        self._parts: list[tuple[Part, Tensor, int]] = []
        self._sums = torch.zeros(len(self._layers), 5, dtype=torch.float64)
        for part in parts:
            if part.gradient is None:
                continue
            # what is in none of them computes as the heads do, which are the last
            layer = next((i for i, path in enumerate(self._layers) if part.name.startswith(f"{path}.")), -1)
            gradient = part.gradient
            size = gradient.abs() * scale
            found = ((~gradient.isfinite()).sum(), ((size > 0) & (size < SMALLEST)).sum(), (size > 0).sum())
            self._sums[layer, :3] += torch.stack(found).double().cpu() / part.holders
            self._parts.append((part, part.weight.clone(), layer))

    def signals(self) -> Mapping[str, Signals]:
        """By layer, of all workers."""
        for part, before, layer in self._parts:
            moved = torch.stack([(part.weight - before).square().sum(), before.square().sum()])
            self._sums[layer, 3:] += moved.double().cpu() / part.holders
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
