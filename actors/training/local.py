"""What a worker has of a tensor.

Plans read layers that use this, and split no tensor: what it takes to split one is loaded when one is.
"""

from __future__ import annotations

from torch import Tensor, nn


def local_part(tensor: Tensor) -> Tensor:
    """What this worker has of a tensor, sharing its memory: all of it, if it isn't split."""
    if type(tensor) in (Tensor, nn.Parameter):
        return tensor
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def split_as(part: Tensor, like: Tensor) -> Tensor:
    """This worker's part of something that has another's shape and is split as that is."""
    from torch.distributed.tensor import DTensor

    if not isinstance(like, DTensor):
        return part
    return DTensor.from_local(
        part,
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )


def num_holders(tensor: Tensor, workers: int) -> int:
    """How many of the workers of a pipeline's stage hold the same entries as this one."""
    from torch.distributed.tensor import DTensor

    if isinstance(tensor, DTensor):
        for axis, placement in enumerate(tensor.placements):
            if not placement.is_replicate():
                workers //= tensor.device_mesh.size(axis)
    return workers
