"""In which order a pipeline's workers pass microbatches, and how long they wait: pure, without torch.

The trainer's own schedules are torch's; these are the same orders, so that a plan knows what a worker holds
and how long it waits before any is started.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from .spec import ParallelSpec

Kind = Literal["forward", "backward", "inputs", "weights"]
"""A pass: forward; backward whole; or divided into the gradients of inputs, and those of weights."""


@dataclass(frozen=True)
class Pass:
    """One microbatch's way through one slice."""

    kind: Kind
    slice: int
    microbatch: int


def order(parallel: ParallelSpec, worker: int) -> list[Pass]:
    """What a pipeline's worker does in a step, one after the other.

    Args:
        parallel: the mesh, its schedule and microbatches.
        worker: number of it in the pipeline.
    """
    depth, count = parallel.pipeline, parallel.num_microbatches
    each = parallel.num_slices // depth
    divides = parallel.schedule == "zero-bubble" and depth > 1
    if each == 1 and not divides:
        ahead = count if parallel.schedule == "gpipe" else min(count, depth - worker - 1)
        return _alternate([Pass("forward", worker, m) for m in range(count)], ahead, worker, count)
    return _interleave(parallel, worker, each, divides)


def waiting(parallel: ParallelSpec, cost: Callable[[Pass], float]) -> list[float]:
    """Share of a step in which each worker waits for others.

    Args:
        parallel: the mesh, its schedule and microbatches.
        cost: of a pass, any unit; what crosses between workers costs nothing.
    """
    orders = [order(parallel, worker) for worker in range(parallel.pipeline)]
    ended: dict[Pass, float] = {}
    clocks = [0.0] * len(orders)
    places = [0] * len(orders)
    while any(place < len(passes) for place, passes in zip(places, orders, strict=True)):
        for worker, passes in enumerate(orders):
            while places[worker] < len(passes):
                one = passes[places[worker]]
                needed = _before(one, parallel.num_slices, ended)
                if needed is None:
                    break
                clocks[worker] = max(clocks[worker], needed) + cost(one)
                ended[one] = clocks[worker]
                places[worker] += 1
    total = max(clocks)
    return [1 - sum(map(cost, passes)) / total for passes in orders]


def _before(one: Pass, num_slices: int, ended: dict[Pass, float]) -> float | None:
    """When what a pass needs is there; None as long as it isn't."""

    def first(slice_number: int, *kinds: Kind) -> float | None:
        found = [ended.get(Pass(kind, slice_number, one.microbatch)) for kind in kinds]
        return next((time for time in found if time is not None), None)

    if one.kind == "forward":
        return 0.0 if one.slice == 0 else first(one.slice - 1, "forward")
    if one.kind == "weights":
        return first(one.slice, "inputs")
    if one.slice == num_slices - 1:
        return first(one.slice, "forward")
    return first(one.slice + 1, "backward", "inputs")


def _alternate(forward: Sequence[Pass], ahead: int, number: int, count: int) -> list[Pass]:
    """Some forward passes, then one forward and one backward in turn, then what is left."""
    backward = [Pass("backward", number, m) for m in range(count)]
    found = list(forward[:ahead])
    for one, other in zip(forward[ahead:], backward, strict=False):
        found += [one, other]
    return found + backward[len(forward) - ahead :]


def _interleave(parallel: ParallelSpec, worker: int, each: int, divides: bool) -> list[Pass]:
    """Several slices a worker, in rounds of microbatches (arXiv 2104.04473, 2.2); or ZB-H1 (2401.10241)."""
    depth, count = parallel.pipeline, parallel.num_microbatches
    in_round = count // max(1, count // depth)
    total = each * count
    hop = 1 if divides else 2  # passes that a worker is ahead of the one after it
    ahead = min((each - 1) * in_round + hop * (depth - 1 - worker), total)
    numbers = dict.fromkeys(("forward", "backward", "inputs", "weights"), 0)
    seen: dict[tuple[Kind, int], int] = {}

    def following(kind: Kind) -> Pass:
        step = numbers[kind]
        numbers[kind] += 1
        local = step // in_round % each
        place = (local if kind == "forward" else each - 1 - local) * depth + worker
        microbatch = seen.get((kind, place), 0)
        seen[kind, place] = microbatch + 1
        return Pass(kind, place, microbatch)

    found = [following("forward") for _ in range(ahead)]
    for step in range(total):
        if ahead + step < total:
            found.append(following("forward"))
        found.append(following("inputs" if divides else "backward"))
        if divides and step >= worker:
            found.append(following("weights"))
    if divides:
        found += [following("weights") for _ in range(min(worker, total))]
    return found
