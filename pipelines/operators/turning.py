"""Turning and bending volumes: the same findings as they would lie in a patient who lies otherwise."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from ..operator import Apply, Operator, OperatorSpec
from ..quarantine import Refuse
from ..source import Row
from ..spec import Preparation


class TurnVolumeSpec(OperatorSpec):
    """Turn a volume about an axis of any direction and bend it, with what is marked in it; by lot, always the
    same for a record. Before volumes are cut into slices: within a slice, training turns by itself.
    """

    kind: Literal["turn-volume"] = "turn-volume"
    max_angle_deg: float = Field(default=15.0, ge=0, le=180)
    """Greatest angle, either way."""
    bend_mm: float = Field(default=2.0, ge=0)
    """Standard deviation of displacements along each axis; less where that would fold the volume. 0 bends
    nothing."""
    bend_every_mm: float = Field(default=50.0, gt=0)
    """Between places that are displaced each on its own; linear in between."""
    share: float = Field(default=0.5, ge=0, le=1)
    """Of the records that are turned; the others stay as they are, as volumes are when they are assessed."""
    seed: int = Field(default=0, ge=0)
    """Of all that is drawn by lot."""


def turn_record(spec: TurnVolumeSpec, preparation: Preparation) -> Apply:
    """`volume`, `regions` and `findings` turned; see `media.turning`. A finding that leaves the volume is
    dropped.
    """
    import numpy as np

    from ..media.patches import lot
    from ..media.turning import draw_turn, turn_marks, turn_points, turn_volume
    from ..media.volumes import of_row

    def apply(row: Row, refuse: Refuse) -> Row | None:
        if row["volume"] is None:
            return None
        rng = lot(f"turn {spec.seed} {row['id']}")
        if rng.random() >= spec.share:
            return None
        volume = of_row(row["volume"])
        turn = draw_turn(volume, math.radians(spec.max_angle_deg), spec.bend_mm, spec.bend_every_mm, rng)
        turned = turn_volume(volume, turn, float(volume.voxels.min()))
        given: Row = {"volume": turned.row(row["volume"]["address"])}
        if row.get("regions"):
            marked = np.frombuffer(row["regions"]["voxels"], np.uint8).reshape(volume.voxels.shape)
            moved = turn_marks(marked, volume, turn)
            given["regions"] = {"labels": row["regions"]["labels"], "voxels": moved.tobytes()}
        if row.get("findings"):
            places = np.array([(one["x_mm"], one["y_mm"], one["z_mm"]) for one in row["findings"]])
            found = turn_points(places, volume, turn).tolist()
            given["findings"] = [
                {**one, "x_mm": x, "y_mm": y, "z_mm": z}
                for one, (x, y, z) in zip(row["findings"], found, strict=True)
                if volume.holds((x, y, z))
            ]
        return given

    return apply


TURN = Operator(
    spec=TurnVolumeSpec,
    summary="turn volumes by up to 15 degrees about any axis and bend them, with what is marked",
    needs=lambda spec: ("volume",),
    gives=lambda spec: ("volume",),
    start=turn_record,
)
