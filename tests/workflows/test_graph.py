from __future__ import annotations

from graphlib import CycleError
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eagleray.workflows.graph import find_cycle, topological_order

NAMES = [f"s{i}" for i in range(8)]
GRAPHS = st.dictionaries(st.sampled_from(NAMES), st.sets(st.sampled_from(NAMES)), max_size=8).map(
    lambda reads: {name: [other for other in others if other in reads] for name, others in reads.items()}
)


@st.composite
def acyclic(draw: st.DrawFn) -> dict[str, list[str]]:
    """Each reads from some that come before it in a hidden order; the keys are in any order."""
    hidden = draw(st.permutations(NAMES))
    reads = {
        name: draw(st.lists(st.sampled_from(hidden[:place]), unique=True)) if place else []
        for place, name in enumerate(hidden)
    }
    return {name: reads[name] for name in draw(st.permutations(NAMES))}


@given(acyclic())
def test_each_stage_comes_once_and_after_all_it_reads_from(reads: dict[str, list[str]]) -> None:
    order = topological_order(reads)
    assert sorted(order) == sorted(reads)
    assert all(
        order.index(source) < order.index(name) for name, sources in reads.items() for source in sources
    )
    assert find_cycle(reads) is None


@given(st.permutations(NAMES))
def test_stages_that_read_nothing_keep_the_order_they_are_given_in(names: list[str]) -> None:
    assert topological_order({name: [] for name in names}) == names


@given(GRAPHS)
def test_there_is_an_order_or_else_a_cycle_in_which_each_reads_the_next(reads: dict[str, list[str]]) -> None:
    cycle = find_cycle(reads)
    if cycle is None:
        assert len(topological_order(reads)) == len(reads)
        return
    assert cycle[0] == cycle[-1]
    assert all(later in reads[name] for name, later in pairwise(cycle))
    with pytest.raises(CycleError):
        topological_order(reads)


def test_a_stage_that_reads_itself_is_a_cycle() -> None:
    assert find_cycle({"a": ["a"]}) == ["a", "a"]
