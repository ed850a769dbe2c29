"""Weights that two layers have in common, on any mesh.

A pipeline may put the two layers on different workers, and each is sharded by itself. So what is one
parameter of the model becomes two here, which are kept the same: they start alike, each gets the sum of both
gradients, and the optimizer then changes them alike.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch import distributed as dist

from ...models.multimodal import MultimodalModel
from .local import local_part


class TiedWeights:
    """Those of a worker's part of a model, after `untie`.

    Args:
        model: a worker's part of it, split and sharded.
        workers: path of a layer, of the whole model → the pipeline worker that has it.
        group: the pipeline's process group.

    Attributes:
        copies: of this worker's parameters, those that are a copy of another.
    """

    def __init__(
        self,
        model: MultimodalModel,
        workers: Mapping[str, int],
        group: dist.ProcessGroup,
    ) -> None:
        self._group, self._rank = group, dist.get_rank(group)
        own = dict(model.named_parameters())
        self._pairs = [
            (own.get(source), own.get(copy), _worker(source, workers), _worker(copy, workers))
            for copy, source in model.tied.items()
        ]
        self.copies = [own[name] for name in model.tied if name in own]

    def share_weights(self) -> None:
        """Give every copy the weights of what it is a copy of."""
        with torch.no_grad():
            for source, copy, at_source, at_copy in self._pairs:
                weights, same = (None if p is None else local_part(p) for p in (source, copy))
                found, _ = self._both(weights, same, at_source, at_copy)
                if copy is not None and found is not None:
                    local_part(copy).copy_(found)

    def sum_gradients(self) -> None:
        """Give both of every pair the sum of their gradients; those that learn nothing have none."""
        for source, copy, at_source, at_copy in self._pairs:
            of_source, of_copy = (None if p is None else _gradient(p) for p in (source, copy))
            theirs = self._both(of_source, of_copy, at_source, at_copy)
            total = None if theirs[0] is None or theirs[1] is None else theirs[0] + theirs[1]
            for gradient in (of_source, of_copy):
                if gradient is not None and total is not None:
                    gradient.copy_(total)

    def _both(
        self, source: Tensor | None, copy: Tensor | None, at_source: int, at_copy: int
    ) -> tuple[Tensor | None, Tensor | None]:
        """What the two workers hold of a pair, on both of them; None elsewhere, or where neither learns."""
        mine = source if source is not None else copy
        if at_source == at_copy or mine is None:
            return source, copy
        theirs = torch.empty_like(mine)
        peer = dist.get_global_rank(self._group, at_copy if self._rank == at_source else at_source)
        exchange = [
            dist.P2POp(dist.isend, mine.contiguous(), peer, self._group),
            dist.P2POp(dist.irecv, theirs, peer, self._group),
        ]
        for work in dist.batch_isend_irecv(exchange):
            work.wait()
        return (mine, theirs) if source is not None else (theirs, mine)


def untie(model: MultimodalModel) -> None:
    """Give each layer that has another's weights a copy of them."""
    for path in model.tied:
        parent, _, name = path.rpartition(".")
        weight = model.get_parameter(path)
        copy = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
        setattr(model.get_submodule(parent), name, copy)


def _worker(parameter: str, workers: Mapping[str, int]) -> int:
    return next(rank for layer, rank in workers.items() if parameter.startswith(f"{layer}."))


def _gradient(parameter: nn.Parameter) -> Tensor | None:
    """This worker's part of a gradient, to be changed in place."""
    if not parameter.requires_grad:
        return None
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return local_part(parameter.grad)
