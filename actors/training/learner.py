"""What one worker computes: its part of the model, and a step of it on any mesh."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from ...models.multimodal import MultimodalModel
from ...models.spec import ModelSpec, Task
from .adapting import adapt, layer_rates
from .checkpoint import load_weights
from .mesh import build_mesh
from .momentum import follow
from .objective import Objective
from .optimizer import clip_gradients, learning_rate, make_optimizer
from .pipeline import ModelSlice, make_schedule, place_layers, slice_model
from .spec import AdaptationSpec, TrainingSpec
from .tensor import split_tensors
from .tying import TiedWeights, untie


@dataclass(frozen=True)
class Part:
    """A worker's part of a model, split and sharded.

    Attributes:
        model: with the layers of its slices.
        slices: number → slice, of the same modules.
        tied: weights that two of its layers have in common, or one of its and one of another worker's.
    """

    model: MultimodalModel
    slices: Mapping[int, ModelSlice]
    tied: TiedWeights


class Learner:
    """One worker's model slice, optimizer and schedules, on an initialised process group.

    The order matters: heads are split before parameters are sharded, so that a parameter's shards
    are shards of its own heads; the pipeline comes first, since it decides which layers exist.

    Args:
        spec: how to train.
        model: the model to build.
        vocab_size: of the tokenizer.
        num_classes: of the picture categories.
        tasks: that the model has heads for; those of the objective by default.
        weights: `weights` folder of a checkpoint to start from; None starts at random.
        fresh: paths of modules that start at random all the same.
        adaptation: what of the weights is changed, and how fast.
        device: to compute on; this worker's GPU if it has one, by default.

    Attributes:
        mesh: see `build_mesh`.
        model: this worker's part of it: the layers of its slices.
        keys: what the bank is filled with: `model` itself, or the same part of a model that follows.
        step: steps done.
    """

    def __init__(
        self,
        spec: TrainingSpec,
        model: ModelSpec,
        vocab_size: int,
        num_classes: int,
        *,
        tasks: Collection[Task] | None = None,
        weights: Path | None = None,
        fresh: Sequence[str] = (),
        adaptation: AdaptationSpec | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.spec = spec
        self.device = device or _device()
        self.dtype = torch.float64 if spec.precision == "fp64" else torch.float32
        self.mesh: DeviceMesh = build_mesh(spec.parallel, self.device.type)
        adaptation = adaptation or AdaptationSpec()

        def build() -> Part:
            torch.manual_seed(spec.seed)  # every worker draws the whole model, then keeps its part
            whole = MultimodalModel(model, vocab_size, num_classes, tasks or spec.objective.tasks)
            whole.focus(spec.objective.tasks)
            adapt(whole, adaptation)
            part = self._part_of(whole.to(self.device, self.dtype))
            if weights is not None:
                load_weights(weights, part.model, fresh)
            part.tied.share_weights()
            return part

        part = build()
        kept = build() if spec.objective.is_slow else part
        self.model, self.keys, self._tied = part.model, kept.model, part.tied
        self._slices, self._followers = part.slices, kept.slices
        if spec.objective.is_slow:
            self.keys.requires_grad_(False)
        rates = layer_rates(self.model, adaptation.layer_decay)
        self.optimizer = make_optimizer(spec.optimizer, self.model, rates)
        self.objective = Objective(
            spec.objective,
            self.model,
            self.mesh["data"].get_group(),
            spec.parallel.num_microbatches,
            self.device,
            self.dtype,
        )
        self.step = 0
        where = self.device, self.mesh["pipeline"].get_group()
        # stages of their own, since one keeps buffers for one kind of pass
        self._train = make_schedule(part.slices, spec.parallel, self.objective, *where)
        self._forward = make_schedule(kept.slices, spec.parallel, None, *where)
        self._is_last = self.mesh["pipeline"].get_local_rank() == spec.parallel.pipeline - 1

    def backward(self, batch: dict[str, Tensor]) -> dict[str, float]:
        """Give parameters the gradient of this worker's rows; returns the loss and its terms."""
        self.objective.start_step(batch)
        inputs: dict[str, Any] = {k: v for k, v in batch.items() if k != "group"}
        if self.objective.looks_ahead:
            # the model that follows drops nothing; the trained one the same in both of its passes
            ahead = {k: v for k, v in inputs.items() if k != "seed" or self.keys is self.model}
            with torch.no_grad():
                outputs = self._forward.step(**ahead)
            if outputs is not None:  # the last pipeline rank's
                self.objective.fill_bank(outputs)
        rows = torch.arange(batch["label"].shape[0], device=self.device) if self._is_last else None
        self._train.step(target=rows, return_outputs=False, **inputs)
        self._tied.sum_gradients()
        return self.objective.sum_terms(self._is_last and self.mesh["tensor"].get_local_rank() == 0)

    def update(self) -> float:
        """Take an optimizer step by the gradients; returns their norm before clipping."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["rate"] * learning_rate(self.spec.optimizer, self.step, self.spec.steps)
        norm = clip_gradients(
            self.model.parameters(),
            self.spec.optimizer.max_grad_norm,
            dist.get_world_size(),
            self.spec.parallel.pipeline,
            self._tied.copies,
        )
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.objective.end_step()
        if self.keys is not self.model:
            follow(self._followers, self._slices, self.spec.objective.momentum, self.step)
        self.step += 1
        return norm

    def past(self) -> dict[str, Tensor]:
        """What negatives of earlier batches need; the embeddings are at the last pipeline workers."""
        if self.keys is self.model:
            return {}
        kept = self.keys.state_dict()
        if self._is_last:
            past = self.objective.past
            kept |= {"present": past.present, "groups": past.groups, **past.embeddings}
        return kept

    def _part_of(self, model: MultimodalModel) -> Part:
        parallel, group = self.spec.parallel, self.mesh["pipeline"].get_group()
        places = place_layers(model, parallel.num_slices)
        untie(model)
        mine = range(self.mesh["pipeline"].get_local_rank(), parallel.num_slices, parallel.pipeline)
        slices = slice_model(model, places, mine)
        if parallel.tensor > 1:
            split_tensors(model, self.mesh["tensor"])
        for part in slices.values():
            shard_parameters(part, self.mesh["data"], self.spec.precision)
        workers = {path: number % parallel.pipeline for path, number in places.items()}
        return Part(model, slices, TiedWeights(model, workers, group))


# A linear layer's output is a view; nothing here changes one in place.
warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")


def shard_parameters(part: ModelSlice, mesh: DeviceMesh, precision: str) -> None:
    """Shard every layer's parameters over the data-parallel workers (FSDP2, arXiv 2304.11277).

    Gradients are summed, not averaged: each worker's loss is already its share of the global one.
    """
    policy = MixedPrecisionPolicy()
    if precision == "bf16":
        policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32, output_dtype=torch.float32
        )
    modules: list[nn.Module] = [part.model.get_submodule(name) for name in part.layers]
    for module in [*modules, part]:
        if any(True for _ in module.parameters()):
            sharded = fully_shard(module, mesh=mesh, mp_policy=policy)
            assert isinstance(sharded, FSDPModule)
            sharded.set_gradient_divide_factor(1.0)
            sharded.set_force_sum_reduction_for_comms(True)  # gloo has no other


def _device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
