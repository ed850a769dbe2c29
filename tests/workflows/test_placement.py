"""Workers are placed machine by machine, not on the sum of all."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eagleray.workflows.errors import EaglerayError
from eagleray.workflows.placement import check_placement, num_placed


@given(st.lists(st.integers(0, 5), min_size=1, max_size=4), st.integers(1, 4), st.integers(0, 3))
def test_no_other_placement_holds_more(cpus, each, task):
    nodes = [{"CPU": float(count)} for count in cpus]
    best = 0
    for place, counts in product(range(len(cpus)), product(range(6), repeat=len(cpus))):
        used = [count * each + (task if node == place else 0) for node, count in enumerate(counts)]
        if all(one <= has for one, has in zip(used, cpus, strict=True)):
            best = max(best, sum(counts))
    assert num_placed(nodes, {"CPU": each}, {"CPU": task}) == best


def test_every_resource_counts():
    nodes = [{"CPU": 8, "GPU": 1}, {"CPU": 1, "GPU": 4}, {"CPU": 8}]
    assert num_placed(nodes, {"CPU": 1, "GPU": 1}, {"CPU": 1}) == 2
    assert num_placed(nodes, {"CPU": 0.5, "GPU": 1}, {"CPU": 9}) == 0


def test_what_never_fits_is_refused_with_what_there_is():
    nodes = [{"CPU": 3.0}, {"CPU": 3.0}]
    check_placement(nodes, {"CPU": 2}, {"CPU": 1}, 2, "pretrain")
    with pytest.raises(
        EaglerayError, match=r"3 workers of 2 CPU .*: 2 fit on its machines \(3 CPU; 3 CPU\)"
    ) as caught:
        check_placement(nodes, {"CPU": 2}, {"CPU": 1}, 3, "pretrain")
    assert "at most 2 workers" in caught.value.remedy
    with pytest.raises(EaglerayError, match="0 fit") as caught:
        check_placement(nodes, {"CPU": 4}, {"CPU": 1}, 1, "pretrain")
    assert "larger machines" in caught.value.remedy
