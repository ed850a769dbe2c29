"""Matrix products of linear layers in 8 bits (arXiv 2209.05433): inputs and weights with 4 bits of exponent
(e4m3), gradients with 5 (e5m2), each tensor scaled so that its largest entry just fits.

Sums are kept in fp32 by the device, and what comes out is bf16, as is everything between two products. Of its
input a layer keeps the 8 bits only.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from ...workflows.errors import EaglerayError

MULTIPLE = 16
"""Of which a product's sizes must be multiples."""
OLDEST = (8, 9)
"""Compute capability of the first GPUs that multiply in 8 bits."""


class EightBitLinear(nn.Linear):
    """A linear layer that multiplies in 8 bits wherever sizes allow it."""

    def forward(self, input: Tensor) -> Tensor:
        """Transform (..., in) to (..., out)."""
        fits = all(size % MULTIPLE == 0 for size in (*self.weight.shape, input[..., 0].numel()))
        if not fits:
            return super().forward(input)
        rows = input.flatten(0, -2)
        found = _Product.apply(rows, self.weight)
        assert isinstance(found, Tensor)
        if self.bias is not None:  # pyright: ignore[reportUnnecessaryComparison]
            found = found + self.bias
        return found.unflatten(0, input.shape[:-1])


def use_eight_bits(layer: nn.Module) -> None:
    """Let a layer's linear layers multiply in 8 bits."""
    for module in layer.modules():
        if type(module) is nn.Linear:
            module.__class__ = EightBitLinear


def check_device(device: torch.device) -> None:
    """Refuse a GPU that doesn't multiply in 8 bits; a CPU does, for tests, and is no faster for it.

    Raises:
        EaglerayError: with what it is.
    """
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < OLDEST:
        raise EaglerayError(
            f"{torch.cuda.get_device_name(device)} doesn't multiply in 8 bits",
            "set precision=bf16, or use a GPU of the Ada or Hopper generation, or a later one",
        )


def quantised(tensor: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """A tensor in 8 bits, row after row, and what its entries are to be multiplied by, a scalar in fp32."""
    tensor, most = tensor.contiguous(), torch.finfo(kind).max
    scale = most / tensor.abs().amax().float().clamp(min=1e-12)
    return (tensor * scale).clamp(-most, most).to(kind), scale.reciprocal()


class _Context(FunctionCtx):
    saved_tensors: tuple[Tensor, Tensor, Tensor]


class _Product(torch.autograd.Function):
    """x (N, in) times weight (out, in), transposed: (N, out) in bf16."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: _Context, x: Tensor, weight: Tensor
    ) -> Tensor:
        (rows, of_rows), (kept, of_weight) = (quantised(t, torch.float8_e4m3fn) for t in (x, weight))
        ctx.save_for_backward(rows, of_rows, weight)
        return _multiply(rows, of_rows, kept, of_weight)

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: _Context, gradient: Tensor
    ) -> tuple[Tensor, Tensor]:
        rows, of_rows, weight = ctx.saved_tensors
        coming, of_coming = quantised(gradient, torch.float8_e5m2)
        kept, of_weight = quantised(weight, torch.float8_e4m3fn)
        of_input = _multiply(coming, of_coming, kept.t().contiguous(), of_weight)
        of_weights = _multiply(coming.t().contiguous(), of_coming, rows.t().contiguous(), of_rows)
        return of_input, of_weights


def _multiply(a: Tensor, scale_a: Tensor, b: Tensor, scale_b: Tensor) -> Tensor:
    """A (N, K) times b (M, K), transposed; both row after row."""
    return torch._scaled_mm(  # pyright: ignore[reportPrivateUsage]
        a, b.t(), scale_a=scale_a, scale_b=scale_b, out_dtype=torch.bfloat16
    )
