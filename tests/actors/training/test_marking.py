"""What is found of what is marked, on pictures made by hand."""

import numpy as np

from eagleray.actors.training.marking import FLOOR, judge


def picture(*pixels) -> np.ndarray:
    """A picture of 8 x 8 with values at (row, column)."""
    found = np.zeros((8, 8))
    for row, column, value in pixels:
        found[row, column] = value
    return found


def test_a_finding_is_found_by_anything_that_touches_it_and_all_else_is_a_false_alarm():
    marks = picture((1, 1, 1), (1, 2, 1), (5, 5, 2)).astype(np.int64)
    likely = np.stack([picture((1, 2, 0.6), (1, 3, 0.9)), picture((7, 0, 0.4), (1, 1, 0.7))])
    found, kinds, false = judge(likely.astype(np.float32), marks)
    assert kinds == [0, 1]
    np.testing.assert_allclose(found, [0.7, 0.0], rtol=1e-6)
    np.testing.assert_allclose(false, [0.4], rtol=1e-6)


def test_pieces_join_over_corners_and_what_is_unlikely_is_nothing():
    marks = picture((0, 0, 1), (1, 1, 1), (4, 4, 1)).astype(np.int64)
    likely = picture((2, 2, FLOOR / 2), (7, 7, 0.3), (6, 6, 0.2))[None].astype(np.float32)
    found, kinds, false = judge(likely, marks)
    assert (len(found), kinds) == (2, [0, 0])
    np.testing.assert_allclose(false, [0.3], rtol=1e-6)


def test_an_empty_picture_says_nothing():
    found, kinds, false = judge(np.zeros((2, 8, 8), np.float32), np.zeros((8, 8), np.int64))
    assert (len(found), kinds, len(false)) == (0, [], 0)
