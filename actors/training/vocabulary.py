"""Tensor parallelism of a vocabulary: each worker embeds, and gives logits of, a part of the tokens.

No worker ever has all logits: of each position the workers tell each other three numbers (Megatron-LM, arXiv
1909.08053, section 3).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.autograd.function import FunctionCtx
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn import functional as F

from ...models.heads.vocabulary import Vocabulary
from ...models.losses import IGNORED, promoted


class Divided:
    """Has a part of the tokens.

    Attributes:
        group: the tensor-parallel process group.
        first: the first token that this worker has.
    """

    group: dist.ProcessGroup
    first: int


class ParallelEmbedding(Divided, nn.Embedding):
    """Embeds a part of the tokens; the workers' sum has all of them."""

    def forward(self, input: Tensor) -> Tensor:
        """Embed tokens (...) as (..., D)."""
        weight = _local(self.weight)
        places, mine = _places(input, self.first, weight.shape[0])
        found = F.embedding(places, weight) * mine[..., None]
        return _Sum.apply(found, self.group)  # pyright: ignore[reportReturnType]


class ParallelVocabulary(Divided, Vocabulary):
    """Logits of a part of the tokens."""

    def forward(self, input: Tensor) -> Tensor:
        """Logits (..., V / workers) of this worker's tokens after hidden states (..., D)."""
        bias = self.bias if self.bias is None else _local(self.bias)  # pyright: ignore[reportUnnecessaryComparison]
        same = _Copy.apply(input, self.group)
        assert isinstance(same, Tensor)
        return F.linear(same, _local(self.weight), bias)

    def nll(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Negative log-likelihoods (...) of targets (...) among all workers' tokens; 0 where `IGNORED`."""
        logits = promoted(self(hidden)).flatten(0, -2)
        nll = _CrossEntropy.apply(logits, targets.flatten(), self.first, self.group)
        assert isinstance(nll, Tensor)
        return nll.unflatten(0, targets.shape)


def split_vocabularies(model: nn.Module, mesh: DeviceMesh) -> None:
    """Divide embeddings and heads over `mesh` in place, as far as it divides their tokens."""
    parallel: dict[type[nn.Module], type[ParallelEmbedding | ParallelVocabulary]] = {
        nn.Embedding: ParallelEmbedding,
        Vocabulary: ParallelVocabulary,
    }
    for layer in list(model.modules()):
        kind = parallel.get(type(layer))
        if kind is None or layer.get_parameter("weight").shape[0] % mesh.size():
            continue
        for name, parameter in list(layer.named_parameters(recurse=False)):
            split = nn.Parameter(distribute_tensor(parameter, mesh, [Shard(0)]), parameter.requires_grad)
            layer.register_parameter(name, split)
        layer.__class__ = kind
        assert isinstance(layer, (ParallelEmbedding, ParallelVocabulary))
        layer.group = mesh.get_group()
        layer.first = mesh.get_local_rank() * (layer.weight.shape[0] // mesh.size())


def _local(parameter: Tensor) -> Tensor:
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def _places(tokens: Tensor, first: int, count: int) -> tuple[Tensor, Tensor]:
    """Where a worker has tokens, any place for those it hasn't; and which it has."""
    places = tokens - first
    mine = (places >= 0) & (places < count)
    return places.clamp(0, count - 1), mine


def _summed(part: Tensor, group: dist.ProcessGroup) -> Tensor:
    total = part.contiguous().clone()
    dist.all_reduce(total, group=group)
    return total


class _Sum(torch.autograd.Function):
    """The workers' sum; each gets the gradient of it."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: FunctionCtx, part: Tensor, group: dist.ProcessGroup
    ) -> Tensor:
        return _summed(part, group)

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: FunctionCtx, gradient: Tensor
    ) -> tuple[Tensor, None]:
        return gradient, None


class _Copy(torch.autograd.Function):
    """The same for every worker; its gradient is the sum of theirs."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,  # noqa: ANN401 - torch's own type lacks what it has here
        whole: Tensor,
        group: dist.ProcessGroup,
    ) -> Tensor:
        ctx.group = group
        return whole.view_as(whole)

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,  # noqa: ANN401
        gradient: Tensor,
    ) -> tuple[Tensor, None]:
        return _summed(gradient, ctx.group), None


class _CrossEntropy(torch.autograd.Function):
    """Cross-entropy of logits (N, V / workers) with targets (N,), each of which one worker has."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,  # noqa: ANN401 - torch's own type lacks what it has here
        logits: Tensor,
        targets: Tensor,
        first: int,
        group: dist.ProcessGroup,
    ) -> Tensor:
        most = logits.amax(dim=1)
        dist.all_reduce(most, dist.ReduceOp.MAX, group=group)
        powers = (logits - most[:, None]).exp()
        places, mine = _places(targets, first, logits.shape[1])
        own = (logits.gather(1, places[:, None]).squeeze(1) - most) * mine
        sums = torch.stack((powers.sum(dim=1), own))
        dist.all_reduce(sums, group=group)
        counted = targets != IGNORED
        ctx.save_for_backward(powers.div_(sums[0][:, None]), places, mine, counted)
        return (sums[0].log() - sums[1]) * counted

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,  # noqa: ANN401
        gradient: Tensor,
    ) -> tuple[Tensor, None, None, None]:
        shares, places, mine, counted = ctx.saved_tensors
        of_each = (gradient * counted)[:, None]
        found = shares * of_each
        found.scatter_add_(1, places[:, None], -of_each * mine[:, None])
        return found, None, None, None
