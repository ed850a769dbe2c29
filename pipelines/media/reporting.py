"""A radiologist's sentences about nodules whose every voxel is known: made, and named so wherever they stand.

Axes are (depth, height, width); patient space is LPS.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from .lungs import Mask, Reals
from .volumes import Volume

NONE = "No nodule is seen."
ZONES = ("lower", "middle", "upper")
"""Thirds of the lungs' height, from the feet on."""


@dataclass(frozen=True)
class Reported:
    """What a report says of a nodule.

    Attributes:
        centre_mm: (3,) x, y, z.
        diameter_mm: of a ball of its volume.
        kind: solid, part-solid or ground-glass.
        is_pleural: it lies at the lung's surface.
    """

    centre_mm: Reals
    diameter_mm: float
    kind: str
    is_pleural: bool


def report(nodules: Sequence[Reported], lungs: Mask, volume: Volume) -> str:
    """A sentence for each nodule, the largest first.

    Args:
        nodules: that are told; there may be none.
        lungs: (D, H, W) by which sides and zones are told.
        volume: that they lie in.
    """
    if not nodules:
        return NONE
    ends = [np.flatnonzero(lungs.any(axis=rest))[[0, -1]] for rest in ((1, 2), (0, 2), (0, 1))]
    corners = volume.origin_mm + (np.array(list(product(*ends))) * volume.spacing_mm) @ volume.direction
    low, high = corners.min(axis=0), corners.max(axis=0)
    told: list[str] = []
    for one in sorted(nodules, key=lambda one: -one.diameter_mm):
        side = "left" if one.centre_mm[0] > (low[0] + high[0]) / 2 else "right"
        third = (one.centre_mm[2] - low[2]) / (high[2] - low[2]) * len(ZONES)
        zone = ZONES[min(max(int(third), 0), len(ZONES) - 1)]
        where = f"{side} {zone} zone" + (", at the pleura" if one.is_pleural else "")
        kind = one.kind.capitalize()
        told.append(f"{kind} nodule of about {one.diameter_mm:.0f} mm in the {where}.")
    return " ".join(told)
