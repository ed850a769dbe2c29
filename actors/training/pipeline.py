"""Pipeline parallelism: contiguous slices of the model's layers, one per pipeline rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.distributed.pipelining.schedules import PipelineScheduleSingle

from ...models.multimodal import MultimodalModel
from .spec import ParallelSpec

LossFunction = Callable[[tuple[Tensor, ...], Tensor], Tensor]


def cut_layers(costs: Sequence[float], num_slices: int) -> list[range]:
    """Cut layers into contiguous slices whose costliest is as cheap as can be.

    Args:
        costs: cost of each layer, in order, any unit.
        num_slices: how many slices; at most one per layer, none empty.
    """
    sums = [0.0, *accumulate(costs)]
    best: dict[tuple[int, int], tuple[float, list[int]]] = {(0, 0): (0.0, [0])}
    for slices in range(1, num_slices + 1):
        for end in range(slices, len(costs) - (num_slices - slices) + 1):
            best[slices, end] = min(
                (max(best[slices - 1, start][0], sums[end] - sums[start]), [*best[slices - 1, start][1], end])
                for start in range(slices - 1, end)
                if (slices - 1, start) in best
            )
    cuts = best[num_slices, len(costs)][1]
    return [range(start, end) for start, end in pairwise(cuts)]


class ModelSlice(nn.Module):
    """A contiguous part of a model's layers; its first inputs are what the slice before it left.

    Modules keep their paths, so a slice's parameters are named as in the whole model.

    Args:
        model: the whole model; layers outside the slice are taken from it.
        layers: which of `model.layer_names` this slice runs.
        takes: names of what enters it; see `MultimodalModel.state_after`.
        gives: names of what leaves it; empty for the last slice, which gives the model's outputs.
    """

    def __init__(
        self, model: MultimodalModel, layers: Sequence[str], takes: Sequence[str], gives: Sequence[str]
    ) -> None:
        super().__init__()
        self.model = model
        self.layers = tuple(layers)
        self.takes = tuple(takes)
        self.gives = tuple(gives)

    def forward(self, *entering: Tensor, **batch: Tensor) -> tuple[Tensor, ...]:
        """Run the slice on a microbatch."""
        state = dict(zip(self.takes, entering, strict=True))
        self.model.run_layers(self.layers, state, batch)
        if not self.gives:
            return tuple(self.model.outputs(state, batch).values())
        # a copy, since a stage may not hand on the very tensor that it was given, nor a view of it
        return tuple(state[key].clone() for key in self.gives)


def slice_model(model: MultimodalModel, rank: int, num_slices: int) -> ModelSlice:
    """Keep the layers of pipeline rank `rank`, and drop all others from the model."""
    names, places = model.layer_names, place_layers(model, num_slices)
    mine = [name for name in names if places[name] == rank]
    first = names.index(mine[0])
    takes = model.state_after(first)
    gives = model.state_after(first + len(mine)) if rank < num_slices - 1 else ()
    for name in places:
        if places[name] != rank:
            _drop(model, name)
    return ModelSlice(model, mine, takes, gives)


def place_layers(model: MultimodalModel, num_slices: int) -> dict[str, int]:
    """Path of every layer, and of what goes with one → the pipeline worker that has it."""
    names = model.layer_names
    costs = [float(sum(p.numel() for p in model.get_submodule(name).parameters())) for name in names]
    slices = cut_layers(costs, num_slices)
    places = {names[i]: rank for rank, part in enumerate(slices) for i in part}
    if "decoder.embed" in places:
        places |= {"gate": places["decoder.embed"], "decoder.head": num_slices - 1}
    return places


def make_schedule(
    stage: PipelineStage, parallel: ParallelSpec, loss: LossFunction | None
) -> PipelineScheduleSingle:
    """Schedule microbatches over the stage; without a loss, forward only."""
    if loss is None or parallel.schedule == "gpipe":
        return ScheduleGPipe(stage, parallel.num_microbatches, loss_fn=loss, scale_grads=False)
    return Schedule1F1B(stage, parallel.num_microbatches, loss_fn=loss, scale_grads=False)


def make_stage(
    module: nn.Module, rank: int, num_slices: int, device: torch.device, group: ProcessGroup
) -> PipelineStage:
    """Wrap a slice, already split and sharded, for a schedule."""
    return PipelineStage(module, rank, num_slices, device, group=group)


def _drop(model: nn.Module, path: str) -> None:
    parent, _, name = path.rpartition(".")
    owner = model.get_submodule(parent)
    if isinstance(owner, nn.ModuleList):
        owner[int(name)] = nn.Identity()
    else:
        setattr(owner, name, nn.Identity())
