"""What one training worker does: step through a corpus until done."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch
from torch import distributed as dist

from ...models.spec import ModelSpec, Task
from ...pipelines.ledger import LEDGER, Ledger, Tally, corpus_digest
from ...pipelines.reading import CorpusReader
from ...pipelines.sequences import Sequences
from ...workflows.errors import EaglerayError
from .checkpoint import PRECISION, Photographer, Snapshot, load_state
from .data import worker_steps
from .faults import Board, agree
from .learner import Learner, Update
from .precision import PrecisionState
from .spec import AdaptationSpec, TrainingSpec

STEPS_TO_JUDGE = 10
"""After which people are told that much is padding."""


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
        classes: that its classifier tells apart; None for the corpus's.
    """

    spec: TrainingSpec
    model: ModelSpec
    corpus: Path
    weights: Path | None = None
    tasks: tuple[Task, ...] = ()
    fresh: tuple[str, ...] = ()
    adaptation: AdaptationSpec = field(default_factory=AdaptationSpec)
    classes: tuple[str, ...] | None = None

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
        fill: share of the positions computed that were no padding; None where steps are of rows.
        notes: what happened, for people.
        precision: what each layer computes in from now on.
    """

    step: int
    terms: Mapping[str, float]
    grad_norm: float
    samples_per_s: float
    fill: float | None
    notes: Sequence[str]
    precision: PrecisionState


class Trainer:
    """A worker's learner, fed with a corpus in order, and the ledger of what it was fed."""

    def __init__(self, job: TrainingJob) -> None:
        self.job = job
        self.spec = job.spec
        self.reader = CorpusReader(job.corpus, "train", job.model.findings, job.model.compares)
        batching = self.spec.batching
        self.sequences = Sequences(self.reader, None if batching is None else batching.max_tokens)
        self.learner = Learner(
            job.spec,
            job.model,
            self.reader.info.vocab_size,
            len(self.reader.info.classes if job.classes is None else job.classes),
            tasks=job.all_tasks,
            weights=job.weights,
            fresh=job.fresh,
            adaptation=job.adaptation,
            max_tokens=self.reader.info.preparation.max_tokens,
        )
        self.photographer = Photographer()
        self.ledger = Ledger(
            corpus=corpus_digest(job.corpus),
            split="train",
            num_records=len(self.sequences),
            seed=self.spec.seed,
            max_tokens=self.sequences.max_tokens,
        )

    def run(
        self,
        on_step: Callable[[StepReport], None],
        on_checkpoint: Callable[[Trainer, StepReport], None],
    ) -> None:
        """Step until `spec.steps`, calling `on_step` after each and `on_checkpoint` when one is due.

        Raises:
            Fault: when another worker died, failed, hung or had other rows.
        """
        board = Board(self.learner.mesh)
        try:
            self._run(board, on_step, on_checkpoint)
        except Exception as error:
            raise board.explain(error) from error
        finally:
            board.close()

    def _run(
        self,
        board: Board,
        on_step: Callable[[StepReport], None],
        on_checkpoint: Callable[[Trainer, StepReport], None],
    ) -> None:
        learner = self.learner
        rank = learner.mesh["data"].get_local_rank()
        # Workers that share a part of the batch count it once.
        counts = all(learner.mesh[axis].get_local_rank() == 0 for axis in ("tensor", "pipeline"))
        tally = Tally()
        fills: list[float] = []
        board.note(learner.step + 1, "reading its rows")
        begins = self.ledger.stop, self.ledger.step
        where = rank, learner.device, learner.dtype
        for read in worker_steps(self.sequences, self.job.model, self.spec, *begins, *where):
            started = time.monotonic()
            board.note(learner.step + 1, "computing gradients")
            agree(read.passes)
            terms = learner.backward(read.passes)
            board.note(learner.step + 1, "copying the last checkpoint")
            self.photographer.wait_for_copy()
            board.note(learner.step + 1, "updating weights")
            update = learner.update()
            speed = read.num_rows / (time.monotonic() - started)
            notes = self._notes(update, terms)
            if read.fill is not None and len(fills) < STEPS_TO_JUDGE:
                fills.append(read.fill)
                notes += self._tell_fill(fills)
            report = StepReport(learner.step, terms, update.norm, speed, read.fill, notes, learner.precision)
            if counts:
                tally.add(read.positions, read.ids)
            board.note(learner.step, "telling of it")
            on_step(report)
            if report.step % self.spec.checkpoint_every == 0 or report.step == self.spec.steps:
                totals: list[Any] = [0] * dist.get_world_size()
                dist.all_gather_object(totals, tally.total)
                self.ledger = self.ledger.extended(read.stop, report.step, totals)
                tally = Tally()
                board.note(learner.step, "saving a checkpoint")
                on_checkpoint(self, report)
            board.note(learner.step + 1, "reading its rows")

    def _notes(self, update: Update, terms: Mapping[str, float]) -> list[str]:
        """What people should know of a step.

        Raises:
            EaglerayError: when it was not finite, and the spec says to stop then.
        """
        notes = [
            f"{change.layer} computes in {change.after} from now on, not {change.before}: {change.why}"
            for change in update.changes
        ]
        if not update.is_fault:
            return notes
        bad = [name for name, term in terms.items() if not math.isfinite(term)]
        what = f"its {' and '.join(bad)} is not finite" if bad else "its gradient is not finite"
        where = f", first in {update.overflowed[-1]}" if update.overflowed else ""
        cause = f"step {self.learner.step}: {what}{where}"
        if self.spec.not_finite == "stop":
            raise EaglerayError(
                f"{cause} (rank {dist.get_rank()} of {dist.get_world_size()})",
                "lower optimizer.learning_rate, or set not_finite=skip to leave such batches out",
            )
        return [*notes, f"{cause}: its batch is left out"]

    def _tell_fill(self, fills: Sequence[float]) -> list[str]:
        """Once, after some steps, whether more is padding than the spec wishes for."""
        batching, fill = self.spec.batching, sum(fills) / len(fills)
        if batching is None or len(fills) != STEPS_TO_JUDGE or fill >= batching.fill:
            return []
        return [
            f"{fill:.0%} of what {STEPS_TO_JUDGE} steps computed was tokens, less than batching.fill="
            f"{batching.fill:g}: too few rows a step for {self.spec.parallel.num_microbatches} microbatches "
            f"at each of {self.spec.parallel.data} data-parallel workers; raise batching.tokens"
        ]

    def snapshot(self) -> Snapshot:
        """This worker's part of a training checkpoint; it must be written, beside training or at once."""
        learner = self.learner
        files = {LEDGER: self.ledger.model_dump_json(), PRECISION: learner.precision.model_dump_json()}
        return self.photographer.take(learner.model, learner.optimizer, learner.past(), files)

    def restore(self, folder: Path) -> None:
        """Go on from a training checkpoint, of whatever mesh."""
        learner = self.learner
        precision = PrecisionState.model_validate_json((folder / PRECISION).read_text())
        if precision != learner.precision:
            learner.use_precision(precision)
        self.ledger = load_state(folder, learner.model, learner.optimizer, learner.past())
        learner.step = self.ledger.step


def use_threads(num_workers_here: int) -> None:
    """Divide this machine's cores among its workers."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // num_workers_here))
