"""What a worker of a process group does in tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any


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
    verify(trainer.ledger, trainer.reader.ids_of)
    assert trainer.ledger.stop == job.spec.steps * job.spec.batch_size
    return reports
