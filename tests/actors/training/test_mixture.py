"""Mixtures fitted batch by batch, held to scikit-learn's on all rows at once."""

from functools import reduce
from operator import add

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.mixture import GaussianMixture

from eagleray.actors.training.mixture import Mixture, expect, fit, maximise, seeded

COMPONENTS, DIM, REGULARISATION = 4, 5, 1e-4


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    """Three overlapping clouds, far from the origin."""
    rng = np.random.default_rng(0)
    clouds = [
        rng.normal(size=(700, DIM)) @ rng.normal(size=(DIM, DIM)) + rng.normal(100, 3, DIM) for _ in range(3)
    ]
    return rng.permutation(np.concatenate(clouds))


def cut(rows, size):
    return lambda: (rows[start : start + size] for start in range(0, len(rows), size))


def start_of(rows, covariance) -> Mixture:
    return seeded(rows[:500], COMPONENTS, 0, covariance, REGULARISATION)


@pytest.mark.parametrize("covariance", ["full", "tied"])
def test_it_is_scikit_learns_mixture_from_the_same_start(rows, covariance):
    start = start_of(rows, covariance)
    ours = fit(cut(rows, 64), start, 25, covariance, REGULARISATION).mixture
    precisions = np.linalg.inv(start.covariances)
    theirs = GaussianMixture(
        COMPONENTS,
        covariance_type=covariance,
        tol=0,
        reg_covar=REGULARISATION,
        max_iter=25,
        weights_init=start.weights,
        means_init=start.means,
        precisions_init=precisions if covariance == "full" else precisions[0],
    )
    with pytest.warns(UserWarning, match="did not converge"):
        theirs.fit(rows)
    covariances = np.broadcast_to(theirs.covariances_, ours.covariances.shape)
    np.testing.assert_allclose(ours.weights, theirs.weights_, atol=1e-7)
    np.testing.assert_allclose(ours.means, theirs.means_, rtol=1e-7)
    np.testing.assert_allclose(ours.covariances, covariances, atol=1e-5)
    assert ours.log_likelihood(rows).mean() == pytest.approx(theirs.score(rows), abs=1e-8)


def test_likelihood_never_falls_and_rises(rows):
    found = fit(cut(rows, 100), start_of(rows, "full"), 15, "full", 1e-9).log_likelihoods
    assert (np.diff(found) > -1e-9).all()
    assert found[-1] > found[0] + 0.01


@settings(max_examples=8, deadline=None)
@given(size=st.integers(30, 2100), seed=st.integers(0, 99))
def test_batches_and_their_order_change_nothing(rows, size, seed):
    start = start_of(rows, "full")
    whole = fit(lambda: [rows], start, 5, "full", REGULARISATION).mixture
    shuffled = np.random.default_rng(seed).permutation(rows)
    found = fit(cut(shuffled, size), start, 5, "full", REGULARISATION).mixture
    for ours, theirs in zip(
        (found.weights, found.means, found.covariances),
        (whole.weights, whole.means, whole.covariances),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-9)


def test_it_does_not_matter_who_adds_up_what(rows):
    mixture = start_of(rows, "full")
    parts = [expect(mixture, x) for x in np.array_split(rows, 7)]
    tree = reduce(add, [reduce(add, parts[4:]), reduce(add, parts[:4])])
    ours, theirs = (maximise(mixture, one, "full", 0.0) for one in (tree, expect(mixture, rows)))
    np.testing.assert_allclose(ours.covariances, theirs.covariances, rtol=1e-9, atol=1e-9)
    assert tree.rows == len(rows)


def test_a_component_that_no_row_is_of_harms_none(rows):
    start = start_of(rows, "full")
    means = start.means.copy()
    means[0] = 1e6
    found = fit(cut(rows, 300), Mixture(start.weights, means, start.covariances), 3, "full", 1e-3).mixture
    assert np.isfinite(found.log_likelihood(rows)).all()
    assert found.weights[0] < 1e-12


def test_more_components_than_rows_are_refused():
    with pytest.raises(ValueError, match="fewer than 4"):
        seeded(np.zeros((3, 2)), 4, 0, "full", 1e-3)
