"""A model without content: parameters of a worker's shapes, and what tensors without a place lack."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from .compression import ring_bytes
from .spec import ParallelSpec
from .team import Rows, Team
from .tensor import Layout, Sharing, split_model


class ImaginedTeam(Team):
    """Workers of whom there is none: what they would tell each other is counted.

    Args:
        size: workers.
        sent: takes bytes that each would have sent, by ring algorithms.
    """

    def __init__(self, size: int, sent: Callable[[float], None]) -> None:
        self.size, self.rank, self._sent = size, 0, sent

    def all_reduce(self, x: Tensor, *, largest: bool = False) -> None:
        """See `Team`."""
        self._sent(ring_bytes(x.nbytes, self.size))

    def all_gather(self, parts: Tensor, part: Tensor) -> None:
        """See `Team`."""
        self._sent((self.size - 1) * part.nbytes)

    def reduce_scatter(self, part: Tensor, parts: Tensor) -> None:
        """See `Team`."""
        self._sent((self.size - 1) * part.nbytes)


def split_meta_tensors(
    model: nn.Module, parallel: ParallelSpec, sent: Callable[[float], None]
) -> list[Sharing]:
    """Split a model without content as a worker of a mesh would; `sent` is told what crosses from then on."""
    made: dict[int, nn.Parameter] = {}  # tied weights stay tied

    def layout(within: ParallelSpec) -> Layout:
        one, other = parallel.tensor, within.tensor
        rows = None
        if one != other:
            rows = Rows(ImaginedTeam(max(one, other) // min(one, other), sent), joins=other > one)

        def divide(parameter: nn.Parameter, axis: int) -> nn.Parameter:
            if id(parameter) not in made:
                part = parameter.detach().chunk(other, axis)[0].clone()
                made[id(parameter)] = nn.Parameter(part, parameter.requires_grad)
            return made[id(parameter)]

        return Layout(ImaginedTeam(other, sent), divide, rows)

    layouts = {name: layout(parallel.within(name)) for name in parallel.grids}
    return split_model(model, layout(parallel), layouts)


def cast(layer: nn.Module, dtype: torch.dtype) -> None:
    """Compute a layer in a format, as a sharded module of that policy does."""
    for module in layer.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.dtype != dtype:
                setattr(module, name, nn.Parameter(parameter.detach().to(dtype), parameter.requires_grad))

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
        return tree_map(fit, (args, kwargs))

    def fit(x: object) -> object:
        return x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x

    layer.register_forward_pre_hook(enter, with_kwargs=True)


class _Fused(torch.autograd.Function):
    """Attention by a fused kernel, as far as memory goes (arXiv 2205.14135): no scores are kept."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: FunctionCtx, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None
    ) -> Tensor:
        mixed = query.new_empty(*query.shape[:-1], value.shape[-1])
        normaliser = query.new_empty(query.shape[:-1])
        ctx.save_for_backward(query, key, value, bias, mixed, normaliser)  # pyright: ignore[reportArgumentType]
        return mixed

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,  # noqa: ANN401 - torch's own type lacks what it has here
        gradient: Tensor,
    ) -> tuple[Tensor | None, ...]:
        given = ctx.saved_tensors[:4]
        wanted = zip(given, ctx.needs_input_grad, strict=True)
        return tuple(torch.empty_like(x) if x is not None and needed else None for x, needed in wanted)


class _Ctc(torch.autograd.Function):
    """CTC as far as memory goes: the likelihoods of all beginnings are kept (ICML 2006, 369, section 4.1)."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: FunctionCtx, log_probs: Tensor, tokens: Tensor
    ) -> Tensor:
        positions, rows = log_probs.shape[:2]
        ctx.save_for_backward(log_probs, log_probs.new_empty(rows, positions, 2 * tokens.shape[1] + 1))
        return log_probs.new_empty(rows)

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,  # noqa: ANN401 - torch's own type lacks what it has here
        gradient: Tensor,
    ) -> tuple[Tensor, None]:
        return torch.empty_like(ctx.saved_tensors[0]), None


class StandIns(TorchFunctionMode):
    """Two functions that tensors without a place have not: fused attention and CTC.

    Attributes:
        flops: of attention's forward passes so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever it gives
        kwargs = kwargs or {}
        if func is F.ctc_loss:
            return _Ctc.apply(*args[:2])  # pyright: ignore[reportUnknownMemberType]
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        query, key, value = args
        self.flops += 2 * query.numel() * key.shape[-2] + 2 * query[..., 0].numel() * value[0, 0].numel()
        return _Fused.apply(query, key, value, kwargs.get("attn_mask"))  # pyright: ignore[reportUnknownMemberType]


class _Answer(NamedTuple):
    """What an adaptive softmax gives, as far as it is read."""

    output: Tensor


def all_words(head: nn.AdaptiveLogSoftmaxWithLoss, hidden: Tensor, target: Tensor) -> _Answer:
    """As if every token could be any word: which are rare, only content would tell."""
    output = head.log_prob(hidden).gather(1, target[:, None]).squeeze(1)
    return _Answer(output)
