"""Every mesh computes what one process does, to rounding; and what does not is caught."""

from dataclasses import replace

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.nn.functional import all_gather
from torch.distributed.pipelining import PipelineStage

from eagleray.actors.training import learner, pipeline
from eagleray.actors.training.certificate import Finding, Training
from eagleray.actors.training.certifying import (
    GRADIENTS,
    LOSS,
    NORM,
    WEIGHTS,
    alone,
    certify,
    compare,
    together,
)
from eagleray.actors.training.group import run_group
from eagleray.actors.training.objective import Objective
from eagleray.actors.training.spec import (
    AdaptationSpec,
    BatchingSpec,
    CompressionSpec,
    LoraSpec,
    ObjectiveSpec,
    OptimizerSpec,
    ParallelSpec,
    TrainingSpec,
)
from eagleray.actors.training.tensor import PartLinear, Sharing
from eagleray.actors.training.tying import TiedWeights
from eagleray.models.alignment import Rows, contrastive_loss
from eagleray.models.layers import RowDropout
from eagleray.models.spec import ModelSpec

TINY = ModelSpec()
VISION = TINY.vision.model_copy(update={"depths": (1, 2), "num_heads": (2, 4), "drop_path": 0.4})
TEXT = TINY.text.model_copy(update={"num_layers": 1, "dropout": 0.2, "tied": True})
AUDIO = TINY.audio.model_copy(update={"num_layers": 1, "num_convs": 2, "dropout": 0.2})
DECODER = TINY.decoder.model_copy(update={"num_layers": 1, "dropout": 0.2, "tied": True})
SMALL = TINY.model_copy(update={"vision": VISION, "text": TEXT, "audio": AUDIO, "decoder": DECODER})
USUAL = {"contrastive": 1.0, "caption": 0.25, "classification": 0.3}
ALIGNED = {"contrastive": 1.0, "alignment": 0.5, "divergence": 0.2}
SPLIT, CUT = {"data": 2, "tensor": 2, "microbatches": 2}, {"data": 2, "pipeline": 2, "microbatches": 2}


def spec_of(objective, optimizer=None, **parallel) -> TrainingSpec:
    return TrainingSpec(
        kind="pretrain",
        objective=ObjectiveSpec(**objective),
        optimizer=optimizer or OptimizerSpec(),
        parallel=ParallelSpec(**parallel),
    )


def part(**without) -> ModelSpec:
    return SMALL.model_copy(update=without)


