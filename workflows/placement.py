"""Whether a cluster's machines can hold workers beside each other: sums of all machines don't tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .errors import EaglerayError

Resources = Mapping[str, float]
"""Resource → how much of it, as Ray names them."""


def num_placed(nodes: Sequence[Resources], worker: Resources, beside: Resources) -> int:
    """How many workers fit at the most, all at once, beside one other task.

    Args:
        nodes: what each machine has.
        worker: what each worker reserves; more than nothing.
        beside: what the other task reserves, on one machine.
    """
    counts = [_fitting(node, worker) for node in nodes]
    lost = [
        count - _fitting({name: has - beside.get(name, 0) for name, has in node.items()}, worker)
        for node, count in zip(nodes, counts, strict=True)
        if all(node.get(name, 0) >= amount for name, amount in beside.items())
    ]
    return sum(counts) - min(lost) if lost else 0


def check_placement(
    nodes: Sequence[Resources], worker: Resources, beside: Resources, wanted: int, where: str
) -> None:
    """Refuse workers that a cluster can never hold.

    Raises:
        EaglerayError: with what the machines have, and how many fit.
    """
    placed = num_placed(nodes, worker, beside)
    if placed >= wanted:
        return
    names = list(worker)
    has = "; ".join(", ".join(f"{node.get(name, 0):g} {name}" for name in names) for node in nodes)
    each = ", ".join(f"{amount:g} {name}" for name, amount in worker.items())
    raise EaglerayError(
        f"the cluster can never hold {wanted} workers of {each} beside the stage's own task: {placed} fit on "
        f"its machines ({has})",
        f"set {where}.parallel to at most {placed} workers, or {where}.parallel.cpus_per_worker lower"
        if placed
        else f"set {where}.parallel.cpus_per_worker lower, or use larger machines",
        where,
    )


def _fitting(node: Resources, worker: Resources) -> int:
    """How many workers fit on a machine."""
    return max(0, min(int((node.get(name, 0) + 1e-9) // amount) for name, amount in worker.items()))
