from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from eagleray.actors.training.slicing import cut_layers

COSTS = st.lists(st.floats(0, 100), min_size=1, max_size=24)


@given(COSTS, st.data())
def test_slices_are_contiguous_whole_and_never_empty(costs, data):
    num_slices = data.draw(st.integers(1, len(costs)))
    slices = cut_layers(costs, num_slices)
    assert len(slices) == num_slices
    assert [i for part in slices for i in part] == list(range(len(costs)))
    assert all(len(part) > 0 for part in slices)


@given(COSTS, st.data())
def test_no_single_move_of_a_cut_makes_the_costliest_slice_cheaper(costs, data):
    num_slices = data.draw(st.integers(1, len(costs)))
    slices = cut_layers(costs, num_slices)
    worst = max(sum(costs[i] for i in part) for part in slices)
    for left, right in pairwise(slices):
        for cut in range(left.start + 1, right.stop):
            moved = [range(left.start, cut), range(cut, right.stop)]
            others = [part for part in slices if part not in (left, right)]
            assert max(sum(costs[i] for i in part) for part in [*moved, *others]) >= worst - 1e-9


def test_a_costly_layer_stands_alone():
    assert cut_layers([1, 1, 10, 1, 1], 3) == [range(0, 2), range(2, 3), range(3, 5)]
