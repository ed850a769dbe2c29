"""Training in sight of eight bits (arXiv 1712.05877, 3): what the exported form rounds is rounded here, too.

Weights and results keep their number format, but take only the values that eight bits have. Rounding has no
gradient, so that of what goes in is taken (straight through, arXiv 1308.3432); what lies beyond the limits
has none. Which values are rounded, and to what, `actors.serving.rounding` says: a product's input between
limits, its weights row by row; a convolution's result as well; a table's rows and projected distances as they
are looked up.

Limits follow the least and largest of each step's rows over all workers, and a step computes with those of
the steps before it: so what it computes is the same on every mesh. In the first one results aren't rounded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F

from ...models.heads.vocabulary import Vocabulary
from ...models.text import RelativeAttention
from ...models.vision import PositionBias
from .local import local_part
from .team import copy
from .tensor import PartLinear
from .vocabulary import ParallelEmbedding, ParallelVocabulary

LEVELS = 127
"""Steps of weights on each side of zero."""
STEPS = 255
"""Steps of a result between its limits."""
KEPT = 0.99
"""What limits keep of themselves at each step, after the first ones."""


class Limits(nn.Module):
    """Rounds results to 256 values between limits.

    Args:
        like: of whose type and place limits are; of half precision they are in single.

    Attributes:
        limits: (2,) least and largest; both 0 until something was seen, and nothing is rounded then.
        seen: (2,) the same since they were last moved, of the least the negative.
    """

    limits: Tensor
    seen: Tensor

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        dtype = torch.promote_types(like.dtype, torch.float32)
        for name, is_kept in (("limits", True), ("seen", False)):
            nothing = torch.zeros(2, dtype=dtype, device=like.device)
            self.register_buffer(name, nothing, persistent=is_kept)

    def forward(self, x: Tensor) -> Tensor:
        """Round x, of any shape."""
        if self.training and torch.is_grad_enabled():  # a pipeline first passes what memory happens to hold
            with torch.no_grad():
                extremes = torch.stack((-x.detach().amin(), x.detach().amax())).to(self.seen.dtype)
                torch.maximum(self.seen, extremes, out=self.seen)
        least, largest = self.limits
        width = largest - least
        step = width.clamp(min=1e-8) / STEPS
        zero = (-least / step).round().clamp(0, STEPS)
        wide = x.to(self.limits.dtype)
        kept = wide.clamp((0 - zero) * step, (STEPS - zero) * step)
        rounded = ((wide / step).round() + zero).clamp(0, STEPS).sub(zero) * step
        return torch.where(width > 0, kept + (rounded - kept).detach(), wide).to(x.dtype)

    def move(self, share: float) -> None:
        """Draw limits to what was seen, of which `share` stays as it was; the first time they are that."""
        found = self.seen * self.seen.new_tensor((-1, 1))
        moved = torch.where(self.limits.any(), torch.lerp(found, self.limits, share), found)
        self.limits.copy_(moved)
        self.seen.zero_()


def rounded_weights(weights: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Weights (out, ...) rounded to 255 values, row by row.

    Args:
        weights: all of a row, or a part of it.
        group: the workers that have the other parts.
    """
    with torch.no_grad():
        largest = weights.detach().flatten(1).abs().amax(dim=1)
        if group is not None:
            dist.all_reduce(largest, dist.ReduceOp.MAX, group)
        step = _step(largest).view(-1, *(1 for _ in weights.shape[1:]))
        off = (weights / step).round() * step - weights
    return weights + off


class RoundedLinear(nn.Linear):
    """A linear layer with rounded weights."""

    def forward(self, input: Tensor) -> Tensor:
        """Transform (..., in) to (..., out)."""
        return F.linear(input, rounded_weights(self.weight), self.bias)


class RoundedVocabulary(RoundedLinear, Vocabulary):
    """The same of a vocabulary."""


