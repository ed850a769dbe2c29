"""The workers of a process group as a model's mesh, and as the grids that its encoders may have instead."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from ...models.layers import HALF
from ...models.multimodal import MultimodalModel
from .mesh import build_mesh, build_rows_mesh
from .precision import DTYPES, Format
from .slicing import ModelSlice
from .spec import ParallelSpec
from .team import Rows, Team
from .tensor import Layout, Sharing, divide_over, split_model

# A linear layer's output is a view; nothing here changes one in place.
warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")


class Grids:
    """Where a model's layers lie. All workers make it together.

    Args:
        parallel: how they are arranged.
        device_type: that they compute on.

    Attributes:
        mesh: of the model; see `build_mesh`.
        own: encoder → its own, for those that have another.
        layouts: the same encoders → how workers share them.
    """

    def __init__(self, parallel: ParallelSpec, device_type: str) -> None:
        self._shards = parallel.sharding == "full"
        self.mesh = build_mesh(parallel, device_type)
        self.own = {name: build_mesh(parallel.within(name), device_type) for name in parallel.grids}
        self.layouts: dict[str, Layout] = {}
        for name, mesh in self.own.items():
            rows = build_rows_mesh(parallel, name, device_type)["rows"]
            joins = parallel.within(name).tensor > parallel.tensor
            self.layouts[name] = _layout(mesh, Rows(Team(rows.get_group()), joins=joins))

    def split(self, model: MultimodalModel) -> list[Sharing]:
        """Split a model's layers over tensor-parallel workers, in place."""
        return split_model(model, _layout(self.mesh), self.layouts)

    def shard(self, part: ModelSlice, formats: Mapping[str, Format]) -> None:
        """Shard every layer's parameters over the data-parallel workers (FSDP2, arXiv 2304.11277), in place.

        Gradients are summed, not averaged: each worker's loss is already its share of the global one.

        Args:
            part: of the model; its layers are sharded each by itself, then what is left of it.
            formats: layer → what it computes in; what is in none computes as the heads do.
        """
        axis = "data" if self._shards else "alone"
        modules: list[tuple[nn.Module, DeviceMesh, Format]] = [
            *((part.model.get_submodule(name), self._of(name)[axis], formats[name]) for name in part.layers),
            (part, self.mesh[axis], formats["heads"]),
        ]
        if set(formats.values()) <= {"fp32", "fp64"} and all(mesh.size() == 1 for _, mesh, _ in modules):
            return  # nothing to cast, nothing to shard
        for module, mesh, number_format in modules:
            if not any(True for _ in module.parameters()):
                continue
            policy = MixedPrecisionPolicy(cast_forward_inputs=module is not part)
            if DTYPES[number_format] in HALF:
                policy = replace(policy, param_dtype=DTYPES[number_format], reduce_dtype=torch.float32)
            elif number_format != "fp64":
                policy = replace(policy, param_dtype=torch.float32)  # what enters may be of another format
            sharded = fully_shard(module, mesh=mesh, mp_policy=policy)
            assert isinstance(sharded, FSDPModule)
            sharded.set_gradient_divide_factor(1.0)
            sharded.set_force_sum_reduction_for_comms(True)  # gloo has no other

    def _of(self, layer: str) -> DeviceMesh:
        return self.own.get(layer.partition(".")[0], self.mesh)


def _layout(mesh: DeviceMesh, rows: Rows | None = None) -> Layout:
    return Layout(Team(mesh["tensor"].get_group()), divide_over(mesh["tensor"]), rows)
