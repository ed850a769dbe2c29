"""Pipeline parallelism: schedules over slices of the model's layers, one or several per pipeline worker."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
    ScheduleLoopedBFS,
)
from torch.distributed.pipelining.schedules import PipelineScheduleMulti, PipelineScheduleSingle

from .deferring import DeferringStage
from .slicing import ModelSlice
from .spec import ParallelSpec

LossFunction = Callable[[tuple[Tensor, ...], Tensor], Tensor]
Schedule = PipelineScheduleSingle | PipelineScheduleMulti


def make_schedule(
    slices: Mapping[int, ModelSlice],
    parallel: ParallelSpec,
    loss: LossFunction | None,
    device: torch.device,
    group: ProcessGroup,
) -> Schedule:
    """Schedule microbatches over a worker's slices; without a loss, forward only.

    Args:
        slices: number → slice, split and sharded.
        parallel: the mesh, the schedule and the microbatches.
        loss: of a microbatch's outputs and rows, to be summed.
        device: of the slices.
        group: the pipeline's process group.
    """
    puts_off = loss is not None and parallel.pipeline > 1 and parallel.schedule == "zero-bubble"
    kind = DeferringStage if puts_off else PipelineStage
    stages = [kind(part, number, parallel.num_slices, device, group=group) for number, part in slices.items()]
    count = parallel.num_microbatches
    if loss is None and len(stages) > 1:
        return ScheduleLoopedBFS(list(stages), count)
    if puts_off:
        return ScheduleInterleavedZeroBubble(list(stages), count, loss, scale_grads=False)
    if len(stages) > 1:
        return ScheduleInterleaved1F1B(list(stages), count, loss, scale_grads=False)
    one = ScheduleGPipe if loss is None or parallel.schedule == "gpipe" else Schedule1F1B
    return one(stages[0], count, loss, scale_grads=False)
