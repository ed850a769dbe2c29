"""Gaussian filters are SciPy's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from eagleray.pipelines.media.filtering import gaussian, laplacian

MODES = {"edge": "nearest", "symmetric": "reflect", "wrap": "wrap"}


def picture(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).random(shape, np.float32) * 255


@pytest.mark.parametrize("shape", [(70, 33), (1, 9), (5, 200), (32, 64)])
@pytest.mark.parametrize("sigma", [0.7, 1.5, 3.0])
@pytest.mark.parametrize("orders", [(0, 0), (1, 0), (0, 1), (2, 0), (0, 2)])
@pytest.mark.parametrize("beyond", MODES)
def test_filters_are_those_of_scipy(shape, sigma, orders, beyond):
    values = picture(*shape)
    expected = ndimage.gaussian_filter(values, sigma, orders, mode=MODES[beyond])
    found = gaussian(values, sigma, orders, beyond)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_a_row_alone_is_filtered_too():
    values = picture(90)
    expected = ndimage.gaussian_filter1d(values, 4.0, mode="wrap")
    np.testing.assert_allclose(gaussian(values, 4.0, (0,), "wrap"), expected, atol=2e-4)


@pytest.mark.parametrize("sigma", [1.5, 3.0])
def test_the_laplacian_is_that_of_scipy(sigma):
    values = picture(90, 70)
    expected = ndimage.gaussian_laplace(values, sigma, mode="nearest")
    np.testing.assert_allclose(laplacian(values, sigma), expected, atol=2e-4)
