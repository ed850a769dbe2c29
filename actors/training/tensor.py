"""Tensor parallelism: split every attention by heads and every MLP by columns.

The plan is read off the module tree by the names that `models` keeps to: layers of `COLUMN` are
column-parallel, those of `ROW` row-parallel, and a `HeadParameter` is split along its heads (Megatron-LM,
arXiv 1909.08053, section 3).
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    parallelize_module,
)

from ...models.layers import COLUMN, ROW, HeadParameter
from .adapting import LoraLinear
from .vocabulary import split_vocabularies


class LowRankRowwiseParallel(RowwiseParallel):
    """Split a `LoraLinear` by rows: what stands beside it takes the same part of the input."""

    def _partition_linear_fn(self, name: str, module: nn.Module, device_mesh: DeviceMesh) -> None:
        super()._partition_linear_fn(name, module, device_mesh)
        for key, placement in (("lora_down", Shard(1)), ("lora_up", Replicate())):
            split = distribute_tensor(module.get_parameter(key), device_mesh, [placement])
            module.register_parameter(key, nn.Parameter(split))


class HeadwiseParallel(ParallelStyle):
    """Split a `HeadParameter` along its heads; its output is this worker's part."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        return distribute_module(
            module,
            device_mesh,
            self._split,
            output_fn=partial(self._local),  # pyright: ignore[reportArgumentType]
        )

    @staticmethod
    def _split(name: str, module: nn.Module, mesh: DeviceMesh) -> None:
        for key, parameter in module.named_parameters(recurse=False):
            split = distribute_tensor(parameter, mesh, [Shard(0)])
            module.register_parameter(key, nn.Parameter(split))

    @staticmethod
    def _local(module: nn.Module, output: DTensor, mesh: DeviceMesh) -> object:
        return output.to_local()


def local_part(tensor: Tensor) -> Tensor:
    """What this worker has of a tensor, sharing its memory: all of it, if it isn't split."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def num_holders(tensor: Tensor, workers: int) -> int:
    """How many of the workers of a pipeline's stage hold the same entries as this one."""
    if isinstance(tensor, DTensor):
        for axis, placement in enumerate(tensor.placements):
            if not placement.is_replicate():
                workers //= tensor.device_mesh.size(axis)
    return workers


def tensor_plan(model: nn.Module) -> dict[str, ParallelStyle]:
    """Module path → how it is split, for every module that is split at all."""
    plan: dict[str, ParallelStyle] = {}
    for path, module in model.named_modules():
        name = path.rpartition(".")[2]
        if isinstance(module, HeadParameter):
            plan[path] = HeadwiseParallel()
        elif isinstance(module, nn.Linear) and name in COLUMN:
            plan[path] = ColwiseParallel()
        elif isinstance(module, nn.Linear) and name in ROW:
            plan[path] = LowRankRowwiseParallel() if isinstance(module, LoraLinear) else RowwiseParallel()
    return plan


def split_tensors(model: nn.Module, mesh: DeviceMesh) -> None:
    """Split the model's attentions, MLPs and vocabularies over `mesh` in place; what is frozen stays so."""
    learns = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    parallelize_module(model, mesh, tensor_plan(model))
    split_vocabularies(model, mesh)
    for name, parameter in model.named_parameters():  # those that were split are new ones, which all learn
        parameter.requires_grad_(learns[name])
