"""Thresholds from normal scores alone, on distributions whose quantiles are known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import genpareto, gumbel_r

from eagleray.actors.training.threshold import PEAK_SHARE, TooFewError, pareto, quantile, threshold


def test_a_quantile_is_the_rank_that_one_more_exceeds_seldom_enough():
    scores = np.random.default_rng(0).permutation(np.arange(1.0, 100.0))  # 99 of them
    assert quantile(scores, 0.01) == 99
    assert quantile(scores, 0.05) == 95
    assert quantile(scores, 0.5) == 50


@given(rate=st.floats(0.02, 0.5), count=st.integers(60, 300))
def test_a_quantile_keeps_its_promise_for_the_next_picture(rate, count):
    scores = np.arange(float(count))
    above = (np.arange(-1, count) + 0.5 > quantile(scores, rate)).mean()  # each rank is as likely
    assert above <= rate + 1e-9


def test_a_rate_that_the_pictures_can_not_tell_says_how_many_it_takes():
    with pytest.raises(TooFewError) as found:
        threshold(np.zeros(98), 0.01, "quantile")
    assert found.value.needed == 99
    assert threshold(np.zeros(99), 0.01, "quantile") == 0
    with pytest.raises(TooFewError) as found:
        threshold(np.zeros(49), 0.01, "pareto")
    assert found.value.needed == 50


@pytest.mark.parametrize("rate", [0.05, 0.01, 0.001])
@pytest.mark.parametrize(
    "law",
    [genpareto(0.1, scale=2.0), genpareto(-0.2, scale=1.0), gumbel_r(5, 2)],
    ids=["heavy", "short", "gumbel"],
)
def test_a_tail_tells_quantiles_that_few_pictures_reach(law, rate):
    found = [pareto(law.rvs(20_000, random_state=seed), rate) for seed in range(5)]
    spread = law.isf(0.001) - law.isf(PEAK_SHARE)
    assert np.median(found) == pytest.approx(law.isf(rate), abs=0.08 * spread)


def test_where_the_tail_does_not_begin_yet_it_is_the_quantile():
    scores = np.random.default_rng(0).normal(size=500)
    assert pareto(scores, 0.3) == quantile(scores, 0.3)


def test_scores_that_are_all_the_same_have_no_tail():
    assert pareto(np.full(80, 3.0), 0.01) == 3.0
