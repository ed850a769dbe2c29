"""Layers get the cheapest number format that serves, alike on every mesh; what overflows costs a step."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eagleray.actors.training.group import run_group
from eagleray.actors.training.loop import TrainingJob
from eagleray.actors.training.precision import (
    GROWS_EVERY,
    PREFERRED,
    Signals,
    decide,
    escape,
    first_state,
    scale_after,
)
from eagleray.actors.training.spec import (
    ObjectiveSpec,
    OptimizerSpec,
    ParallelSpec,
    PrecisionControlSpec,
    TrainingSpec,
)
from eagleray.models.layers import attend
from eagleray.models.multimodal import MultimodalModel

from ..conftest import MODEL

CONTROL = PrecisionControlSpec(min_update=0.1, margin=2.0, patience=2)
BF16, FP16 = torch.finfo(torch.bfloat16).eps, torch.finfo(torch.float16).eps
FINE = Signals(update=BF16)
TOO_SMALL_FOR_BF16 = Signals(update=0.05 * BF16)
TOO_SMALL_FOR_BOTH = Signals(update=0.05 * FP16)


def state_of(fmt, **fields):
    return first_state(["a", "b", "heads"], fmt, CONTROL).model_copy(update=fields)


@pytest.mark.parametrize(
    ("before", "seen", "after", "why"),
    [
        ("bf16", FINE, "bf16", ""),
        ("bf16", TOO_SMALL_FOR_BF16, "fp16", "an update is 0.050 of bf16's rounding"),
        ("bf16", TOO_SMALL_FOR_BOTH, "fp32", "an update is"),
        ("fp16", TOO_SMALL_FOR_BOTH, "fp32", "an update is 0.050 of fp16's rounding"),
        ("fp16", Signals(update=BF16, underflow=0.5), "bf16", "50.0% of its gradient underflows fp16"),
        ("fp16", Signals(update=BF16, overflowed=True), "bf16", "its gradient overflows fp16"),
        ("bf16", Signals(update=0.05 * BF16, underflow=0.5), "fp32", "an update is"),
    ],
)
def test_a_format_that_no_longer_serves_is_left_at_once(before, seen, after, why):
    state = decide(state_of(before), 7, {"a": seen}, CONTROL)
    assert state.formats["a"] == after
    assert state.formats["b"] == before
    assert [change.step for change in state.changes] == ([7] if why else [])
    if why:
        assert state.changes[0].why.startswith(why)


def test_a_layer_goes_back_when_the_cheaper_format_would_have_served_for_long():
    state = state_of("fp32")
    fine, barely = Signals(update=BF16, underflow=1), Signals(update=0.15 * BF16, underflow=1)
    for seen in (fine, barely, fine):  # barely is not with room to spare, and begins the count anew
        state = decide(state, 0, {"a": seen}, CONTROL)
        assert state.formats["a"] == "fp32"
    state = decide(state, 1, {"a": fine}, CONTROL)
    assert state.formats["a"] == "bf16"
    assert state.changes[0].why == "bf16 would have served 2 times in a row"


@given(st.sampled_from(PREFERRED), st.lists(st.tuples(st.booleans(), st.floats(0, 1), st.floats(0, 1))))
def test_whatever_is_seen_a_layer_ends_in_a_format_that_serves(start, story):
    state = state_of(start)
    for step, (overflowed, underflow, update) in enumerate(story):
        seen = Signals(overflowed, underflow, update)
        state = decide(state, step, {"a": seen}, CONTROL)
        again = decide(state, step, {"a": seen}, CONTROL)
        assert again.formats == state.formats or again.calm["a"] == 0
        if state.formats["a"] == "fp16":
            assert not overflowed
            assert underflow <= CONTROL.max_underflow
    assert state.is_scaled == ("fp16" in state.formats.values())


def test_the_scale_halves_at_an_overflow_and_doubles_when_all_goes_well():
    state = state_of("fp16", scale=8.0)
    assert scale_after(state, True).scale == 4.0
    assert scale_after(state_of("fp16", scale=1.0), True).scale == 1.0
    for _ in range(GROWS_EVERY):
        state = scale_after(state, False)
    assert state.scale == 16.0
    assert scale_after(state_of("bf16", scale=8.0), False).scale == 1.0


def test_what_a_smaller_scale_does_not_help_leaves_fp16_for_good():
    state = escape(state_of("fp16"), 3, ["a"])
    assert (state.formats["a"], state.formats["b"]) == ("bf16", "fp16")
    for _ in range(5):
        state = decide(state, 4, {"a": TOO_SMALL_FOR_BF16}, CONTROL)
    assert state.formats["a"] == "fp32"


def test_scores_are_computed_in_single_precision():
    """Where bf16 has no digits left: two keys that differ by less than its rounding of the score."""
    query = torch.full((1, 1, 1, 1), 256.0, dtype=torch.bfloat16, requires_grad=True)
    key = torch.tensor([1.0, 1.0078125], dtype=torch.bfloat16).view(1, 1, 2, 1).requires_grad_()
    value = torch.tensor([0.0, 1.0], dtype=torch.bfloat16).view(1, 1, 2, 1)
    bias = torch.tensor([[[[0.0, -1.0]]]], dtype=torch.bfloat16)
    found = attend(query, key, value, bias)
    assert found.dtype == torch.bfloat16
    assert float(found.detach()) == pytest.approx(1 / (1 + math.exp(-1)), rel=1e-2)  # scores 256 and 257
    rounded = (query @ key.mT + bias).softmax(dim=-1) @ value
    assert float(rounded.detach()) != pytest.approx(float(found.detach()), rel=1e-2)
    found.sum().backward()
    assert key.grad is not None
    assert key.grad.abs().min() > 0


STEPS = 6


def job_of(corpus, precision, control=None, objective=None, **parallel) -> TrainingJob:
    spec = TrainingSpec(
        kind="pretrain",
        steps=STEPS,
        batch_size=8,
        objective=objective or ObjectiveSpec(contrastive=1.0, negatives=12, caption=0.25, classification=0.3),
        optimizer=OptimizerSpec(warmup_steps=1),
        checkpoint_every=3,
        precision=precision,
        precision_control=control or PrecisionControlSpec(),
        parallel=ParallelSpec(**parallel),
    )
    return TrainingJob(spec, MODEL, corpus)


def run(rank, job, restore=None, save=None):
    """Every step's loss, scale and formats."""
    from eagleray.actors.training.loop import Trainer

    trainer = Trainer(job)
    if restore is not None:
        trainer.restore(restore)
    seen = []

    def on_step(report):
        state = report.precision
        seen.append((report.terms["loss"], state.scale, dict(state.formats), list(report.notes)))

    trainer.run(
        on_step, lambda it, report: it.snapshot().write(save / str(report.step)) if save is not None else None
    )
    return seen


