"""Every mesh computes what one process does, to rounding; and what does not is caught."""

import dataclasses

import pytest
from torch import distributed as dist
from torch.distributed.fsdp import FSDPModule

from eagleray.actors.training import learner
from eagleray.actors.training.certifying import (
    GRADIENTS,
    LOSS,
    NORM,
    WEIGHTS,
    alone,
    certify,
    compare,
    prepare,
    together,
)
from eagleray.actors.training.group import run_group
from eagleray.actors.training.objective import Objective
from eagleray.actors.training.spec import (
    AdaptationSpec,
    LoraSpec,
    ObjectiveSpec,
    OptimizerSpec,
    ParallelSpec,
    TrainingSpec,
)
from eagleray.models.spec import ModelSpec

TINY = ModelSpec()
VISION = TINY.vision.model_copy(update={"depths": (1, 2), "num_heads": (2, 4)})
TEXT = TINY.text.model_copy(update={"num_layers": 1})
AUDIO = TINY.audio.model_copy(update={"num_layers": 1, "num_convs": 2})
DECODER = TINY.decoder.model_copy(update={"num_layers": 1})
SMALL = TINY.model_copy(update={"vision": VISION, "text": TEXT, "audio": AUDIO, "decoder": DECODER})
USUAL = {"contrastive": 1.0, "caption": 0.25, "classification": 0.3}
ALIGNED = {"contrastive": 1.0, "alignment": 0.5, "divergence": 0.2}
SPLIT, CUT = {"data": 2, "tensor": 2, "microbatches": 2}, {"data": 2, "pipeline": 2, "microbatches": 2}


def spec_of(objective, **parallel) -> TrainingSpec:
    return TrainingSpec(
        kind="pretrain",
        objective=ObjectiveSpec(**objective),
        optimizer=OptimizerSpec(warmup_steps=1),
        parallel=ParallelSpec(**parallel),
    )


def part(**without) -> ModelSpec:
    return SMALL.model_copy(update=without)


CASES = {
    "usual, all axes": (USUAL, SMALL, {"data": 2, "tensor": 2, "pipeline": 2, "microbatches": 2}),
    "alignment with a past": (ALIGNED, SMALL, SPLIT),
    "alignment within a batch": ({**ALIGNED, "negatives": 0}, SMALL, SPLIT),
    "language": (
        {"language": 1.0},
        part(
            vision=None,
            audio=None,
            decoder=None,
            text=TEXT.model_copy(update={"window": 16, "adaptive_cutoffs": (8, 20)}),
        ),
        SPLIT,
    ),
    "transcription": ({"transcription": 1.0}, part(vision=None, text=None, decoder=None), CUT),
    "pyramid": (
        {"classification": 1.0, "caption": 0.5},
        part(text=None, vision=VISION.model_copy(update={"pyramid_width": 8})),
        {"pipeline": 4, "microbatches": 4, "schedule": "gpipe"},
    ),
    "answer": ({"answer": 1.0}, part(audio=None), CUT),
}


@pytest.mark.parametrize("name", CASES)
def test_every_mesh_computes_what_one_process_does(name):
    objective, model, parallel = CASES[name]
    found = {finding.what: finding for finding in certify(spec_of(objective, **parallel), model)}
    assert set(found) == {LOSS, NORM, GRADIENTS, WEIGHTS}
    assert all(finding.holds for finding in found.values()), found


def test_low_rank_and_frozen_layers_are_split_as_any_other():
    adaptation = AdaptationSpec(lora=LoraSpec(rank=2), layer_decay=0.7, freeze=("audio",))
    found = certify(spec_of({"contrastive": 1.0, "caption": 0.25}, **SPLIT), SMALL, adaptation)
    assert all(finding.holds for finding in found), found


def no_trap():
    pass


def gradients_averaged_over_ranks():
    FSDPModule.set_gradient_divide_factor = lambda self, factor: None


def norm_counts_shared_parameters_twice():
    def clip(parameters, most, world_size, depth):
        gradients = [p.grad for p in parameters if p.grad is not None]
        square = sum(gradient.to_local().square().sum() for gradient in gradients)
        dist.all_reduce(square)
        for gradient in gradients:
            gradient.mul_(min(1.0, most / float(square.sqrt())))
        return float(square.sqrt())

    learner.clip_gradients = clip


def temperature_learns_from_every_microbatch():
    Objective._shares = property(lambda self: 1)


def the_second_model_stays_behind():
    learner.follow = lambda *arguments: None


TRAPS = {
    no_trap: ({"data": 2}, 32, set()),
    gradients_averaged_over_ranks: ({"data": 2}, 32, {NORM, GRADIENTS}),  # clipped, weights are the same
    norm_counts_shared_parameters_twice: ({"tensor": 2}, 0, {LOSS, NORM, GRADIENTS, WEIGHTS}),
    temperature_learns_from_every_microbatch: ({"microbatches": 2}, 0, {LOSS, NORM, GRADIENTS, WEIGHTS}),
    the_second_model_stays_behind: ({"data": 2}, 32, {LOSS, NORM, GRADIENTS, WEIGHTS}),
}


def trapped(rank, trap, *arguments):
    trap()
    return together(rank, *arguments)


@pytest.mark.parametrize("trap", TRAPS, ids=lambda trap: trap.__name__)
def test_a_known_error_is_caught(trap, tmp_path):
    parallel, negatives, caught = TRAPS[trap]
    spec = spec_of({"contrastive": 1.0, "negatives": negatives}, **parallel)
    # a clipped norm is the only way in which a wrong one changes weights
    spec = spec.model_copy(update={"optimizer": OptimizerSpec(warmup_steps=1, max_grad_norm=1e-3)})
    arguments = (*prepare(spec, part(decoder=None, audio=None), AdaptationSpec()), tmp_path)
    (expected,) = run_group(alone, 1, *arguments)
    found = compare(run_group(trapped, spec.parallel.num_workers, trap, *arguments), expected)
    assert {finding.what for finding in found if not finding.holds} == caught, found


def test_a_parameter_that_no_worker_has_is_missed():
    expected = [{LOSS: {"loss": 1.0}, GRADIENTS: {"a": 1.0, "b": 2.0}}]
    mine = [{LOSS: {"loss": 1.0}, GRADIENTS: {"a": 1.0}}]
    loss, gradients = compare([mine], expected)
    assert loss.holds
    assert dataclasses.astuple(gradients) == (GRADIENTS, float("inf"), "no worker has b")
    assert not compare([[{LOSS: {"loss": float("nan")}}]], [{LOSS: {"loss": 1.0}}])[0].holds
