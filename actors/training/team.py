"""What workers that share a layer tell each other, and what they tell each other of its gradient.

Each way has its way back: the gradient of a sum is the same for all, that of what all have is a sum.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

Way = Callable[[Tensor], Tensor]


class Team:
    """The workers of a process group.

    Args:
        group: of them.

    Attributes:
        size: workers.
        rank: of this one.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.size, self.rank = dist.get_world_size(group), dist.get_rank(group)
        self._group = group

    def sum(self, x: Tensor) -> Tensor:
        """All workers' x, added."""
        total = x.contiguous().clone()
        self.all_reduce(total)
        return total

    def gather(self, part: Tensor, axis: int) -> Tensor:
        """All workers' parts, along an axis."""
        if part.dtype is torch.bool:  # which gloo doesn't send
            return self.gather(part.to(torch.uint8), axis).bool()
        part = part.contiguous()
        parts = part.new_empty(self.size, *part.shape)
        self.all_gather(parts.flatten(0, 1), part)
        return parts.movedim(0, axis).flatten(axis, axis + 1)

    def scatter(self, x: Tensor, axis: int) -> Tensor:
        """This worker's part, along an axis, of all workers' x, added."""
        parts = x.unflatten(axis, (self.size, -1)).movedim(axis, 0).contiguous()
        part = torch.empty_like(parts[0])
        self.reduce_scatter(part, parts.flatten(0, 1))
        return part

    def take(self, x: Tensor, axis: int) -> Tensor:
        """This worker's part, along an axis, of what all have."""
        # a copy, since a part would keep the whole in memory
        return (
            x.unflatten(axis, (self.size, -1))
            .select(axis, self.rank)
            .clone(memory_format=torch.contiguous_format)
        )

    def all_reduce(self, x: Tensor, *, largest: bool = False) -> None:
        """Make x the sum of all workers' x, or the largest."""
        dist.all_reduce(x, dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM, self._group)

    def all_gather(self, parts: Tensor, part: Tensor) -> None:
        """Fill `parts` with all workers' parts, one after the other."""
        dist.all_gather_single(parts, part, group=self._group)

    def reduce_scatter(self, part: Tensor, parts: Tensor) -> None:
        """Fill `part` with this worker's part of the sum of all workers' `parts`."""
        dist.reduce_scatter_single(part, parts, group=self._group)


class _Told(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,  # noqa: ANN401 - torch's own type lacks what it has here
        x: Tensor,
        there: Way,
        back: Way,
    ) -> Tensor:
        ctx.back = back
        return there(x)

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,  # noqa: ANN401
        gradient: Tensor,
    ) -> tuple[Tensor, None, None]:
        return ctx.back(gradient), None, None


def tell(x: Tensor, there: Way, back: Way) -> Tensor:
    """Give `there(x)`; its gradient goes `back`."""
    return _Told.apply(x, there, back)  # pyright: ignore[reportReturnType]


def copy(x: Tensor, team: Team) -> Tensor:
    """What all workers have, to be used by each for its part: its gradient is the sum of theirs."""
    return tell(x, lambda same: same.view_as(same), team.sum) if x.requires_grad else x


class Shares:
    """Hidden states of which each worker has a part of the positions, all as long, filled up with zeros.

    Between attentions and MLPs, norms, dropouts and sums go position by position: there each worker computes
    its own (sequence parallelism, arXiv 2205.05198, section 4.2.2).

    Args:
        team: the workers.
        length: positions of the whole.
        axis: that is shared; of positions.

    Attributes:
        length: see above; that of the rows that are computed.
    """

    def __init__(self, team: Team, length: int = 0, axis: int = 1) -> None:
        self.team, self.length, self._axis = team, length, axis

    def take(self, whole: Tensor) -> Tensor:
        """This worker's part of what all have, and compute alike."""
        return tell(self._filled(whole), self._take, self._gather)

    def whole(self, part: Tensor) -> Tensor:
        """All positions, for workers that go on alike."""
        return self._cut(tell(part, self._gather, self._take))

    def gather(self, part: Tensor) -> Tensor:
        """All positions, for workers each of which computes a part of what is made of them."""
        return self._cut(tell(part, self._gather, self._scatter))

    def scatter(self, partial: Tensor) -> Tensor:
        """This worker's part of the sum of what the workers have computed."""
        return tell(self._filled(partial), self._scatter, self._gather)

    def _take(self, x: Tensor) -> Tensor:
        return self.team.take(x, self._axis)

    def _gather(self, x: Tensor) -> Tensor:
        return self.team.gather(x, self._axis)

    def _scatter(self, x: Tensor) -> Tensor:
        return self.team.scatter(x, self._axis)

    def _filled(self, x: Tensor) -> Tensor:
        missing = -x.shape[self._axis] % self.team.size
        if not missing:
            return x
        shape = list(x.shape)
        shape[self._axis] = missing
        return torch.cat((x, x.new_zeros(shape)), dim=self._axis)

    def _cut(self, x: Tensor) -> Tensor:
        return x.narrow(self._axis, 0, self.length) if x.shape[self._axis] > self.length else x


class Rows:
    """A batch's rows for an encoder that other workers share than share the rest of the model.

    Where fewer workers split it, those of the rest divide their rows among them; where more do, they join
    their rows.

    Args:
        team: the workers that divide or join.
        joins: which of both.
    """

    def __init__(self, team: Team, *, joins: bool) -> None:
        self.team, shares = team, Shares(team, length=sys.maxsize, axis=0)  # rows are never filled up
        self._enter, self._leave = (shares.whole, shares.take) if joins else (shares.take, shares.whole)

    def enter(self, x: Tensor) -> Tensor:
        """Of an input for this worker's rows (B, ...), the rows that it computes; it needs no gradient."""
        return self._enter(x)

    def leave(self, x: Tensor) -> Tensor:
        """This worker's rows (B, ...) of what was computed."""
        return self._leave(x)
