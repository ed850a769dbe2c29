"""What a plan says a training takes, beside what it takes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from eagleray.actors.training.certificate import Training, mesh_of
from eagleray.actors.training.devices import Device
from eagleray.actors.training.estimate import Estimate, WorkerEstimate, estimate
from eagleray.actors.training.group import run_group
from eagleray.actors.training.learner import Learner
from eagleray.actors.training.spec import (
    AdaptationSpec,
    CompressionSpec,
    GridSpec,
    LoraSpec,
    ObjectiveSpec,
    OptimizerSpec,
    ParallelSpec,
    TrainingSpec,
)
from eagleray.actors.training.standins import split_meta_tensors
from eagleray.models.multimodal import MultimodalModel
from eagleray.models.spec import AudioSpec, DecoderSpec, ModelSpec, TextSpec, VisionSpec

from .metering import Meter

VOCABULARY, CLASSES, ROWS = 300, 10, 32
MODEL = ModelSpec(
    vision=VisionSpec(image_size=32, embed_dim=16, depths=(2, 2), num_heads=(2, 4)),
    text=TextSpec(d_model=64, num_layers=2, num_heads=4, max_tokens=32),
    audio=AudioSpec(
        n_mels=16, max_frames=64, num_bands=2, num_convs=2, d_model=32, num_layers=2, num_heads=2
    ),
    decoder=DecoderSpec(d_model=64, num_layers=2, num_heads=4),
    embed_dim=32,
)
TEXT = ModelSpec(vision=None, audio=None, decoder=None, text=TextSpec(d_model=64, num_layers=4, tied=True))
LENGTH = 32
ALL = ObjectiveSpec(contrastive=1, negatives=0, caption=0.1, classification=0.5)
SLOW = ObjectiveSpec(contrastive=1, negatives=64, alignment=0.5, caption=0.1)
SPEECH = ObjectiveSpec(contrastive=0, transcription=1)
LANGUAGE = ObjectiveSpec(contrastive=0, language=1)
TOP_K = OptimizerSpec(algorithm="adagrad", compression=CompressionSpec(density=0.05, sources=4))


def training(objective: ObjectiveSpec, optimizer: OptimizerSpec, precision: str, **parallel) -> Training:
    spec = TrainingSpec(
        kind="pretrain",
        batch_size=ROWS,
        objective=objective,
        optimizer=optimizer,
        precision=precision,
        parallel=ParallelSpec(**parallel),
    )
    return Training(spec, TEXT if objective is LANGUAGE else MODEL)


ADAM = OptimizerSpec()
TRAININGS = [
    training(ALL, ADAM, "fp32"),
    training(ALL, ADAM, "bf16"),
    training(ALL, ADAM, "fp32", data=2),
    training(SLOW, ADAM, "fp32", data=2),
    training(ALL, ADAM, "fp32", tensor=2),
    training(ALL, ADAM, "fp32", pipeline=2),
    training(ALL, ADAM, "fp32", pipeline=2, schedule="gpipe"),
    training(SLOW, ADAM, "fp32", pipeline=3, schedule="interleaved", microbatches=4),
    training(ALL, ADAM, "fp32", data=2, tensor=2),
    training(ALL, ADAM, "bf16", data=2, pipeline=2, schedule="zero-bubble"),
    training(ALL, ADAM, "fp32", data=2, tensor=2, pipeline=2, schedule="zero-bubble"),
    training(ALL, ADAM, "fp32", tensor=2, vision=GridSpec(tensor=1)),
    replace(
        training(ALL, ADAM, "fp32", data=2, tensor=2),
        adaptation=AdaptationSpec(lora=LoraSpec(rank=2, layers=("query", "output"))),
    ),
    training(ALL, ADAM, "fp32", data=2, text=GridSpec(tensor=2)),
    training(SLOW, ADAM, "bf16", data=2, tensor=2, pipeline=2, vision=GridSpec(tensor=1)),
    training(ALL, OptimizerSpec(algorithm="adagrad"), "fp32", data=2, sharding="optimizer"),
    training(ALL, TOP_K, "fp32", data=2, sharding="optimizer"),
    training(ALL, TOP_K, "fp32", data=4, sharding="optimizer"),
    training(LANGUAGE, ADAM, "fp32", pipeline=2),
    training(LANGUAGE, ADAM, "fp64", data=2, tensor=2),
    training(SPEECH, ADAM, "fp32", pipeline=2),
]


def rows_of(model: ModelSpec, count: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """A batch in which everything is there."""
    tokens = torch.randint(3, VOCABULARY, (count, LENGTH))
    batch = {
        "tokens": tokens,
        "token_mask": torch.ones_like(tokens, dtype=torch.bool),
        "present": torch.ones(count, 3, dtype=torch.bool),
        "label": torch.randint(CLASSES, (count,)),
        "group": torch.arange(count),
        "position": torch.arange(count),
        "is_transcript": torch.ones(count, dtype=torch.bool),
    }
    if model.vision is not None:
        batch["image"] = torch.randn(count, 3, 32, 32, dtype=dtype)
    if model.audio is not None:
        batch["mel"] = torch.randn(count, 64, 16, dtype=dtype)
        batch["mel_mask"] = torch.ones(count, 64, dtype=torch.bool)
    return batch


def measure(rank: int, training: Training) -> tuple[int, int, dict[str, float]]:
    """Number of the worker in the pipeline, bytes of tensors at the most, and bytes sent in a step."""
    parallel = training.spec.parallel
    meter = Meter()
    with meter:
        adaptation = training.adaptation
        learner = Learner(training.spec, training.model, VOCABULARY, CLASSES, adaptation=adaptation)
        count = ROWS // parallel.data
        passes = training.spec.passes
        batches = [rows_of(training.model, count, learner.dtype) for _ in range(2)]
        for step in range(3):
            meter.sent.clear()
            meter.told.clear()
            meter.peak = meter.now
            rows = torch.arange(count).chunk(passes)
            learner.backward(
                [
                    [{name: tensor[some[0] : some[-1] + 1] for name, tensor in batches[step % 2].items()}]
                    for some in rows
                ]
            )
            learner.update()
    groups = {axis: [learner.mesh[axis].get_group()] for axis in ("data", "tensor", "pipeline")}
    for name, mesh in learner.grids.own.items():
        for axis in ("data", "tensor"):
            groups[axis].append(mesh[axis].get_group())
        groups["tensor"].append(learner.grids.layouts[name].rows.team._group)
    sent = {
        axis: sum(meter.sent[group.group_name] for group in some if group.size() > 1)
        for axis, some in groups.items()
    }
    sent["tensor"] += sum(meter.told[group.group_name] for group in groups["tensor"] if group.size() > 1)
    return learner.mesh["pipeline"].get_local_rank(), meter.peak, sent


@pytest.mark.parametrize(
    "training", TRAININGS, ids=lambda t: f"{mesh_of(t.spec.parallel)}-{t.spec.precision}"
)
def test_a_plan_foretells_memory_and_traffic(training):
    expected = estimate(training, LENGTH, VOCABULARY, CLASSES)
    for place, peak, sent in run_group(measure, training.spec.parallel.num_workers, training):
        worker = expected.workers[place]
        assert worker.sent == pytest.approx(sent), place
        assert worker.total == pytest.approx(peak, rel=0.1), (place, worker.memory)


PLAIN = {"contrastive": 0.0}
OPTIONS = {
    "adaptive softmax": ({**PLAIN, "language": 1.0}, {"text": {"adaptive_cutoffs": (50, 100)}}, {}),
    "memory": ({**PLAIN, "language": 1.0}, {"text": {"memory_length": 8, "max_tokens": 8, "window": 6}}, {}),
    "drops": ({"caption": 1.0}, {"text": {"dropout": 0.1}, "vision": {"drop_path": 0.2}}, {}),
    "pyramid": ({**PLAIN, "classification": 1.0}, {"vision": {"pyramid_width": 8}}, {}),
    "answer": ({**PLAIN, "answer": 1.0}, {}, {}),
    "stream": ({**PLAIN, "transcription": 1.0}, {"audio": {"chunk": 4}}, {}),
    "fp16": ({"alignment": 0.5}, {}, {"precision": "fp16"}),
    "dynamic": ({"contrastive": 1.0}, {}, {"precision": "dynamic"}),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_whatever_a_spec_may_say_is_foretold(name):
    objective, sizes, fields = OPTIONS[name]
    given = MODEL.model_dump()
    for part, changed in sizes.items():
        given[part] |= changed
    spec = TrainingSpec(kind="pretrain", batch_size=8, objective=ObjectiveSpec(**objective), **fields)
    found = estimate(Training(spec, ModelSpec.model_validate(given)), LENGTH, VOCABULARY, CLASSES)
    assert found.workers[0].total > 0
    assert found.workers[0].flops > 0


def test_low_rank_layers_are_foretold_on_a_mesh():
    adaptation = AdaptationSpec(lora=LoraSpec(rank=2), freeze=("audio",))
    on_mesh = replace(training(ALL, ADAM, "fp32", tensor=2, pipeline=2), adaptation=adaptation)
    whole = estimate(training(ALL, ADAM, "fp32", tensor=2, pipeline=2), LENGTH, VOCABULARY, CLASSES)
    for few, many in zip(estimate(on_mesh, LENGTH, VOCABULARY, CLASSES).workers, whole.workers, strict=True):
        assert few.memory["optimizer"] < many.memory["optimizer"] / 2


def test_compression_that_sends_more_than_whole_gradients_is_told():
    def of(density: float) -> Training:
        compression = CompressionSpec(density=density, sources=4)
        optimizer = OptimizerSpec(algorithm="adagrad", compression=compression)
        return training(ALL, optimizer, "fp32", data=2, sharding="optimizer")

    assert not estimate(of(0.05), LENGTH, VOCABULARY, CLASSES).sends_more_than_dense
    assert estimate(of(0.9), LENGTH, VOCABULARY, CLASSES).sends_more_than_dense
    assert not estimate(
        training(ALL, ADAM, "fp32", data=2), LENGTH, VOCABULARY, CLASSES
    ).sends_more_than_dense


def test_slices_are_cut_by_what_their_layers_compute():
    found = estimate(training(LANGUAGE, ADAM, "fp32", pipeline=2), LENGTH, VOCABULARY, CLASSES)
    first, last = (worker.flops for worker in found.workers)
    assert 0.7 < first / last < 1.4


def test_a_step_takes_what_its_slowest_worker_takes():
    device = Device("of ours", 1, single=100.0, half=1000.0, link=10.0, used=0.5, used_half=0.1)
    quick = WorkerEstimate({}, {"data": 0.0}, flops=100, waits=0.0)
    slow = WorkerEstimate({}, {"data": 20.0, "tensor": 10.0}, flops=200, waits=0.2)
    assert device.step_s(Estimate([quick, slow], 1, 0.0, half=False)) == pytest.approx(200 / 50 / 0.8 + 3)
    assert device.step_s(Estimate([quick], 1, 0.0, half=True)) == pytest.approx(1.0)


@pytest.mark.parametrize("tied", [True, False])
def test_a_vocabulary_is_split_with_its_bias_by_any_number_that_divides_it(tied):
    decoder = MODEL.decoder.model_copy(update={"tied": tied, "num_heads": 8, "d_model": 64})
    with torch.device("meta"):
        model = MultimodalModel(MODEL.model_copy(update={"decoder": decoder}), 24, CLASSES, ["caption"])
        split_meta_tensors(model, ParallelSpec(tensor=8), lambda sent: None)  # 24 / 8 is no multiple of 8
    assert model.decoder.head.weight.shape == (3, 64)
    assert model.decoder.head.bias.shape == (3,)
    assert model.decoder.embed.weight.shape == (3, 64)


def test_a_plan_loads_nothing_that_splits_tensors():
    code = (
        "import sys, eagleray.actors.training.estimate\n"
        "names = ('ray', 'torch.distributed.tensor', 'torch.distributed.pipelining')\n"
        "print([name for name in names if name in sys.modules])"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"


@pytest.mark.parametrize("window", [0, 24])
def test_a_text_of_several_segments_is_foretold(window):
    text = {"d_model": 32, "num_heads": 2, "num_layers": 2, "max_tokens": 16, "memory_length": 16}
    parts = {"vision": None, "audio": None, "decoder": None, "text": {**text, "window": window}}
    spec = TrainingSpec(kind="pretrain", batch_size=4, objective=ObjectiveSpec(language=1.0))
    model = ModelSpec.model_validate(parts)
    (worker,) = estimate(Training(spec, model), 80, 100, 0).workers
    (shorter,) = estimate(Training(spec, model), 40, 100, 0).workers
    assert worker.memory["activations"] > shorter.memory["activations"] > 0
