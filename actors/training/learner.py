"""What one worker computes: its part of the model, and a step of it on any mesh."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.fsdp import FSDPModule

from ...models.multimodal import MultimodalModel
from ...models.spec import ModelSpec, Task
from .adapting import adapt, layer_rates
from .certificate import Training
from .checkpoint import load_weights
from .compiling import HELD_STEPS, hold_to_eager
from .data import Batch, Passes
from .fp8 import check_device, use_eight_bits
from .grids import Grids
from .local import local_part, num_holders
from .momentum import follow
from .objective import Objective
from .optimizer import LocalOptimizer, clip_gradients, learning_rate
from .pipeline import Schedule, make_schedule
from .precision import (
    Change,
    PrecisionState,
    decide,
    escape,
    first_state,
    scale_after,
    weights_dtype,
)
from .rounding import limits_of, move_limits, use_rounding
from .slicing import ModelSlice, place_layers, slice_model
from .spec import AdaptationSpec, TrainingSpec
from .tensor import Sharing
from .tracing import trace
from .tying import TiedWeights, untie
from .watching import Watch
from .zero import ZeroOptimizer


@dataclass(frozen=True)
class Part:
    """A worker's part of a model, split and sharded.

    Attributes:
        model: with the layers of its slices.
        slices: number → slice, of the same modules.
        tied: weights that two of its layers have in common, or one of its and one of another worker's.
        sharings: how its parts are split over tensor-parallel workers.
    """

    model: MultimodalModel
    slices: Mapping[int, ModelSlice]
    tied: TiedWeights
    sharings: Sequence[Sharing]


KEPT_SHAPES = 16
"""Shapes of a pipeline's rows whose buffers are kept."""


@dataclass(frozen=True)
class Schedules:
    """A worker's passes over rows of some shapes: forward and backward, and forward alone."""

    train: Schedule
    forward: Schedule


