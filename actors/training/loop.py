"""What one training worker does: step through a corpus until done."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch
from torch import distributed as dist

from ...models.spec import ModelSpec, Task
from ...pipelines.ledger import Ledger, Tally, corpus_digest
from ...pipelines.reading import CorpusReader
from .checkpoint import load_state, save_state
from .data import worker_shares
from .learner import Learner
from .spec import AdaptationSpec, TrainingSpec


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
    """A worker's learner, fed with a corpus in order, and the ledger of what it was fed."""

    def __init__(self, job: TrainingJob) -> None:
        self.job = job
        self.spec = job.spec
        self.reader = CorpusReader(job.corpus, "train")
        self.learner = Learner(
            job.spec,
            job.model,
            self.reader.info.vocab_size,
            len(self.reader.info.classes),
            tasks=job.all_tasks,
            weights=job.weights,
            fresh=job.fresh,
            adaptation=job.adaptation,
        )
        self.ledger = Ledger(
            corpus=corpus_digest(job.corpus), split="train", num_records=len(self.reader), seed=self.spec.seed
        )

    def run(
        self,
        on_step: Callable[[StepReport], None],
        on_checkpoint: Callable[[Trainer, StepReport], None],
    ) -> None:
        """Step until `spec.steps`, calling `on_step` after each and `on_checkpoint` when one is due."""
        learner = self.learner
        rank = learner.mesh["data"].get_local_rank()
        # Workers that share a part of the batch count it once.
        counts = all(learner.mesh[axis].get_local_rank() == 0 for axis in ("tensor", "pipeline"))
        tally = Tally()
        for part in worker_shares(
            self.reader, self.job.model, self.spec, self.ledger.stop, rank, learner.device, learner.dtype
        ):
            started = time.monotonic()
            terms = learner.backward(part.batch)
            norm = learner.update()
            elapsed = time.monotonic() - started
            report = StepReport(learner.step, terms, norm, self.spec.batch_size / elapsed)
            if counts:
                tally.add(part.start, part.ids)
            on_step(report)
            if report.step % self.spec.checkpoint_every == 0 or report.step == self.spec.steps:
                totals: list[Any] = [0] * dist.get_world_size()
                dist.all_gather_object(totals, tally.total)
                self.ledger = self.ledger.extended(report.step * self.spec.batch_size, totals)
                tally = Tally()
                on_checkpoint(self, report)

    def save(self, folder: Path) -> None:
        """Write this worker's part of a training checkpoint."""
        learner = self.learner
        save_state(folder, learner.model, learner.optimizer, learner.past(), self.ledger)

    def restore(self, folder: Path) -> None:
        """Go on from a training checkpoint, of whatever mesh."""
        learner = self.learner
        self.ledger = load_state(folder, learner.model, learner.optimizer, learner.past())
        learner.step = self.ledger.stop // self.spec.batch_size


def use_threads(num_workers_here: int) -> None:
    """Divide this machine's cores among its workers."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // num_workers_here))
