"""What a worker of a process group does in tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eagleray.actors.training.loop import TrainingJob
from eagleray.actors.training.spec import ObjectiveSpec, OptimizerSpec, ParallelSpec, TrainingSpec

from ..conftest import MODEL

STEPS = 4
DROPPING = MODEL.model_copy(
    update={
        "vision": MODEL.vision.model_copy(update={"drop_path": 0.4}),
        "decoder": MODEL.decoder.model_copy(update={"dropout": 0.2, "tied": True}),
    }
)
USUAL = {"contrastive": 1.0, "negatives": 12, "caption": 0.25, "classification": 0.3}


def job_of(corpus, optimizer=None, **parallel) -> TrainingJob:
    spec = TrainingSpec(
        kind="pretrain",
        steps=STEPS,
        batch_size=8,
        objective=ObjectiveSpec(**USUAL),
        optimizer=optimizer or OptimizerSpec(warmup_steps=1),
        checkpoint_every=1,
        precision="fp64",
        parallel=ParallelSpec(**parallel),
    )
    return TrainingJob(spec, DROPPING, corpus)


def losses(
    rank: int, job: Any, restore: Path | None = None, save: Path | None = None
) -> list[dict[str, float]]:
    """Train, and return every step's terms and gradient norm; checkpoints go to `save`/STEP."""
    from eagleray.actors.training.loop import Trainer
    from eagleray.pipelines.ledger import verify

    trainer = Trainer(job)
    if restore is not None:
        trainer.restore(restore)
    reports: list[dict[str, float]] = []
    trainer.run(
        lambda report: reports.append({**report.terms, "grad_norm": report.grad_norm}),
        lambda trainer, report: (
            trainer.snapshot().write(save / str(trainer.learner.step)) if save is not None else None
        ),
    )
    verify(trainer.ledger, trainer.sequences.ids_of)
    assert trainer.ledger.step == job.spec.steps
    if job.spec.batching is None:
        assert trainer.ledger.stop == job.spec.steps * job.spec.batch_size
    return reports