@dataclass(frozen=True)
class Update:
    """What became of a step's gradients.

    Attributes:
        norm: of them all, before clipping; not finite where they overflowed.
        done: whether weights were changed.
        overflowed: layers whose gradient was not finite.
        is_fault: whether it wasn't, and neither a smaller scale nor another format will help.
        changes: layers that compute in another format from now on.
    """

    norm: float
    done: bool
    overflowed: tuple[str, ...] = ()
    is_fault: bool = False
    changes: tuple[Change, ...] = ()


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
        max_tokens: of a text, which tells what a layer costs.
        device: to compute on; this worker's GPU if it has one, by default.

    Attributes:
        grids: where the model's layers lie.
        mesh: of the whole model; see `build_mesh`.
        model: this worker's part of it: the layers of its slices.
        keys: what the bank is filled with: `model` itself, or the same part of a model that follows.
        precision: what each layer of the whole model computes in.
        step: steps done.
    """

    model: MultimodalModel
    keys: MultimodalModel

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
        max_tokens: int = 32,
        device: torch.device | None = None,
    ) -> None:
        self.spec = spec
        self.device = device or _device()
        if spec.precision == "fp8":
            check_device(self.device)
        self.dtype = weights_dtype(spec.precision)
        self.grids = Grids(spec.parallel, self.device.type)
        self.mesh = self.grids.mesh
        self._adaptation = adaptation or AdaptationSpec()
        self._is_last = self.mesh["pipeline"].get_local_rank() == spec.parallel.pipeline - 1

        def draw() -> MultimodalModel:
            torch.manual_seed(spec.seed)  # every worker draws the whole model, then keeps its part
            whole = MultimodalModel(model, vocab_size, num_classes, tasks or spec.objective.tasks)
            whole.focus(spec.objective.tasks)
            adapt(whole, self._adaptation)
            return whole

        self._draw = draw
        with torch.device("meta"):
            layers = draw().layer_names
        self.precision = first_state(layers, spec.precision, spec.precision_control)
        self.step = 0

        self._costs = dict.fromkeys(layers, 1.0)
        if spec.parallel.pipeline > 1:  # one worker looks, and all cut alike
            found = [self._costs]
            if dist.get_rank() == 0:
                training = Training(spec, model, self._adaptation)
                found = [trace(training, max_tokens, vocab_size, num_classes).costs]
            dist.broadcast_object_list(found)
            self._costs = found[0]

        def load(part: Part) -> None:
            if weights is not None:
                load_weights(weights, part.model, fresh)
            part.tied.share_weights()

        self._assemble(load)
        self.objective = Objective(
            spec.objective,
            self.model,
            self.mesh["data"].get_group(),
            spec.parallel.num_microbatches,
            self.device,
            self.dtype,
        )

    def backward(self, passes: Passes) -> dict[str, float]:
        """Give parameters the gradient of this worker's rows; returns the loss and its terms."""
        groups = [batch for groups in passes for batch in groups]
        self.objective.start_step(groups, self.precision.scale)
        inputs: list[dict[str, Any]] = [
            {name: tensor for name, tensor in batch.items() if name not in ("group", "position")}
            for batch in groups
        ]
        if self.objective.looks_ahead:
            self._look_ahead(inputs)
        counts = [len(batch["label"]) for batch in groups]
        targets = torch.arange(sum(counts), device=self.device).split(counts)

        def run(group: int) -> None:
            target = targets[group] if self._is_last else None
            self._schedules(inputs[group]).train.step(target=target, return_outputs=False, **inputs[group])

        if self.spec.compile_layers and self.step < HELD_STEPS:
            hold_to_eager(lambda: run(0), self.model.parameters(), self.spec.precision)
        waiting = iter(range(len(groups)))
        for number, several in enumerate(passes):
            for _ in several:
                run(next(waiting))
            self._part.tied.sum_gradients()
            for sharing in self._part.sharings:
                sharing.sum_gradients()
            self.optimizer.take(number, self.precision.scale)
        self.optimizer.gather()
        return self.objective.sum_terms(self._is_last and self.mesh["tensor"].get_local_rank() == 0)

    def update(self) -> Update:
        """Take an optimizer step by the gradients, unless they are not finite."""
        state, control = self.precision, self.spec.precision_control
        norm = clip_gradients(self.optimizer.parts(), self.spec.optimizer.max_grad_norm)
        is_finite = math.isfinite(norm)
        looks = self.spec.precision == "dynamic" and (self.step + 1) % control.every == 0
        overflowed: list[str] = []
        watch = Watch(self.optimizer.parts(), state, control) if looks or not is_finite else None
        if is_finite:
            self.optimizer.step(learning_rate(self.spec.optimizer, self.step, self.spec.steps))
            self.objective.end_step()
        self._move_limits(is_finite)
        self.optimizer.zero_grad()
        if self.keys is not self.model and is_finite:
            follow(self._followers, self._slices, self.spec.objective.momentum, self.step)
        self.step += 1
        self.precision = scale_after(state, not is_finite)
        if watch is not None:
            seen = watch.signals()
            overflowed = [layer for layer, signals in seen.items() if signals.overflowed]
            if is_finite:
                self.precision = decide(self.precision, self.step, seen, control)
            elif self.spec.precision == "dynamic" and state.scale == 1.0:
                self.precision = escape(self.precision, self.step, overflowed)
        changes = self.precision.changes[len(state.changes) :]
        if changes:
            self.use_precision(self.precision)
        is_fault = not is_finite and state.scale == 1.0 and not changes
        return Update(norm, is_finite, tuple(overflowed), is_fault, changes)

    def use_precision(self, precision: PrecisionState) -> None:
        """Compute each layer in the format that a state says; weights and optimizer stay what they are.

        Modules are made anew, since a sharded one keeps its format.
        """
        self.precision = precision
        for part in (*self._slices.values(), *self._followers.values()):
            if isinstance(part, FSDPModule):
                part.reshard()  # the outermost one stays whole after a forward pass
        kept, optimizer = (self.model, self.keys), self.optimizer
        self._assemble(None)
        for new, old in zip((self.model, self.keys), kept, strict=True):
            known = dict(old.named_parameters())
            with torch.no_grad():
                for name, parameter in new.named_parameters():
                    local_part(parameter).copy_(local_part(known[name]))
                for one, before in zip(limits_of(new), limits_of(old), strict=True):
                    one.limits.copy_(before.limits)
        self.optimizer.load(optimizer.state())
        self.objective.model = self.model

    def past(self) -> dict[str, Tensor]:
        """What negatives of earlier batches need; the embeddings are at the last pipeline workers."""
        if self.keys is self.model:
            return {}
        kept = self.keys.state_dict()
        if self._is_last:
            past = self.objective.past
            kept |= {"present": past.present, "groups": past.groups, **past.embeddings}
        return kept

    def _assemble(self, load: Callable[[Part], None] | None) -> None:
        """Build this worker's part, and that of the model that follows if there is one."""
        self._by_shapes: dict[tuple[torch.Size, ...], Schedules] = {}

        def build(rounds: bool = False) -> Part:
            part = self._part_of(self._draw().to(self.device, self.dtype), rounds)
            if load is not None:
                load(part)
            return part

        part = build(self._adaptation.quantise is not None)
        kept = build() if self.spec.objective.is_slow else part
        self._part, self.model, self.keys = part, part.model, kept.model
        self._slices, self._followers = part.slices, kept.slices
        if self.spec.objective.is_slow:
            self.keys.requires_grad_(False)
        rates = layer_rates(self.model, self._adaptation.layer_decay)
        names = {id(p): name for name, p in self.model.named_parameters()}
        copies = [names[id(p)] for p in part.tied.copies]
        self.optimizer: LocalOptimizer | ZeroOptimizer
        if self.spec.parallel.sharding == "optimizer":
            mesh = self.mesh["data", "tensor"]
            self.optimizer = ZeroOptimizer(self.spec.optimizer, self.model, rates, copies, mesh)
        else:
            parameters = dict(self.model.named_parameters())
            workers = self.spec.parallel.data * self.spec.parallel.tensor
            holders = {name: num_holders(p, workers) for name, p in parameters.items()}
            self.optimizer = LocalOptimizer(self.spec.optimizer, parameters, rates, copies, holders)

    def _look_ahead(self, inputs: Sequence[Batch]) -> None:
        """Fill the bank with embeddings of all this worker's rows."""
        outputs: list[tuple[Tensor, ...]] = []
        for batch in inputs:
            # the model that follows drops nothing; the trained one the same in both of its passes
            ahead: dict[str, Any] = {
                name: tensor for name, tensor in batch.items() if name != "seed" or self.keys is self.model
            }
            with torch.no_grad():
                found = self._schedules(batch).forward.step(**ahead)
            if found is not None:  # the last pipeline rank's
                outputs.append(found)
        if outputs:
            self.objective.fill_bank(tuple(torch.cat(parts) for parts in zip(*outputs, strict=True)))

    def _schedules(self, batch: Batch) -> Schedules:
        """For rows of a group's shapes: a pipeline's stage keeps buffers for those that it saw first."""
        shapes = tuple(tensor.shape for tensor in batch.values()) if self.spec.parallel.num_slices > 1 else ()
        found = self._by_shapes.pop(shapes, None)
        if found is None:
            parallel, where = self.spec.parallel, (self.device, self.mesh["pipeline"].get_group())
            # stages of their own, since one keeps buffers for one kind of pass
            found = Schedules(
                make_schedule(self._slices, parallel, self.objective, *where),
                make_schedule(self._followers, parallel, None, *where),
            )
            if len(self._by_shapes) == KEPT_SHAPES:
                self._by_shapes.pop(next(iter(self._by_shapes)))
        self._by_shapes[shapes] = found
        return found

    def _move_limits(self, is_finite: bool) -> None:
        """Move the limits between which results are rounded, unless a step's were not finite."""
        limits = limits_of(self.model)
        if is_finite:
            move_limits(limits, self.step, [self.mesh[axis].get_group() for axis in ("data", "tensor")])
        for one in limits:
            one.seen.zero_()

    def _part_of(self, model: MultimodalModel, rounds: bool) -> Part:
        parallel, group = self.spec.parallel, self.mesh["pipeline"].get_group()
        places = place_layers(model, parallel.num_slices, self._costs)
        untie(model)
        mine = range(self.mesh["pipeline"].get_local_rank(), parallel.num_slices, parallel.pipeline)
        slices = slice_model(model, places, mine)
        sharings = self.grids.split(model)
        if rounds:
            use_rounding(model)
        for part in slices.values():
            part.register_forward_pre_hook(partial(_see, sharings), with_kwargs=True)
            for name in part.layers if self.spec.precision == "fp8" else ():
                if name != "heads":  # what is told there are small differences
                    use_eight_bits(part.model.get_submodule(name))
            if self.spec.compile_layers:
                for name in part.layers:
                    part.model.get_submodule(name).compile()
            self.grids.shard(part, self.precision.formats)
        workers = {path: number % parallel.pipeline for path, number in places.items()}
        return Part(model, slices, TiedWeights(model, workers, group), sharings)


def _see(
    sharings: Sequence[Sharing], part: ModelSlice, _: tuple[Tensor, ...], batch: dict[str, Tensor]
) -> None:
    lengths = part.model.lengths(batch)
    for sharing in sharings:
        sharing.see(lengths)


def _device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