CASES = {
    "usual, all axes": (USUAL, SMALL, {"data": 2, "tensor": 2, "pipeline": 2, "microbatches": 2}),
    "encoders' own grids": (
        USUAL,
        SMALL,
        {
            "data": 2,
            "tensor": 2,
            "pipeline": 2,
            "microbatches": 2,
            "vision": {"tensor": 1},
            "text": {"tensor": 4},
            "audio": {"tensor": 1},
        },
    ),
    "alignment with a past": (ALIGNED, SMALL, SPLIT),
    "alignment within a batch": ({**ALIGNED, "negatives": 0}, SMALL, SPLIT),
    "language": (
        {"language": 1.0},
        part(
            vision=None,
            audio=None,
            decoder=None,
            text=TEXT.model_copy(update={"window": 16, "tied": False, "adaptive_cutoffs": (8, 20)}),
        ),
        SPLIT,
    ),
    "tied language": (
        {"language": 1.0},
        part(vision=None, audio=None, decoder=None),
        {**CUT, "microbatches": 4, "schedule": "zero-bubble", "slices_per_worker": 2},
    ),
    "transcription": ({"transcription": 1.0}, part(vision=None, text=None, decoder=None), CUT),
    "pyramid": (
        {"classification": 1.0, "caption": 0.5},
        part(text=None, vision=VISION.model_copy(update={"pyramid_width": 8})),
        {"pipeline": 4, "microbatches": 4, "schedule": "gpipe"},
    ),
    "pyramid, rows joined": (
        {"classification": 1.0},
        part(text=None, audio=None, decoder=None, vision=VISION.model_copy(update={"pyramid_width": 8})),
        {"data": 2, "vision": {"tensor": 2}},
    ),
    "answer": (
        {"answer": 1.0},
        part(audio=None),
        {"tensor": 2, "pipeline": 2, "microbatches": 2, "schedule": "zero-bubble"},
    ),
    "questions among descriptions": (
        {"contrastive": 1.0, "negatives": 0, "answer": 0.5, "transcription": 0.2, "classification": 0.3},
        SMALL,
        SPLIT,
    ),
    "segmentation": (
        {"segmentation": 1.0, "classification": 0.3},
        part(
            text=None,
            audio=None,
            decoder=None,
            vision=VISION.model_copy(update={"pyramid_width": 8, "findings": ("crack", "hole")}),
        ),
        {"tensor": 2, "pipeline": 2, "microbatches": 2},
    ),
    "segmentation, compared": (
        {"segmentation": 1.0},
        part(
            text=None,
            audio=None,
            decoder=None,
            vision=VISION.model_copy(
                update={"pyramid_width": 8, "findings": ("crack", "hole"), "compares": True}
            ),
        ),
        {"data": 2, "tensor": 2, "pipeline": 2},
    ),
    "segmentation alone": (
        {"segmentation": 1.0},
        part(
            text=None,
            audio=None,
            decoder=None,
            vision=VISION.model_copy(update={"pyramid_width": 8, "findings": ("crack", "hole")}),
        ),
        SPLIT,
    ),
    "segmentation by a text": (
        {"segmentation": 1.0},
        part(
            audio=None,
            decoder=None,
            vision=VISION.model_copy(update={"pyramid_width": 8, "findings": ("spot",), "reads_text": True}),
        ),
        {"data": 2, "tensor": 2, "pipeline": 2, "microbatches": 2},
    ),
    "document": (
        {"document": 1.0},
        part(vision=None, audio=None, decoder=None, text=TEXT.model_copy(update={"overlap": 12})),
        {"data": 2, "tensor": 2, "pipeline": 2, "microbatches": 2},
    ),
    "earlier batches": (
        {"contrastive": 1.0},
        part(decoder=None, audio=None),
        {"pipeline": 2, "microbatches": 2, "schedule": "interleaved", "slices_per_worker": 3},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_every_mesh_computes_what_one_process_does(name):
    objective, model, parallel = CASES[name]
    found = {finding.what: finding for finding in certify(Training(spec_of(objective, **parallel), model))}
    assert set(found) == {LOSS, NORM, GRADIENTS, WEIGHTS}
    assert all(finding.holds for finding in found.values()), found


ZERO = {"data": 2, "sharding": "optimizer"}
TOP_K = CompressionSpec(density=0.3, sources=4)


@pytest.mark.parametrize(
    ("objective", "model", "algorithm", "compression", "parallel"),
    [
        (USUAL, SMALL, "adagrad", None, {"tensor": 2}),
        ({"language": 1.0}, part(vision=None, audio=None, decoder=None), "adamw", None, {"pipeline": 2}),
        (USUAL, SMALL, "adagrad", TOP_K, {"tensor": 2}),
        ({**USUAL, "negatives": 0}, part(audio=None), "adamw", TOP_K, {"microbatches": 2}),
        ({"language": 1.0}, part(vision=None, audio=None, decoder=None), "adagrad", TOP_K, {"pipeline": 2}),
    ],
)
def test_a_divided_optimizer_and_compressed_gradients_are_the_same_on_every_mesh(
    objective, model, algorithm, compression, parallel
):
    optimizer = OptimizerSpec(algorithm=algorithm, compression=compression)
    found = certify(Training(spec_of(objective, optimizer, **ZERO, **parallel), model))
    assert all(finding.holds for finding in found), found


def test_low_rank_and_frozen_layers_are_split_as_any_other():
    adaptation = AdaptationSpec(lora=LoraSpec(rank=2), layer_decay=0.7, freeze=("audio",))
    found = certify(Training(spec_of({"contrastive": 1.0, "caption": 0.25}, **SPLIT), SMALL, adaptation))
    assert all(finding.holds for finding in found), found


def no_trap():
    pass


def gradients_averaged_over_ranks():
    FSDPModule.set_gradient_divide_factor = lambda self, factor: None


def loss_not_divided_by_microbatches():
    start_step = Objective.start_step

    def start(self, batch, scale):
        start_step(self, batch, scale)
        self._counts = {name: count / self.num_microbatches for name, count in self._counts.items()}

    Objective.start_step = start


def uneven_microbatches_weigh_alike():
    call = Objective.__call__

    def mean_of_means(self, outputs, rows):
        counts = self._count({name: tensor[rows] for name, tensor in self._batches[0].items()})
        self._counts = {name: float(count) * self.num_microbatches for name, count in counts.items()}
        return call(self, outputs, rows)

    Objective.__call__ = mean_of_means


def norm_counts_shared_parameters_twice():
    clip = learner.clip_gradients
    learner.clip_gradients = lambda parts, most: clip([replace(part, holders=1) for part in parts], most)


def norm_counts_tied_weights_twice():
    clip = learner.clip_gradients
    learner.clip_gradients = lambda parts, most: clip([replace(p, is_copy=False) for p in parts], most)


def gathered_embeddings_learn_from_every_rank():
    def aligned(self, out, rows):
        bank = self._bank.rows
        gathered = {name: torch.cat(all_gather(out[name], group=self.group)) for name in self._embedded}
        everything = Rows(gathered, bank.present, bank.groups)
        scale = out["scale"][0]
        scale = scale.detach() + (scale - scale.detach()) / self._shares
        own = torch.arange(len(bank.groups))
        return {"contrastive": contrastive_loss(everything, everything, scale, own, self.past)}

    Objective._aligned = aligned


def temperature_learns_from_every_microbatch():
    Objective._shares = property(lambda self: 1)


def the_second_model_stays_behind():
    learner.follow = lambda *arguments: None


def tied_weights_reduced_once():
    TiedWeights.sum_gradients = lambda self: None


def seeded(change):
    backward = learner.Learner.backward

    def with_other_seeds(self, passes):
        for batch in (batch for groups in passes for batch in groups):
            batch["seed"] = batch["seed"].clone()
            change(batch["seed"])
        return backward(self, passes)

    learner.Learner.backward = with_other_seeds


def data_workers_drop_alike():
    seeded(lambda seeds: dist.broadcast(seeds, 0))


def tensor_workers_drop_differently():
    seeded(lambda seeds: seeds.add_(dist.get_rank()))


def norms_learn_from_their_own_positions():
    Sharing.sum_gradients = lambda self: None


def parts_of_the_positions_drop_alike():
    forward = RowDropout.forward

    def at_the_start(self, x, seeds):
        self.part = 0
        return forward(self, x, seeds)

    RowDropout.forward = at_the_start


def biases_are_added_by_every_worker():
    PartLinear.__setattr__ = lambda self, name, value: nn.Module.__setattr__(
        self, name, True if name == "adds_bias" else value
    )


def torch_divides_the_backward_pass():
    pipeline.DeferringStage = PipelineStage


def groups_weigh_alike():
    call = Objective.__call__

    def mean_of_means(self, outputs, rows):
        groups = torch.arange(sum(len(b["label"]) for b in self._batches)).split(
            [len(b["label"]) for b in self._batches]
        )
        (batch,) = (
            b for b, group in zip(self._batches, groups, strict=True) if group[0] <= rows[0] <= group[-1]
        )
        counts = self._count(batch)
        self._counts = {name: max(1.0, float(n)) * len(self._batches) for name, n in counts.items()}
        return call(self, outputs, rows)

    Objective.__call__ = mean_of_means


def negatives_are_kept_in_the_order_of_workers():
    column = Objective._column

    def by_worker(self, name):
        found = column(self, name)
        return found.abs() * 0 if name == "position" else found

    Objective._column = by_worker


EMBEDDED = {"contrastive": 1.0}, part(decoder=None, audio=None)
PICTURES = {"classification": 1.0}, part(decoder=None, audio=None, text=None)
TEXTS = {"language": 1.0}, part(vision=None, audio=None, decoder=None)
ALL = {LOSS, NORM, GRADIENTS, WEIGHTS}
TRAPS = {
    no_trap: (EMBEDDED, {"data": 2}, 32, set()),
    # what scales all gradients alike changes no weight: they are clipped
    gradients_averaged_over_ranks: (EMBEDDED, {"data": 2}, 32, {NORM, GRADIENTS}),
    loss_not_divided_by_microbatches: (PICTURES, {"microbatches": 2}, 0, {LOSS, NORM, GRADIENTS}),
    uneven_microbatches_weigh_alike: (PICTURES, {"microbatches": 2}, 0, ALL),
    norm_counts_shared_parameters_twice: (EMBEDDED, {"tensor": 2}, 0, ALL),
    norm_counts_tied_weights_twice: (TEXTS, {"pipeline": 2, "microbatches": 2}, 0, ALL),
    gathered_embeddings_learn_from_every_rank: (EMBEDDED, {"data": 2}, 0, ALL),
    temperature_learns_from_every_microbatch: (EMBEDDED, {"microbatches": 2}, 0, ALL),
    the_second_model_stays_behind: (EMBEDDED, {"data": 2}, 32, ALL),
    tied_weights_reduced_once: (TEXTS, {"pipeline": 2, "microbatches": 2}, 0, ALL),
    data_workers_drop_alike: (PICTURES, {"data": 2}, 0, ALL),
    tensor_workers_drop_differently: (PICTURES, {"tensor": 2}, 0, ALL),
    norms_learn_from_their_own_positions: (EMBEDDED, {"tensor": 2}, 0, ALL),
    parts_of_the_positions_drop_alike: (EMBEDDED, {"tensor": 2}, 0, ALL),
    biases_are_added_by_every_worker: (EMBEDDED, {"tensor": 2}, 0, ALL),
    torch_divides_the_backward_pass: (
        TEXTS,
        {"data": 2, "pipeline": 2, "microbatches": 2, "schedule": "zero-bubble"},
        0,
        ALL,
    ),
    groups_weigh_alike: (TEXTS, {}, 0, ALL),
    negatives_are_kept_in_the_order_of_workers: (EMBEDDED, {"data": 2}, 32, ALL),
}
GROUPED = {groups_weigh_alike, negatives_are_kept_in_the_order_of_workers}


def trapped(rank, trap, *arguments):
    trap()
    return together(rank, *arguments)


@pytest.mark.parametrize("trap", TRAPS, ids=lambda trap: trap.__name__)
def test_a_known_error_is_caught(trap, tmp_path):
    (objective, model), parallel, negatives, caught = TRAPS[trap]
    spec = spec_of({**objective, "negatives": negatives}, **parallel)
    # a clipped norm is the only way in which a wrong one changes weights
    batching = BatchingSpec(fill=0.99) if trap in GROUPED else None
    spec = spec.model_copy(update={"optimizer": OptimizerSpec(max_grad_norm=1e-3), "batching": batching})
    arguments = (Training(spec, model).at_toy_width(), tmp_path)
    (expected,) = run_group(alone, 1, *arguments)
    found = compare(run_group(trapped, spec.parallel.num_workers, trap, *arguments), expected)
    assert {finding.what for finding in found if not finding.holds} == caught, found


def test_a_parameter_that_no_worker_has_is_missed():
    expected = [{LOSS: {"loss": 1.0}, GRADIENTS: {"a": 1.0, "b": 2.0}}]
    mine = [{LOSS: {"loss": 1.0}, GRADIENTS: {"a": 1.0}}]
    loss, gradients = compare([mine], expected)
    assert loss.holds
    assert gradients == Finding(what=GRADIENTS, difference=float("inf"), where="no worker has b")
    assert not compare([[{LOSS: {"loss": float("nan")}}]], [{LOSS: {"loss": 1.0}}])[0].holds
