"""The second model, whose embeddings the trained one's are told from."""

import numpy as np
import pytest
from torch.distributed.fsdp import FSDPModule

from eagleray.actors.training.group import run_group
from eagleray.actors.training.loop import Trainer, TrainingJob
from eagleray.actors.training.spec import ObjectiveSpec, OptimizerSpec, ParallelSpec, TrainingSpec

from ..conftest import MODEL
from .conftest import losses

STEPS = 5


def job_of(corpus, parallel=None, **objective) -> TrainingJob:
    spec = TrainingSpec(
        kind="pretrain",
        steps=STEPS,
        batch_size=8,
        objective=ObjectiveSpec(contrastive=1.0, **objective),
        optimizer=OptimizerSpec(warmup_steps=1),
        parallel=parallel or ParallelSpec(),
    )
    return TrainingJob(spec, MODEL, corpus)


def local(part):
    for module in part.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    return [p.detach().to_local().numpy().copy() for p in part.parameters()]


def followed(rank, job):
    """Parameters of both models before training and after each step, and the rows kept of the past."""
    trainer = Trainer(job)
    learner = trainer.learner
    both = [(local(learner.model), local(learner.keys))]
    kept = []

    def look(_):
        both.append((local(learner.model), local(learner.keys)))
        kept.append(int((learner.objective.past.groups >= 0).sum()))

    trainer.run(look, lambda *_: None)
    return both, kept


def test_the_second_model_follows_the_first(corpus_folder):
    job = job_of(corpus_folder, ParallelSpec(data=2, pipeline=2), negatives=20, momentum=0.2)
    answers = run_group(followed, 4, job)
    for both, kept in answers:
        assert all(np.array_equal(a, b) for a, b in zip(*both[0], strict=True))
        slow = both[0][1]
        for step, (fast, found) in enumerate(both[1:]):
            share = min(0.2, (1 + step) / (10 + step))
            slow = [share * s + (1 - share) * f for s, f in zip(slow, fast, strict=True)]
            for mine, theirs in zip(found, slow, strict=True):
                np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-7)
        assert any(not np.array_equal(a, b) for a, b in zip(*both[-1], strict=True))
        assert kept in ([0] * STEPS, [8, 16, 20, 20, 20])


def test_in_the_first_step_both_models_are_one_and_there_is_no_past(corpus_folder):
    with_past, without = (
        [report["contrastive"] for report in run_group(losses, 1, job_of(corpus_folder, negatives=number))[0]]
        for number in (20, 0)
    )
    assert with_past[0] == pytest.approx(without[0], rel=1e-6)
    assert with_past[1] > without[1] + 0.5  # twice as many to be told from
