"""References between stages, as a graph without cycles."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter


def topological_order(reads: Mapping[str, Iterable[str]]) -> list[str]:
    """Stage names so that each comes after all it reads from; among equals, as they are given.

    Args:
        reads: stage → the stages that it reads from, each of them a key too.

    Raises:
        graphlib.CycleError: its second argument is the cycle, first name repeated at the end.
    """
    sorter = TopologicalSorter(reads)
    sorter.prepare()
    places = {name: place for place, name in enumerate(reads)}
    order: list[str] = []
    while sorter.is_active():
        ready = sorted(sorter.get_ready(), key=places.__getitem__)
        order += ready
        sorter.done(*ready)
    return order


def find_cycle(reads: Mapping[str, Iterable[str]]) -> list[str] | None:
    """A cycle, in which each stage reads from the next and the last is the first; None if there is none."""
    try:
        topological_order(reads)
    except CycleError as error:
        return list(reversed(error.args[1]))
    return None
