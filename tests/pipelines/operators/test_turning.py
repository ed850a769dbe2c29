"""Turned records are the same at every reading, and what is known of a volume goes with it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from eagleray.pipelines.media.patches import marks_of
from eagleray.pipelines.media.volumes import Volume, of_row
from eagleray.pipelines.operators.turning import TurnVolumeSpec, turn_record
from eagleray.pipelines.spec import Preparation

SHAPE = (24, 60, 60)


def row(identity: str = "a", **columns: Any) -> dict[str, Any]:
    """A bright ball in air, marked."""
    spacing = np.array([2.0, 1.0, 1.0])
    z, y, x = np.ogrid[tuple(slice(n) for n in SHAPE)]
    ball = (2.0 * (z - 8)) ** 2 + (y - 20) ** 2 + (x - 36) ** 2 <= 49
    voxels = np.where(ball, 100, -1000).astype(np.int16)
    volume = Volume(voxels, spacing, np.array([5.0, 6.0, 7.0]), np.eye(3)[::-1])
    finding = {"label": "nodule", "x_mm": 41.0, "y_mm": 26.0, "z_mm": 23.0, "diameter_mm": 14.0}
    regions = {"labels": ["nodule"], "voxels": ball.astype(np.uint8).tobytes()}
    return {"id": identity, "volume": volume.row("CT"), "regions": regions, "findings": [finding], **columns}


def apply(given: dict[str, Any], **fields: Any) -> dict[str, Any] | None:
    found = turn_record(TurnVolumeSpec(**fields), Preparation())(given, lambda *_: None)
    assert not isinstance(found, list)
    return None if found is None else given | found


def test_a_record_is_turned_the_same_way_each_time_and_another_in_another():
    first, again = apply(row(), share=1), apply(row(), share=1)
    assert first == again != row()
    assert first is not None
    for other in (apply(row("b"), share=1), apply(row(), share=1, seed=1)):
        assert other is not None
        assert other["volume"]["voxels"] != first["volume"]["voxels"]


def test_findings_and_regions_lie_where_the_picture_shows_them():
    for identity in "abcdef":
        found = apply(row(identity), share=1)
        assert found is not None
        volume = of_row(found["volume"])
        marks = marks_of(found, volume, ["nodule"])
        balls = marks_of(found | {"regions": None}, volume, ["nodule"])
        bright = volume.voxels > -450
        assert marks is not None
        assert balls is not None
        for one in (marks > 0, balls > 0):
            assert 2 * (one & bright).sum() / (one.sum() + bright.sum()) > 0.85
        assert volume.voxels.min() == -1000


def test_as_many_as_asked_for_stay_as_they_are():
    turned = [apply(row(str(number)), share=0.5) is not None for number in range(40)]
    assert 10 < sum(turned) < 30
    assert apply(row(), share=0) is None
    assert apply(row(volume=None), share=1) is None


def test_a_finding_that_leaves_the_volume_is_dropped():
    given = row()
    sides = ((5, 64), (6, 65), (7, 53))  # of a turned box some corners stand out
    corners = [
        {"label": "nodule", "x_mm": x, "y_mm": y, "z_mm": z, "diameter_mm": 4.0}
        for x in sides[0]
        for y in sides[1]
        for z in sides[2]
    ]
    found = apply(given | {"findings": [*given["findings"], *corners]}, share=1, bend_mm=0, max_angle_deg=90)
    assert found is not None
    first, *left = found["findings"]
    assert first["diameter_mm"] == 14.0
    assert len(left) < 8
    assert all(of_row(found["volume"]).holds((one["x_mm"], one["y_mm"], one["z_mm"])) for one in left)


@pytest.mark.parametrize("fields", [{"max_angle_deg": -1}, {"share": 1.5}, {"bend_every_mm": 0}])
def test_what_means_nothing_is_refused(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        TurnVolumeSpec(**fields)
