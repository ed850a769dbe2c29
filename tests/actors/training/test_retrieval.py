import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eagleray.actors.training.retrieval import chance_at, hits_at


def test_any_picture_with_the_right_caption_counts_as_right():
    scores = torch.tensor([[0.1, 0.9, 0.5]])
    assert hits_at(scores, torch.tensor([[True, True, False]]), 1) == [1.0]
    assert hits_at(scores, torch.tensor([[True, False, False]]), 1) == [0.0]
    assert hits_at(scores, torch.tensor([[True, False, False]]), 3) == [1.0]


@given(st.integers(2, 30), st.integers(1, 5), st.integers(1, 10))
def test_chance_is_the_hit_rate_of_random_orders(items, right, rank):
    right = min(right, items)
    rng = np.random.default_rng(0)
    firsts = np.array([rng.permutation(items)[: min(rank, items)] for _ in range(4000)])
    assert np.mean((firsts < right).any(axis=1)) == pytest.approx(chance_at(items, right, rank), abs=0.05)