@pytest.fixture(scope="module")
def exact(corpus_folder):
    return [loss for loss, *_ in run_group(run, 1, job_of(corpus_folder, "fp64"))[0]]


@pytest.mark.parametrize("precision", ["bf16", "fp16", "dynamic"])
def test_lower_precision_stays_near(exact, corpus_folder, precision):
    job = job_of(corpus_folder, precision, data=2)
    first, second = run_group(run, 2, job)
    assert first == second
    done = [loss for loss, *_ in first]
    if precision == "fp16":  # its first steps find the scale
        assert first[-1][1] < PrecisionControlSpec().loss_scale or done[1] != done[0]
        exact = exact[:1]
    for mine, theirs in zip(done, exact, strict=False):
        assert mine == pytest.approx(theirs, rel=0.02)
        assert mine != theirs


MOVING = PrecisionControlSpec(start="bf16", every=2, min_update=0.3, margin=1.5, patience=1, loss_scale=64)


def test_formats_change_alike_on_every_mesh_and_go_on_after_a_resume(corpus_folder, tmp_path):
    whole = run_group(run, 1, job_of(corpus_folder, "dynamic", MOVING), None, tmp_path)[0]
    formats = [formats for _, _, formats, _ in whole]
    assert len({fmt for fmt in formats[-1].values()}) > 1  # some layers moved, some did not
    assert any("from now on" in note for *_, notes in whole for note in notes)
    spread = run_group(run, 4, job_of(corpus_folder, "dynamic", MOVING, tensor=2, pipeline=2))
    for worker in spread:
        assert [formats for _, _, formats, _ in worker] == formats
        for (mine, *_), (theirs, *_) in zip(worker, whole, strict=True):
            assert mine == pytest.approx(theirs, rel=0.02)
    resumed = run_group(run, 2, job_of(corpus_folder, "dynamic", MOVING, data=2), tmp_path / "3")[0]
    assert [formats for _, _, formats, _ in resumed] == formats[3:]


def test_an_overflow_of_fp16_costs_a_step_and_half_of_the_scale(corpus_folder):
    control = PrecisionControlSpec(loss_scale=2.0**40)
    seen = run_group(run, 1, job_of(corpus_folder, "fp16", control))[0]
    assert [scale for _, scale, *_ in seen] == [2.0 ** (39 - step) for step in range(STEPS)]


def poison(rank, job, skip):
    """Train on a corpus of which one step has a picture that is NaN."""
    from eagleray.actors.training import loop

    read = loop.worker_steps

    def poisoned(*arguments):
        for i, step in enumerate(read(*arguments)):
            if i == 2:
                batch = step.passes[0][0]
                batch["image"][0] = float("nan")
                batch["present"][0] = True
            yield step

    loop.worker_steps = poisoned
    return run(rank, job)


def test_a_batch_that_gives_no_finite_loss_is_named_or_left_out(corpus_folder):
    job = job_of(corpus_folder, "fp32", objective=ObjectiveSpec(classification=1.0), data=2)
    with pytest.raises(RuntimeError, match=r"step 3: its loss and classification is not finite, first in"):
        run_group(poison, 2, job, False)
    spec = job.spec.model_copy(update={"not_finite": "skip"})
    seen = run_group(poison, 2, TrainingJob(spec, MODEL, corpus_folder), True)[0]
    assert [math.isfinite(loss) for loss, *_ in seen] == [True, True, False, True, True, True]
    assert "its batch is left out" in seen[2][3][0]


@pytest.mark.parametrize("fmt", [torch.bfloat16, torch.float16])
def test_what_is_kept_for_the_backward_pass_is_much_less_in_half_precision(fmt):
    """Bytes that autograd keeps, of a batch whose activations dominate."""

    def kept(dtype: torch.dtype) -> int:
        torch.manual_seed(0)
        model = MultimodalModel(MODEL, 50, 3, ["classification"]).to(dtype)
        storages: dict[int, int] = {}

        def pack(tensor):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        side = MODEL.vision.image_size
        batch = {
            "image": torch.randn(16, 3, side, side, dtype=dtype),
            "label": torch.zeros(16, dtype=torch.long),
            "present": torch.ones(16, 3, dtype=torch.bool),
        }
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            outputs = model(batch)
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        assert outputs
        return sum(size for place, size in storages.items() if place not in weights)

    assert kept(fmt) <= 0.6 * kept(torch.float32)
