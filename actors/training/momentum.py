"""A model that follows the trained one slowly, so that what it makes of earlier batches stays comparable.

Momentum contrast (arXiv 1911.05722, 3.2): were the past's embeddings of the trained model, all of them could
be told from the batch's by how far the model has moved since, and moving all embeddings would be the
cheapest way to lower the loss.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.distributed.fsdp import FSDPModule

from .local import local_part
from .slicing import ModelSlice


def follow(
    slices: Mapping[int, ModelSlice], trained: Mapping[int, ModelSlice], momentum: float, step: int
) -> None:
    """Draw the parameters of a worker's slices to those of others of the same mesh, after a step (from 0).

    In the first steps it keeps (1 + step) / (10 + step) at most, else it would long be what it began as.
    """
    share = min(momentum, (1 + step) / (10 + step))
    for number, follower in slices.items():
        leader = trained[number]
        for module in (follower, leader):
            if isinstance(module, FSDPModule):
                module.reshard()  # the outermost one stays whole after a forward pass
        with torch.no_grad():
            for slow, fast in zip(follower.parameters(), leader.parameters(), strict=True):
                local_part(slow).lerp_(local_part(fast), 1 - share)