class RoundedPart(PartLinear):
    """The same of some of a layer's outputs, or inputs.

    Attributes:
        sharers: the workers that have other inputs of the same outputs; None if all inputs are here.
    """

    sharers: dist.ProcessGroup | None

    def local(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias."""
        weight, bias = super().local()
        return rounded_weights(weight, self.sharers), bias


class RoundedParallelVocabulary(ParallelVocabulary):
    """The same of a part of the tokens."""

    def forward(self, input: Tensor) -> Tensor:
        """Logits (..., V / workers) of this worker's tokens after hidden states (..., D)."""
        bias = self.bias if self.bias is None else local_part(self.bias)  # pyright: ignore[reportUnnecessaryComparison]
        return F.linear(copy(input, self.team), rounded_weights(local_part(self.weight)), bias)


class RoundedConv1d(nn.Conv1d):
    """A convolution with rounded weights."""

    def forward(self, input: Tensor) -> Tensor:
        """See `nn.Conv1d`."""
        return self._conv_forward(input, rounded_weights(self.weight), self.bias)


class RoundedConv2d(nn.Conv2d):
    """A convolution with rounded weights."""

    def forward(self, input: Tensor) -> Tensor:
        """See `nn.Conv2d`."""
        return self._conv_forward(input, rounded_weights(self.weight), self.bias)


KINDS: Mapping[type[nn.Module], type[nn.Module]] = {
    nn.Linear: RoundedLinear,
    Vocabulary: RoundedVocabulary,
    PartLinear: RoundedPart,
    ParallelVocabulary: RoundedParallelVocabulary,
    nn.Conv1d: RoundedConv1d,
    nn.Conv2d: RoundedConv2d,
}


def use_rounding(model: nn.Module) -> None:
    """Round what a model's exported form rounds, in place; of a split model, what is of this worker."""
    fixed: set[nn.Module] = set()  # what these compute hangs on no input: the exporter keeps the result
    for module in list(model.modules()):
        if isinstance(module, PositionBias):
            fixed |= set(module.modules())
        elif isinstance(module, RelativeAttention):
            fixed.add(module.per_head)
            module.per_head.register_forward_hook(_RoundHeads(module.head_dim))
        elif isinstance(module, nn.Embedding):
            module.register_forward_hook(_round_rows)
    for module in list(model.modules()):
        if module in fixed or type(module) not in KINDS:
            continue
        weight = module.get_parameter("weight")
        _add_limits(module, weight)
        module.__class__ = KINDS[type(module)]
        if isinstance(module, RoundedPart):
            module.sharers = _sharers(weight)


def limits_of(model: nn.Module) -> list[Limits]:
    """All limits of a model, in a fixed order."""
    return [module for module in model.modules() if isinstance(module, Limits)]


def move_limits(limits: Sequence[Limits], step: int, groups: Sequence[dist.ProcessGroup] = ()) -> None:
    """Move limits after a step (from 0) by what all workers saw in it.

    Args:
        limits: of this worker's layers.
        step: the first ones count more: (1 + step) / (10 + step) is kept at most.
        groups: of workers that have the same layers, or parts of them, one after the other.
    """
    if not limits:
        return
    seen = torch.stack([one.seen for one in limits])
    for group in groups:
        dist.all_reduce(seen, dist.ReduceOp.MAX, group)
    for one, extremes in zip(limits, seen, strict=True):
        one.seen.copy_(extremes)
        one.move(min(KEPT, (1 + step) / (10 + step)))


def _add_limits(module: nn.Module, weight: Tensor) -> None:
    module.add_module("of_input", Limits(weight))
    module.register_forward_pre_hook(_round_input)
    if isinstance(module, (nn.Conv1d, nn.Conv2d)):
        module.add_module("of_result", Limits(weight))
        module.register_forward_hook(_round_result)


def _round_input(module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return module.get_submodule("of_input")(given[0]), *given[1:]


def _round_result(module: nn.Module, _: tuple[Tensor, ...], result: Tensor) -> Tensor:
    return module.get_submodule("of_result")(result)


def _round_rows(table: nn.Module, _: tuple[Tensor, ...], rows: Tensor) -> Tensor:
    """Round rows that were looked up, by the largest of the whole table."""
    with torch.no_grad():
        largest = local_part(table.get_parameter("weight")).detach().abs().amax()
        if isinstance(table, ParallelEmbedding):
            table.team.all_reduce(largest, largest=True)
        step = _step(largest)
        off = (rows / step).round() * step - rows
    return rows + off


class _RoundHeads:
    """Rounds projected distances (L, H*K), head by head."""

    def __init__(self, head_dim: int) -> None:
        self.head_dim = head_dim

    def __call__(self, _: nn.Module, __: tuple[Tensor, ...], result: Tensor) -> Tensor:
        with torch.no_grad():
            heads = result.unflatten(-1, (-1, self.head_dim))
            step = _step(heads.abs().amax(dim=(0, 2)))[:, None]
            off = ((heads / step).round() * step - heads).flatten(-2)
        return result + off


def _step(largest: Tensor) -> Tensor:
    return largest.clamp(min=torch.finfo(torch.float32).tiny * 2**30) / LEVELS


def _sharers(weight: Tensor) -> dist.ProcessGroup | None:
    from torch.distributed.tensor import DTensor, Shard

    if isinstance(weight, DTensor) and weight.placements == (Shard(1),):
        return weight.device_mesh.get_group()
    return None
