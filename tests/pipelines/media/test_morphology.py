"""Shapes in pictures of two values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from eagleray.pipelines.media import morphology

layers = arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=20))


@given(layers)
def test_parts_are_apart_and_their_boxes_are_tight(layer):
    numbered, count = morphology.parts(layer)
    assert np.array_equal(numbered > 0, layer)
    for number, box in enumerate(morphology.boxes(numbered), 1):
        inside = numbered[box] == number
        assert inside.sum() == (numbered == number).sum()
        assert inside[0].any()
        assert inside[-1].any()
        assert inside[:, 0].any()
        assert inside[:, -1].any()
        around = morphology.dilated(numbered == number, 1)
        assert set(np.unique(numbered[around])) <= {0, number}
    assert len(morphology.boxes(numbered)) == count


def test_corners_hang_together_if_asked_for():
    diagonal = np.eye(3, dtype=np.bool_)
    assert morphology.parts(diagonal)[1] == 1
    assert morphology.parts(diagonal, corners=False)[1] == 3


@given(layers.filter(np.any))
def test_the_nearest_pixel_is_of_the_layer_and_as_far_as_said(layer):
    rows, columns = morphology.nearest(layer)
    assert layer[rows, columns].all()
    at = np.indices(layer.shape)
    away = np.hypot(rows - at[0], columns - at[1])
    assert morphology.depth(~layer) == pytest.approx(away, abs=1e-5)


@given(layers, st.integers(-25, 25), st.integers(-25, 25))
def test_a_shifted_layer_comes_back_but_for_what_left(layer, rows, columns):
    back = morphology.shifted(morphology.shifted(layer, rows, columns), -rows, -columns)
    at, to = np.indices(layer.shape), np.indices(layer.shape) + np.array([rows, columns])[:, None, None]
    stayed = ((to >= 0) & (to < np.array(layer.shape)[:, None, None])).all(axis=0)
    assert back[stayed].tolist() == layer[at[0][stayed], at[1][stayed]].tolist()
    assert not back[~stayed].any()


@given(st.integers(1, 12))
def test_the_ridge_of_a_band_is_its_middle(width):
    band = np.zeros((30, 60), np.bool_)
    band[9 : 9 + width] = True
    rows = np.flatnonzero(morphology.ridges(morphology.depth(band))[:, 30])
    middle = 9 + (width - 1) / 2
    assert rows.tolist() == sorted({int(np.floor(middle)), int(np.ceil(middle))})
