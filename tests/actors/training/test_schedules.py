"""The orders that a plan is made from are those that torch carries out."""

from itertools import product

import pytest
import torch
from torch import distributed as dist
from torch import nn

from eagleray.actors.training.group import run_group
from eagleray.actors.training.pipeline import make_schedule
from eagleray.actors.training.schedules import Pass, order, waiting
from eagleray.actors.training.spec import ParallelSpec

MESHES = [
    ParallelSpec(pipeline=depth, microbatches=count, schedule=schedule, slices_per_worker=each)
    for depth, count, (schedule, each) in product(
        (2, 3, 4),
        (1, 2, 3, 4, 8),
        (("gpipe", 1), ("1f1b", 1), ("interleaved", 2), ("zero-bubble", 1), ("zero-bubble", 2)),
    )
    if not (schedule == "1f1b" and count < depth) and count % max(1, count // depth) == 0
]


def done(rank: int) -> list[list[Pass]]:
    """What this worker really does in a step on each mesh of as many workers as there are."""
    found = []
    for parallel in MESHES:
        if parallel.pipeline == dist.get_world_size():
            mine = range(rank, parallel.num_slices, parallel.pipeline)
            slices = {number: nn.Linear(2, 2) for number in mine}
            schedule = make_schedule(
                slices, parallel, lambda out, _: out.sum(), torch.device("cpu"), dist.group.WORLD
            )
            passes: list[Pass] = []
            for stage in getattr(schedule, "_stages", None) or [schedule._stage]:
                watch(stage, passes)
            rows = torch.zeros(parallel.num_microbatches, 2)
            entering = (rows,) if rank == 0 else ()
            for _ in range(2):  # the first learns shapes, too
                passes.clear()
                schedule.step(*entering, target=rows, return_outputs=False)
            found.append(passes)
    return found


def watch(stage, passes: list[Pass]) -> None:
    forward, backward, weights = (
        stage.forward_one_chunk,
        stage.backward_one_chunk,
        stage.backward_weight_one_chunk,
    )

    def on_forward(number, *arguments, **options):
        passes.append(Pass("forward", stage.stage_index, number))
        return forward(number, *arguments, **options)

    def on_backward(number, *arguments, full_backward=True, **options):
        passes.append(Pass("backward" if full_backward else "inputs", stage.stage_index, number))
        return backward(number, *arguments, full_backward=full_backward, **options)

    def on_weights(number, *arguments, **options):
        passes.append(Pass("weights", stage.stage_index, number))
        return weights(number, *arguments, **options)

    stage.forward_one_chunk, stage.backward_one_chunk = on_forward, on_backward
    stage.backward_weight_one_chunk = on_weights


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_workers_do_what_the_order_says(depth):
    meshes = [parallel for parallel in MESHES if parallel.pipeline == depth]
    for worker, found in enumerate(run_group(done, depth)):
        for parallel, passes in zip(meshes, found, strict=True):
            assert order(parallel, worker) == passes, (parallel, worker)


def cost(one: Pass) -> float:
    return {"forward": 1.0, "backward": 2.0, "inputs": 1.0, "weights": 1.0}[one.kind]


@pytest.mark.parametrize(("schedule", "each"), [("gpipe", 1), ("1f1b", 1), ("interleaved", 2)])
def test_waiting_is_what_the_papers_say(schedule, each):
    depth, count = 4, 8
    parallel = ParallelSpec(pipeline=depth, microbatches=count, schedule=schedule, slices_per_worker=each)
    for share in waiting(parallel, cost):
        assert share == pytest.approx((depth - 1) / each / (count + (depth - 1) / each))


def test_divided_backward_passes_fill_what_1f1b_waits():
    zero = ParallelSpec(pipeline=4, microbatches=8, schedule="zero-bubble")
    one = zero.model_copy(update={"schedule": "1f1b"})
    assert max(waiting(zero, cost)) < max(waiting(one, cost)) / 2


def test_a_lone_worker_never_waits():
    assert waiting(ParallelSpec(microbatches=3), cost) == [0.0]
