"""Gaussian mixtures fitted to more rows than memory holds: exact expectation maximisation, batch by batch.

Each pass sums the sufficient statistics of all rows and only then changes the parameters (Dempster, Laird
and Rubin 1977; Neal and Hinton 1998, section 2): what comes out is that of the whole data at once. Sums don't
hang on how rows are batched, nor on who adds up which, but for rounding in double precision. Stepwise EM
(Cappé and Moulines 2009) needs fewer passes, and its result hangs on both.

Shape letters: N rows, D features, K components.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2
from scipy.linalg import solve_triangular
from scipy.special import logsumexp

Numbers: TypeAlias = NDArray[np.float64]
Covariance: TypeAlias = Literal["full", "tied"]

SEEDED_STEPS = 10
"""Of k-means, from centres that are drawn far from each other (k-means++, Arthur and Vassilvitskii 2007)."""
LEAST_ROWS = 10 * np.finfo(np.float64).eps
"""Added to each component's rows, so that one without any has a mean."""


@dataclass(frozen=True)
class Mixture:
    """A density: sum over k of weights[k] * N(x; means[k], covariances[k]).

    Attributes:
        weights: (K,), their sum is 1.
        means: (K, D).
        covariances: (K, D, D).
    """

    weights: Numbers
    means: Numbers
    covariances: Numbers

    def log_densities(self, x: Numbers) -> Numbers:
        """log(weights[k] * N(x; k)) of rows (N, D): (N, K), nats."""
        dim = x.shape[1]
        found = np.empty((len(x), len(self.weights)))
        for k, (weight, mean, covariance) in enumerate(
            zip(self.weights, self.means, self.covariances, strict=True)
        ):
            factor = np.linalg.cholesky(covariance)
            whitening = solve_triangular(factor, np.eye(dim), lower=True)
            white = (x - mean) @ whitening.T
            log_volume = np.log(np.diag(factor)).sum()
            constant = dim * math.log(2 * math.pi) / 2 + log_volume - np.log(weight)
            found[:, k] = -constant - 0.5 * np.einsum("nd,nd->n", white, white)
        return found

    def log_likelihood(self, x: Numbers) -> Numbers:
        """Log-density (N,) of rows (N, D), nats."""
        return np.asarray(logsumexp(self.log_densities(x), axis=1))


@dataclass(frozen=True)
class Statistics:
    """All that the next mixture needs to know of rows, given the present one. They add up.

    Attributes:
        rows: how many rows there are.
        log_likelihood: their sum, nats.
        counts: (K,) rows of each component.
        shifts: (K, D) sums of what rows are away from the present means.
        products: (K, D, D) sums of products of the same.
    """

    rows: int
    log_likelihood: float
    counts: Numbers
    shifts: Numbers
    products: Numbers

    def __add__(self, other: Statistics) -> Statistics:
        return Statistics(
            self.rows + other.rows,
            self.log_likelihood + other.log_likelihood,
            self.counts + other.counts,
            self.shifts + other.shifts,
            self.products + other.products,
        )


@dataclass(frozen=True)
class Fit:
    """What a fit found.

    Attributes:
        mixture: after the last pass.
        log_likelihoods: mean over rows before each pass's change, nats; they never fall.
    """

    mixture: Mixture
    log_likelihoods: tuple[float, ...]


def fit(
    batches: Callable[[], Iterable[Numbers]],
    start: Mixture,
    passes: int,
    covariance: Covariance,
    regularisation: float,
    progress: Callable[[int, int], None] = lambda step, total: None,
) -> Fit:
    """Change a mixture until it fits; of rows, one batch is in memory at a time.

    The number of passes is given and not found out: a rule that stops when little changes may stop one pass
    earlier for the same rows in other batches.

    Args:
        batches: all rows, (N, D) each, as often as it is called.
        start: see `seeded`.
        passes: over all rows.
        covariance: `full` gives each component its own, `tied` all the same.
        regularisation: added to each variance.
        progress: told passes done and all.
    """
    mixture, found = start, list[float]()
    for number in range(passes):
        statistics = reduce(add, (expect(mixture, x) for x in batches()))
        found.append(statistics.log_likelihood / statistics.rows)
        mixture = maximise(mixture, statistics, covariance, regularisation)
        progress(number + 1, passes)
    return Fit(mixture, tuple(found))


def expect(mixture: Mixture, x: Numbers) -> Statistics:
    """The E-step: which component rows (N, D) are of, summed.

    Differences are taken from the present means, since sums of squares of large values would cancel out.
    """
    joint = mixture.log_densities(x)
    total = np.asarray(logsumexp(joint, axis=1))
    shares = np.exp(joint - total[:, None])
    num_components, dim = mixture.means.shape
    products = np.empty((num_components, dim, dim))
    shifts = np.empty((num_components, dim))
    for k, mean in enumerate(mixture.means):
        away = x - mean
        weighted = away * shares[:, k, None]
        shifts[k] = weighted.sum(axis=0)
        products[k] = weighted.T @ away
    return Statistics(len(x), float(total.sum()), shares.sum(axis=0), shifts, products)


def maximise(
    mixture: Mixture, statistics: Statistics, covariance: Covariance, regularisation: float
) -> Mixture:
    """The M-step: the mixture that rows of these statistics fit best.

    Args:
        mixture: that the statistics were taken with.
        statistics: of all rows.
        covariance: see `fit`.
        regularisation: added to each variance.
    """
    counts = statistics.counts + LEAST_ROWS
    moved = statistics.shifts / counts[:, None]
    outer = moved[:, :, None] * moved[:, None, :]
    products = statistics.products - statistics.counts[:, None, None] * outer  # about the new means
    if covariance == "tied":
        products = np.broadcast_to(products.sum(axis=0) / counts.sum(), products.shape)
    else:
        products = products / counts[:, None, None]
    products = (products + products.transpose(0, 2, 1)) / 2
    covariances = products + regularisation * np.eye(products.shape[-1])
    return Mixture(counts / counts.sum(), mixture.means + moved, covariances)


def seeded(
    sample: Numbers, num_components: int, seed: int, covariance: Covariance, regularisation: float
) -> Mixture:
    """A mixture to start from: k-means on a sample (N, D).

    Raises:
        ValueError: when the sample has fewer rows than there are components.
    """
    if len(sample) < num_components:
        raise ValueError(f"{len(sample)} rows are fewer than {num_components} components")
    _, labels = kmeans2(
        sample, num_components, SEEDED_STEPS, minit="++", rng=np.random.default_rng(seed), missing="warn"
    )
    shares = np.eye(num_components)[labels]
    centre = np.broadcast_to(sample.mean(axis=0), (num_components, sample.shape[1]))
    away = sample - centre[0]
    statistics = Statistics(
        rows=len(sample),
        log_likelihood=0.0,
        counts=shares.sum(axis=0),
        shifts=shares.T @ away,
        products=np.stack([(away * share[:, None]).T @ away for share in shares.T]),
    )
    flat = np.full(num_components, 1 / num_components)
    ball = np.broadcast_to(np.eye(sample.shape[1]), statistics.products.shape)
    return maximise(Mixture(flat, centre, ball), statistics, covariance, regularisation)
