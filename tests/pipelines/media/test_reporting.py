"""Reports say where a nodule lies as a radiologist would: in the patient, not on the screen."""

from __future__ import annotations

import numpy as np
import pytest

from eagleray.pipelines.media.reporting import NONE, Reported, report
from eagleray.pipelines.media.volumes import Volume

SHAPE = (30, 40, 50)
LUNGS = np.zeros(SHAPE, np.bool_)
LUNGS[3:27, 5:35, 5:45] = True


def volume(direction: np.ndarray) -> Volume:
    return Volume(np.zeros(SHAPE, np.int16), np.array([2.0, 1.0, 1.0]), np.array([10.0, 20, 30]), direction)


def nodule(place: tuple[float, float, float], one: Volume, **fields) -> Reported:
    centre = one.origin_mm + (np.array(place) * one.spacing_mm) @ one.direction
    return Reported(
        **{"centre_mm": centre, "diameter_mm": 8.4, "kind": "solid", "is_pleural": False} | fields
    )


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ((24, 20, 10), "right upper zone"),
        ((15, 20, 40), "left middle zone"),
        ((5, 20, 12), "right lower zone"),
    ],
)
def test_sides_are_the_patients_and_zones_thirds_of_the_lungs(place, said):
    upright = volume(np.eye(3)[::-1])  # slices to the head, columns to the patient's left
    assert report([nodule(place, upright)], LUNGS, upright) == f"Solid nodule of about 8 mm in the {said}."


def test_the_order_of_slices_and_columns_makes_no_difference():
    mirrored = volume(-np.eye(3)[::-1])
    found = report([nodule((24, 20, 10), mirrored, is_pleural=True)], LUNGS, mirrored)
    assert found == "Solid nodule of about 8 mm in the left lower zone, at the pleura."


def test_each_nodule_has_a_sentence_the_largest_first_and_none_is_said():
    upright = volume(np.eye(3)[::-1])
    small, large = (
        nodule((15, 20, 10), upright, diameter_mm=size, kind=kind)
        for size, kind in ((5, "solid"), (21, "ground-glass"))
    )
    found = report([small, large], LUNGS, upright)
    assert found.startswith("Ground-glass nodule of about 21 mm in the right")
    assert found.count(".") == 2
    assert report([], LUNGS, upright) == NONE
