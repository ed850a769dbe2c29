"""What one training worker does: build its part of the model, then step until done."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from ...models.multimodal import MultimodalModel
from ...models.spec import ModelSpec, Task
from ...pipelines.ledger import Ledger, Tally, corpus_digest
from ...pipelines.reading import CorpusReader
from .adapting import adapt, layer_rates
from .checkpoint import load_state, load_weights, save_state
from .data import worker_shares
from .mesh import build_mesh
from .momentum import follow
from .objective import Objective
from .optimizer import clip_gradients, learning_rate, make_optimizer
from .pipeline import ModelSlice, make_schedule, make_stage, slice_model
from .spec import AdaptationSpec, TrainingSpec
from .tensor import split_tensors


@dataclass(frozen=True)
class TrainingJob:
    """Everything a worker needs. Picklable.

    Attributes:
        spec: the stage's spec.
        model: the model to build.
        corpus: local folder of the `Corpus` artifact.
        weights: `weights` folder of a checkpoint to start from; None starts at random.
        tasks: that the model has heads for, beside those it is trained for now.
        fresh: paths of modules that start at random all the same.
        adaptation: what of the weights is changed, and how fast.
    """

    spec: TrainingSpec
    model: ModelSpec
    corpus: Path
    weights: Path | None = None
    tasks: tuple[Task, ...] = ()
    fresh: tuple[str, ...] = ()
    adaptation: AdaptationSpec = field(default_factory=AdaptationSpec)

    @property
    def all_tasks(self) -> tuple[Task, ...]:
        """That the model has heads for."""
        return tuple(task for task in get_args(Task) if task in {*self.tasks, *self.spec.objective.tasks})


@dataclass(frozen=True)
class StepReport:
    """What a step came to, equal on all workers.

    Attributes:
        step: steps done, this one included.
        terms: the loss and its terms.
        grad_norm: before clipping.
        samples_per_s: rows of the global batch per second.
    """

    step: int
    terms: Mapping[str, float]
    grad_norm: float
    samples_per_s: float


class Trainer:
    """One worker's model slice, optimizer and schedules, on an initialised process group.

    The order matters: heads are split before parameters are sharded, so that a parameter's shards
    are shards of its own heads; the pipeline comes first, since it decides which layers exist.
    """

    def __init__(self, job: TrainingJob, device: torch.device | None = None) -> None:
        self.job = job
        self.spec = job.spec
        self.device = device or _device()
        self.dtype = torch.float64 if self.spec.precision == "fp64" else torch.float32
        self.mesh: DeviceMesh = build_mesh(job.spec.parallel, self.device.type)
        self.reader = CorpusReader(job.corpus, "train")
        self.slice = self._build()
        # what the bank is filled with: the model itself, or one that follows it
        self.keys = self._build().requires_grad_(False) if job.spec.objective.is_slow else self.slice
        rates = layer_rates(self.slice.model, job.adaptation.layer_decay)
        self.optimizer = make_optimizer(self.spec.optimizer, self.slice.model, rates)
        self.objective = Objective(
            self.spec.objective,
            self.slice.model,
            self.mesh["data"].get_group(),
            self.spec.parallel.num_microbatches,
            self.device,
            self.dtype,
        )
        self.ledger = Ledger(
            corpus=corpus_digest(job.corpus), split="train", num_records=len(self.reader), seed=self.spec.seed
        )
        self.step = 0
        depth, rank = self.spec.parallel.pipeline, self.mesh["pipeline"].get_local_rank()
        stages = [  # two, since a stage keeps buffers for one kind of pass
            make_stage(part, rank, depth, self.device, self.mesh["pipeline"].get_group())
            for part in (self.keys, self.slice)
        ]
        self._forward = make_schedule(stages[0], self.spec.parallel, None)
        self._train = make_schedule(stages[1], self.spec.parallel, self.objective)
        self.is_last = rank == depth - 1

    def run(
        self,
        on_step: Callable[[StepReport], None],
        on_checkpoint: Callable[[Trainer, StepReport], None],
    ) -> None:
        """Step until `spec.steps`, calling `on_step` after each and `on_checkpoint` when one is due."""
        rank = self.mesh["data"].get_local_rank()
        # Workers that share a part of the batch count it once.
        counts = all(self.mesh[axis].get_local_rank() == 0 for axis in ("tensor", "pipeline"))
        tally = Tally()
        for part in worker_shares(
            self.reader, self.job.model, self.spec, self.ledger.stop, rank, self.device, self.dtype
        ):
            report = self.train_step(part.batch)
            if counts:
                tally.add(part.start, part.ids)
            on_step(report)
            if self.step % self.spec.checkpoint_every == 0 or self.step == self.spec.steps:
                totals: list[Any] = [0] * dist.get_world_size()
                dist.all_gather_object(totals, tally.total)
                self.ledger = self.ledger.extended(self.step * self.spec.batch_size, totals)
                tally = Tally()
                on_checkpoint(self, report)

    def train_step(self, batch: dict[str, Tensor]) -> StepReport:
        """Take one optimizer step on this worker's rows."""
        started = time.monotonic()
        self.objective.start_step(batch)
        inputs: dict[str, Any] = {k: v for k, v in batch.items() if k != "group"}
        if self.objective.looks_ahead:
            with torch.no_grad():
                outputs = self._forward.step(**inputs)
            if outputs is not None:  # the last pipeline rank's
                self.objective.fill_bank(outputs)
        rows = torch.arange(batch["label"].shape[0], device=self.device) if self.is_last else None
        self._train.step(target=rows, return_outputs=False, **inputs)
        for group in self.optimizer.param_groups:
            group["lr"] = group["rate"] * learning_rate(self.spec.optimizer, self.step, self.spec.steps)
        norm = clip_gradients(
            self.slice.parameters(),
            self.spec.optimizer.max_grad_norm,
            dist.get_world_size(),
            self.spec.parallel.pipeline,
        )
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.objective.end_step()
        if self.keys is not self.slice:
            follow(self.keys, self.slice, self.spec.objective.momentum, self.step)
        self.step += 1
        elapsed = time.monotonic() - started
        counts = self.is_last and self.mesh["tensor"].get_local_rank() == 0
        return StepReport(self.step, self.objective.sum_terms(counts), norm, self.spec.batch_size / elapsed)

    def save(self, folder: Path) -> None:
        """Write this worker's part of a training checkpoint."""
        save_state(folder, self.slice.model, self.optimizer, self._past(), self.ledger)

    def restore(self, folder: Path) -> None:
        """Go on from a training checkpoint, of whatever mesh."""
        self.ledger = load_state(folder, self.slice.model, self.optimizer, self._past())
        self.step = self.ledger.stop // self.spec.batch_size

    def _past(self) -> dict[str, Tensor]:
        """What negatives of earlier batches need; the embeddings are at the last pipeline workers."""
        if self.keys is self.slice:
            return {}
        kept = self.keys.state_dict()
        if self.is_last:
            past = self.objective.past
            kept |= {"present": past.present, "groups": past.groups, **past.embeddings}
        return kept

    def _build(self) -> ModelSlice:
        torch.manual_seed(self.spec.seed)  # every worker draws the whole model, then keeps its part
        info = self.reader.info
        job = self.job
        model = MultimodalModel(job.model, info.vocab_size, len(info.classes), job.all_tasks)
        model.focus(self.spec.objective.tasks)
        adapt(model, job.adaptation)
        model.to(self.device, self.dtype)
        parallel = self.spec.parallel
        part = slice_model(model, self.mesh["pipeline"].get_local_rank(), parallel.pipeline)
        if parallel.tensor > 1:
            split_tensors(part, self.mesh["tensor"])
        shard_parameters(part, self.mesh["data"], self.spec.precision)
        if job.weights is not None:
            load_weights(job.weights, part.model, job.fresh)
        return part


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


def use_threads(num_workers_here: int) -> None:
    """Divide this machine's cores among its workers."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // num_workers_here))


def _device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
