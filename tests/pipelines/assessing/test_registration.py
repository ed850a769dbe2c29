"""Laying a reference over a picture: the shift is found, and what shows something else is told."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import ndimage

from eagleray.pipelines.assessing.registration import MOST_SHIFT_SHARE, align, moved


def layout(seed: int, height: int = 180, width: int = 240) -> np.ndarray:
    """Traces and pads, drawn by lot."""
    random, picture = np.random.default_rng(seed), np.full((height, width, 3), 40, np.uint8)
    for _ in range(60):
        row, column = random.integers(height - 30), random.integers(width - 30)
        tall, wide = random.permutation([3, int(random.integers(8, 30))])
        picture[row : row + tall, column : column + wide] = random.integers(90, 250)
    return picture


def photographed(pixels: np.ndarray, seed: int) -> np.ndarray:
    """In light that falls off to a side, with grain."""
    random = np.random.default_rng(seed)
    light = np.linspace(0.7, 1.1, pixels.shape[1])[None, :, None]
    seen = ndimage.gaussian_filter(pixels * light, (0.6, 0.6, 0)) + random.normal(0, 3, pixels.shape)
    return np.clip(seen, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("size", [(180, 240), (600, 1100)])
@pytest.mark.parametrize("shift", [(0, 0), (3, -7), (-12, 5)])
def test_a_shift_is_found_to_the_pixel(shift, size):
    board = layout(1, *size)
    picture, inner = photographed(board, 3).astype(int), (slice(20, -20), slice(20, -20))
    laid, agreement = align(photographed(moved(board, *shift), 2), picture.astype(np.uint8))
    steps = product((-1, 0, 1), (-1, 0, 1))
    off = {step: np.abs(moved(laid, *step)[inner] - picture[inner]).mean() for step in steps}
    assert min(off, key=lambda step: off[step]) == (0, 0)
    assert agreement > 0.6


def test_a_shift_is_exact_where_nothing_else_differs():
    board = layout(4)
    laid, agreement = align(moved(board, 6, -9), board)
    assert np.array_equal(laid[15:-15, 15:-15], board[15:-15, 15:-15])
    assert agreement == pytest.approx(1, abs=1e-4)


def test_another_thing_does_not_agree_and_neither_does_what_lies_too_far_off():
    board = layout(1)
    assert align(photographed(layout(2), 1), photographed(board, 2))[1] < 0.3
    far = round(2 * MOST_SHIFT_SHARE * min(board.shape[:2]))
    assert align(np.roll(board, far, axis=0), board)[1] < 0.5


def test_a_picture_without_edges_agrees_with_nothing():
    blank = np.full((64, 64, 3), 90, np.uint8)
    assert align(blank, layout(1, 64, 64))[1] == pytest.approx(0, abs=1e-3)
    assert align(blank, blank)[1] == pytest.approx(0, abs=1e-3)
