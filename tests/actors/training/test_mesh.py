"""Which meshes a model runs on is known without building it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eagleray.actors.training.mesh import check_inputs, check_objective, check_topology, num_layers
from eagleray.actors.training.spec import (
    CompressionSpec,
    ObjectiveSpec,
    OptimizerSpec,
    ParallelSpec,
    TrainingSpec,
)
from eagleray.models.multimodal import MultimodalModel
from eagleray.models.spec import ModelSpec, VisionSpec
from eagleray.pipelines.spec import Preparation
from eagleray.workflows.errors import EaglerayError

from ..conftest import MODEL, TASKS

OBJECTIVE = ObjectiveSpec(contrastive=1, caption=1)


def spec_of(parallel, batch_size, **optimizer):
    return TrainingSpec(
        kind="pretrain",
        batch_size=batch_size,
        objective=OBJECTIVE,
        parallel=parallel,
        optimizer=OptimizerSpec(**optimizer),
    )


def test_layers_are_counted_without_building_the_model():
    pyramid = MODEL.vision.model_copy(update={"pyramid_width": 8})
    for spec in (MODEL, ModelSpec(), MODEL.model_copy(update={"vision": pyramid})):
        for tasks in (TASKS, ("classification",), ("language", "transcription"), ("answer",)):
            assert num_layers(spec, tasks) == len(MultimodalModel(spec, 300, 3, tasks).layer_names)


@pytest.mark.parametrize(
    ("parallel", "batch_size", "cause", "remedy"),
    [
        ({"tensor": 3}, 8, r"tensor=3 does not divide the vision heads \[2, 4\]", "tensor=2"),
        ({"data": 3}, 8, "batch_size=8 can't be divided over 3 data-parallel workers", "batch_size=9"),
        (
            {"pipeline": 4, "microbatches": 2},
            8,
            "2 microbatches don.t fill a 1F1B",
            "microbatches=4",
        ),
        ({"pipeline": 99}, 2 * 99, "the model has 20 layers", "pipeline=20"),
        (
            {"pipeline": 8, "slices_per_worker": 3, "schedule": "interleaved"},
            16,
            "8 pipeline workers of 3 slices, but the model has 20 layers",
            "pipeline=6",
        ),
        (
            {"pipeline": 2, "slices_per_worker": 2},
            8,
            "schedule=1f1b has no order for 2 slices",
            "slices_per_worker=1",
        ),
        (
            {"pipeline": 2, "slices_per_worker": 1, "schedule": "interleaved"},
            8,
            "schedule=interleaved has no order for 1 slices",
            "slices_per_worker=2",
        ),
        (
            {"data": 3, "tensor": 2, "vision": {"tensor": 3}},
            6,
            "vision.tensor=3, but there are 3 × 2 workers: it must divide 2",
            "vision.tensor=2",
        ),
        (
            {"data": 4, "tensor": 1, "vision": {"tensor": 4}},
            8,
            r"vision.tensor=4 does not divide the vision heads \[2, 4\]",
            "vision.tensor=2",
        ),
        (
            {"data": 2, "tensor": 2, "audio": {"tensor": 1, "data": 2}},
            8,
            "audio is of 2 × 1 workers, and there are 4",
            "audio.data=4",
        ),
        (
            {"data": 2, "tensor": 2, "audio": {"tensor": 1}},
            6,
            "of 1 microbatches each, each of 2 parts for an encoder",
            "batch_size=8",
        ),
        (
            {"data": 2, "text": {"tensor": 2}, "sharding": "optimizer"},
            8,
            "text: with sharding=optimizer all parts",
            "parallel.text out",
        ),
        (
            {"pipeline": 2, "microbatches": 5, "schedule": "zero-bubble"},
            10,
            "5 microbatches don.t make 2 equal rounds",
            "microbatches=4",
        ),
    ],
)
def test_a_mesh_that_cannot_work_is_refused_with_the_nearest_that_does(parallel, batch_size, cause, remedy):
    with pytest.raises(EaglerayError, match=cause) as caught:
        check_topology(spec_of(ParallelSpec(**parallel), batch_size), MODEL, "pretrain")
    assert f"pretrain.parallel.{remedy}" in caught.value.remedy or f"pretrain.{remedy}" in caught.value.remedy


@given(st.integers(2, 40), st.integers(1, 8), st.integers(1, 8))
def test_the_batch_size_that_is_named_works(batch_size, data, microbatches):
    parallel = ParallelSpec(data=data, microbatches=microbatches)
    try:
        check_topology(spec_of(parallel, batch_size), MODEL, "pretrain")
    except EaglerayError as error:
        named = int(error.remedy.partition("batch_size=")[2].partition(",")[0])
        check_topology(spec_of(parallel, named), MODEL, "pretrain")


def test_a_model_made_for_other_inputs_than_the_corpus_holds_is_refused_by_field():
    check_inputs(ModelSpec(), Preparation(), "pretrain")
    model = ModelSpec(vision=VisionSpec(image_size=96))
    with pytest.raises(EaglerayError, match=r"model.vision.image_size is 96, .* prepared with 64") as caught:
        check_inputs(model, Preparation(), "pretrain")
    assert "pretrain.model.vision.image_size=64" in caught.value.remedy


@pytest.mark.parametrize(
    ("task", "without", "needs"),
    [
        ("classification", ("vision",), "vision"),
        ("language", ("text",), "text"),
        ("transcription", ("audio",), "audio"),
        ("caption", ("decoder",), "decoder"),
        ("answer", ("text", "decoder"), "decoder and text"),
        ("contrastive", ("audio", "vision"), "a second encoder"),
    ],
)
def test_an_objective_that_lacks_its_part_of_the_model_is_refused(task, without, needs):
    model = MODEL.model_copy(update=dict.fromkeys(without))
    check_objective(ObjectiveSpec(**{task: 1}), MODEL, "pretrain")
    with pytest.raises(EaglerayError, match=f"objective.{task} needs {needs}, which the model lacks"):
        check_objective(ObjectiveSpec(**{task: 1}), model, "pretrain")


@pytest.mark.parametrize(
    ("parallel", "batch_size", "cause", "remedy"),
    [
        ({"data": 2}, 8, "gradients of sharded parameters are not compressed", "sharding=optimizer"),
        (
            {"data": 3, "sharding": "optimizer"},
            12,
            "4 sources can't be divided over 3 data-parallel workers",
            "sources=3",
        ),
        (
            {"data": 2, "sharding": "optimizer"},
            10,
            "over 2 data-parallel workers of 2 passes of 1 micro",
            "=8",
        ),
    ],
)
def test_a_compression_that_the_workers_cannot_do_is_refused(parallel, batch_size, cause, remedy):
    compression = CompressionSpec(density=0.1, sources=4)
    with pytest.raises(EaglerayError, match=cause) as refused:
        check_topology(spec_of(ParallelSpec(**parallel), batch_size, compression=compression), MODEL, "p")
    assert remedy in str(refused.value)
