"""Every mesh computes what one process computes: losses, gradient norms, and resumed weights."""

import pytest

from eagleray.actors.training.loop import TrainingJob
from eagleray.actors.training.spec import ObjectiveSpec, OptimizerSpec, ParallelSpec, TrainingSpec

from ..conftest import MODEL
from .conftest import losses, spawn

STEPS = 4


def job_of(corpus, **parallel) -> TrainingJob:
    spec = TrainingSpec(
        kind="pretrain",
        steps=STEPS,
        batch_size=8,
        objective=ObjectiveSpec(contrastive=1.0, negatives=12, caption=0.25, classification=0.3),
        # Adam moves a parameter whose gradient is rounding alone as far as any other, by ±learning_rate. At
        # 1e-3, two tensor-parallel workers were 2e-5 away after 4 steps.
        optimizer=OptimizerSpec(warmup_steps=1, learning_rate=1e-4),
        checkpoint_every=2,
        parallel=ParallelSpec(**parallel),
    )
    return TrainingJob(spec, MODEL, corpus)


@pytest.fixture(scope="module")
def alone(corpus_folder):
    return spawn(losses, 1, job_of(corpus_folder))[0]


@pytest.mark.parametrize(
    "parallel",
    [
        {"data": 2},
        {"tensor": 2},
        {"pipeline": 2},
        {"pipeline": 2, "schedule": "gpipe", "microbatches": 2},
        {"microbatches": 4},
        {"data": 2, "tensor": 2, "pipeline": 2, "microbatches": 2},
    ],
    ids=lambda p: "-".join(f"{k}{v}" for k, v in p.items()),
)
def test_every_mesh_computes_what_one_process_computes(alone, corpus_folder, parallel):
    job = job_of(corpus_folder, **parallel)
    for reports in spawn(losses, job.spec.parallel.num_workers, job):
        assert_equal(reports, alone)


def test_training_goes_on_on_another_mesh_as_if_nothing_had_happened(alone, corpus_folder, tmp_path):
    spawn(losses, 2, job_of(corpus_folder, data=2), None, tmp_path)
    (reports, _) = spawn(losses, 2, job_of(corpus_folder, pipeline=2), tmp_path / "2")
    assert_equal(reports, alone[2:])


def assert_equal(reports, expected):
    assert len(reports) == len(expected)
    for mine, theirs in zip(reports, expected, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5, abs=1e-5)
