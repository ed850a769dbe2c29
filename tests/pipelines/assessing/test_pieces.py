"""Pieces are what SciPy labels, and what is said of them is what their pixels say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage
from scipy.spatial.distance import pdist

from eagleray.pipelines.assessing.pieces import Piece, pieces

masks = arrays.arrays(np.bool_, st.tuples(st.integers(1, 24), st.integers(1, 24)))


def drawn(piece: Piece, shape: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    for row, start, end in zip(piece.rows, piece.starts, piece.ends, strict=True):
        mask[row, start:end] = True
    return mask


@settings(max_examples=300, deadline=None)
@given(masks)
def test_pieces_are_those_that_scipy_labels(mask):
    numbered, count = ndimage.label(mask, np.ones((3, 3)))
    found = list(pieces(mask))
    assert len(found) == count
    for number, (piece, box) in enumerate(zip(found, ndimage.find_objects(numbered), strict=True), 1):
        np.testing.assert_array_equal(drawn(piece, mask.shape), numbered == number)
        assert piece.area == (numbered == number).sum()
        left, top, right, bottom = piece.box
        assert (slice(top, bottom), slice(left, right)) == box


@settings(max_examples=150, deadline=None)
@given(masks)
def test_the_farthest_points_of_any_piece_are_found(mask):
    values = np.random.default_rng(0).random(mask.shape, np.float32)
    for piece in pieces(mask):
        own = drawn(piece, mask.shape)
        corners = np.argwhere(own)[:, None] + [[0, 0], [0, 1], [1, 0], [1, 1]]
        assert piece.extent == pytest.approx(pdist(corners.reshape(-1, 2)).max())
        assert piece.greatest(values) == values[own].max()


def test_a_spiral_is_one_piece():
    mask = np.zeros((41, 41), bool)
    for ring in range(0, 20, 2):
        mask[ring, ring : 41 - ring] = mask[40 - ring, ring : 41 - ring] = True
        mask[ring : 41 - ring, ring] = mask[ring : 41 - ring, 40 - ring] = True
        mask[ring + 1, ring] = False
        mask[ring + 2, ring + 1] = True
    assert len(list(pieces(mask))) == ndimage.label(mask, np.ones((3, 3)))[1]
    assert list(pieces(np.zeros((5, 5), bool))) == []
