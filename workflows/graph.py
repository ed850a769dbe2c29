"""References between stages, as a graph without cycles."""

from __future__ import annotations

from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter

from .spec import StageSpec


def topological_order(stages: Mapping[str, StageSpec]) -> list[str]:
    """Stage names so that each comes after all it reads from; among equals, as in the file.

    Raises:
        graphlib.CycleError: its second argument is the cycle, first name repeated at the end.
    """
    sorter = TopologicalSorter({name: set(spec.inputs.values()) for name, spec in stages.items()})
    sorter.prepare()
    places = {name: place for place, name in enumerate(stages)}
    order: list[str] = []
    while sorter.is_active():
        ready = sorted(sorter.get_ready(), key=places.__getitem__)
        order += ready
        sorter.done(*ready)
    return order


def find_cycle(stages: Mapping[str, StageSpec]) -> list[str] | None:
    """A cycle as stage names, the first repeated at the end; None if there is none."""
    try:
        topological_order(stages)
    except CycleError as error:
        return list(reversed(error.args[1]))
    return None


def downstream(stages: Mapping[str, StageSpec], name: str) -> set[str]:
    """All stages that read from `name`, directly or not."""
    found: set[str] = set()
    frontier = {name}
    while frontier:
        frontier = {s for s, spec in stages.items() if frontier & set(spec.inputs.values())} - found
        found |= frontier
    return found
