"""A corpus is trained on as one process would, on other meshes and after a resume.

That every mesh computes what one process does is shown in `test_certifying.py`.
"""

import pytest

from eagleray.actors.training.group import run_group
from eagleray.actors.training.spec import (
    CompressionSpec,
    OptimizerSpec,
)

from .conftest import job_of, losses

TOP_K = OptimizerSpec(
    algorithm="adagrad", warmup_steps=1, compression=CompressionSpec(density=0.2, sources=4)
)


@pytest.fixture(scope="module")
def alone(corpus_folder):
    return run_group(losses, 1, job_of(corpus_folder))[0]


@pytest.mark.parametrize(
    "parallel",
    [{"data": 2}, {"tensor": 2, "pipeline": 2, "vision": {"tensor": 1}}],
    ids=lambda p: "-".join(p),
)
def test_a_corpus_is_trained_on_as_in_one_process(alone, corpus_folder, parallel):
    job = job_of(corpus_folder, **parallel)
    for reports in run_group(losses, job.spec.parallel.num_workers, job):
        assert_equal(reports, alone)


def test_training_goes_on_on_another_mesh_as_if_nothing_had_happened(alone, corpus_folder, tmp_path):
    run_group(losses, 2, job_of(corpus_folder, data=2), None, tmp_path)
    there = tmp_path / "there"
    (reports, _) = run_group(losses, 2, job_of(corpus_folder, pipeline=2), tmp_path / "2", there)
    assert_equal(reports, alone[2:])
    own_grid = job_of(corpus_folder, tensor=2, vision={"tensor": 1})
    (reports, _) = run_group(losses, 2, own_grid, there / "3")
    assert_equal(reports, alone[3:])


def test_what_was_not_sent_yet_goes_to_another_mesh_and_back(corpus_folder, tmp_path):
    def job(**parallel):
        return job_of(corpus_folder, TOP_K, sharding="optimizer", **parallel)

    expected = run_group(losses, 1, job())[0]
    first, second = tmp_path / "first", tmp_path / "second"
    run_group(losses, 2, job(data=2), None, first)
    run_group(losses, 4, job(data=2, tensor=2), first / "2", second)
    (reports, _) = run_group(losses, 2, job(pipeline=2, microbatches=2), second / "3")
    assert_equal(reports, expected[3:])


def assert_equal(reports, expected):
    assert len(reports) == len(expected)
    for mine, theirs in zip(reports, expected, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-12, abs=1e-12)
