"""Every mesh computes what one process computes: losses, gradient norms, and resumed weights."""

import pytest

from eagleray.actors.training.loop import TrainingJob
from eagleray.actors.training.spec import ObjectiveSpec, OptimizerSpec, ParallelSpec, TrainingSpec
from eagleray.models.spec import ModelSpec

from ..conftest import MODEL
from .conftest import losses, spawn

STEPS = 4
USUAL = {"contrastive": 1.0, "negatives": 12, "caption": 0.25, "classification": 0.3}
WHOLE = {"data": 2, "tensor": 2, "pipeline": 2, "microbatches": 2}


def job_of(corpus, objective=None, model=MODEL, precision="fp64", **parallel) -> TrainingJob:
    spec = TrainingSpec(
        kind="pretrain",
        steps=STEPS,
        batch_size=8,
        objective=ObjectiveSpec(**(objective or USUAL)),
        # Adam moves a parameter whose gradient is rounding alone as far as any other, by ±learning_rate. At
        # 1e-3, two tensor-parallel workers were 2e-5 away after 4 steps.
        optimizer=OptimizerSpec(warmup_steps=1, learning_rate=1e-4),
        checkpoint_every=2,
        precision=precision,
        parallel=ParallelSpec(**parallel),
    )
    return TrainingJob(spec, model, corpus)


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
        WHOLE,
    ],
    ids=lambda p: "-".join(f"{k}{v}" for k, v in p.items()),
)
def test_every_mesh_computes_what_one_process_computes(alone, corpus_folder, parallel):
    job = job_of(corpus_folder, **parallel)
    for reports in spawn(losses, job.spec.parallel.num_workers, job):
        assert_equal(reports, alone)


def part(**without) -> ModelSpec:
    return MODEL.model_copy(update=without)


SEGMENTS = MODEL.text.model_copy(update={"max_tokens": 5, "memory_length": 7})
FINE = MODEL.audio.model_copy(update={"num_convs": 1})  # a clip has as many positions as its text tokens
SPLIT, CUT = {"data": 2, "tensor": 2, "microbatches": 2}, {"data": 2, "pipeline": 2, "microbatches": 2}
OBJECTIVES = {
    "alignment": ({"contrastive": 1.0, "alignment": 0.5, "divergence": 0.2, "negatives": 20}, MODEL, SPLIT),
    "within a batch": (
        {"contrastive": 1.0, "alignment": 0.5, "divergence": 0.2, "negatives": 0},
        MODEL,
        SPLIT,
    ),
    "language": ({"language": 1.0}, part(vision=None, audio=None, decoder=None, text=SEGMENTS), SPLIT),
    "transcription": ({"transcription": 1.0}, part(vision=None, text=None, decoder=None, audio=FINE), CUT),
    "pyramid": (
        {"classification": 1.0, "caption": 0.5},
        part(text=None, vision=MODEL.vision.model_copy(update={"pyramid_width": 8})),
        {"pipeline": 4, "microbatches": 4},
    ),
    "answer": ({"answer": 1.0}, part(audio=None), CUT),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_is_the_same_on_other_meshes(corpus_folder, questions_folder, name):
    objective, model, parallel = OBJECTIVES[name]
    corpus = questions_folder if name == "answer" else corpus_folder
    (expected,) = spawn(losses, 1, job_of(corpus, objective, model))
    assert set(expected[0]) == {"loss", "grad_norm", *objective} - {"negatives"}
    assert all(report["grad_norm"] > 0 for report in expected)
    for reports in spawn(losses, 4, job_of(corpus, objective, model, **parallel)):
        assert_equal(reports, expected)


def test_lower_precision_stays_near(alone, corpus_folder):
    for reports in spawn(losses, 2, job_of(corpus_folder, precision="bf16", data=2)):
        for mine, theirs in zip(reports, alone, strict=True):
            assert mine["loss"] == pytest.approx(theirs["loss"], rel=0.02)
            assert mine["loss"] != theirs["loss"]


def test_training_goes_on_on_another_mesh_as_if_nothing_had_happened(alone, corpus_folder, tmp_path):
    spawn(losses, 2, job_of(corpus_folder, data=2), None, tmp_path)
    (reports, _) = spawn(losses, 2, job_of(corpus_folder, pipeline=2), tmp_path / "2")
    assert_equal(reports, alone[2:])


def assert_equal(reports, expected):
    assert len(reports) == len(expected)
    for mine, theirs in zip(reports, expected, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-12, abs=1e-12)
