"""Gradients of weights, put off until a pipeline's worker has nothing else to do (ZB-H1, arXiv 2401.10241).

The worker before waits for the gradient of its output, and nobody waits for those of weights. A linear layer
computes the first when its backward pass comes, and leaves the second for later; other layers compute both.
torch's own division cuts the autograd graph in two instead. The certificate refused it: where parameters are
sharded, some gradients of every tower were missing or wrong, that of the last norm among them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.autograd.function import FunctionCtx
from torch.distributed.pipelining import PipelineStage
from torch.nn import functional as F

from .local import split_as
from .tensor import PLAIN, PartLinear

Work = Callable[[], None]


class Deferred:
    """What the linear layers of a slice have put off."""

    def __init__(self) -> None:
        self.collects = False
        self._work: list[Work] = []

    @contextmanager
    def collecting(self, collects: bool) -> Generator[None]:
        """Put off, or not, in the backward passes within."""
        self.collects = collects
        try:
            yield
        finally:
            self.collects = False

    def put_off(self, work: Work) -> None:
        """Leave something for later."""
        self._work.append(work)

    def take(self) -> Work:
        """All that was put off since it was last taken, to be done by a call."""
        taken, self._work = self._work, []

        @torch.no_grad()  # else a gradient remembers what it was made of, and keeps it
        def do() -> None:
            for work in taken:
                work()

        return do


class DeferringLinear(PartLinear):
    """A linear layer that may put its weights' gradient off."""

    deferred: Deferred

    def forward(self, input: Tensor) -> Tensor:
        """Transform (..., in) to (..., out)."""
        if not (torch.is_grad_enabled() and self.weight.requires_grad):
            return super().forward(input)
        return _Linear.apply(input, *self.local(), self)  # pyright: ignore[reportReturnType]


class DeferringStage(PipelineStage):
    """A pipeline's stage that puts off what its `DeferringLinear` layers can."""

    def __init__(
        self,
        module: nn.Module,
        number: int,
        num_slices: int,
        device: torch.device,
        *,
        group: dist.ProcessGroup,
    ) -> None:
        self._deferred = defer(module)
        super().__init__(module, number, num_slices, device, group=group, dw_builder=self._deferred.take)

    def backward_one_chunk(
        self,
        bwd_chunk_id: int,
        loss: Tensor | None = None,
        full_backward: bool = True,
        last_backward: bool = False,
    ) -> None:
        """The backward pass of a microbatch, whole, or for the inputs only as far as that can be."""
        with self._deferred.collecting(not full_backward):
            super().backward_one_chunk(bwd_chunk_id, loss, full_backward, last_backward)


def defer(module: nn.Module) -> Deferred:
    """Let the linear layers of a module put their weights' gradients off, all to one place."""
    known = (layer.deferred for layer in module.modules() if isinstance(layer, DeferringLinear))
    deferred = next(known, None) or Deferred()
    for layer in module.modules():
        if type(layer) in PLAIN:
            layer.__class__ = DeferringLinear
        if isinstance(layer, DeferringLinear):
            layer.deferred = deferred
    return deferred


class _Context(FunctionCtx):
    layer: DeferringLinear
    saved_tensors: tuple[Tensor, Tensor]
    needs_input_grad: tuple[bool, ...]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: _Context, x: Tensor, weight: Tensor, bias: Tensor | None, layer: DeferringLinear
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.layer = layer
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: _Context, gradient: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        (x, weight), layer = ctx.saved_tensors, ctx.layer
        of_input = gradient @ weight if ctx.needs_input_grad[0] else None

        def of_weight() -> Tensor:
            return gradient.flatten(0, -2).mT @ x.flatten(0, -2)

        def of_bias() -> Tensor | None:
            return gradient.flatten(0, -2).sum(0) if ctx.needs_input_grad[2] else None

        if not layer.deferred.collects:
            return of_input, of_weight(), of_bias(), None

        def later() -> None:
            # the layer's own: where activations are computed again, what was saved is a copy
            for parameter, found in ((layer.weight, of_weight()), (layer.bias, of_bias())):
                if found is not None:
                    found = split_as(found, parameter)
                    parameter.grad = found if parameter.grad is None else parameter.grad + found

        layer.deferred.put_off(later)
        return of_input, None, None, None
