"""A model that follows the trained one slowly, so that what it makes of earlier batches stays comparable.

Momentum contrast (arXiv 1911.05722, 3.2): were the past's embeddings of the trained model, all of them could
be told from the batch's by how far the model has moved since, and moving all embeddings would be the
cheapest way to lower the loss.
"""

from __future__ import annotations

import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from .pipeline import ModelSlice


def follow(part: ModelSlice, trained: ModelSlice, momentum: float, step: int) -> None:
    """Draw one slice's parameters to another's of the same mesh, after a step (from 0).

    In the first steps it keeps (1 + step) / (10 + step) at most, else it would long be what it began as.
    """
    share = min(momentum, (1 + step) / (10 + step))
    for module in (part, trained):
        assert isinstance(module, FSDPModule)
        module.reshard()  # the outermost one stays whole after a forward pass
    with torch.no_grad():
        for slow, fast in zip(part.parameters(), trained.parameters(), strict=True):
            slow, fast = (p.to_local() if isinstance(p, DTensor) else p for p in (slow, fast))
            slow.lerp_(fast, 1 - share)
