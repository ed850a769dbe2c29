"""From a volume of probabilities to candidates: the connected pieces of what is likely."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ..media.volumes import Volume


@dataclass(frozen=True)
class Candidates:
    """What a detector marks in a scan, the likeliest first.

    Attributes:
        centres_mm: (N, 3) x, y, z in patient space (LPS), weighted by probability.
        scores: (N,) greatest probability.
        diameters_mm: (N,) of spheres of the same volume.
    """

    centres_mm: NDArray[np.float64]
    scores: NDArray[np.float64]
    diameters_mm: NDArray[np.float64]


def candidates(probabilities: Volume, threshold: float = 0.5, min_voxels: int = 1) -> Candidates:
    """The pieces of a volume whose voxels all are likely, joined over faces, edges and corners.

    Args:
        probabilities: its voxels (D, H, W) from 0 to 1.
        threshold: from which on a voxel belongs to a candidate.
        min_voxels: a smaller piece is none.
    """
    values = np.asarray(probabilities.voxels, np.float64)
    found = ndimage.label(values >= threshold, np.ones((3, 3, 3)))
    pieces: NDArray[np.int32] = found[0]  # pyright: ignore[reportAssignmentType, reportIndexIssue]
    sizes = np.bincount(pieces.ravel())
    numbers = np.flatnonzero(sizes >= min_voxels)
    numbers = numbers[numbers > 0]
    if not numbers.size:
        return Candidates(np.zeros((0, 3)), np.zeros(0), np.zeros(0))
    centres = np.array(ndimage.center_of_mass(values, pieces, numbers), np.float64).reshape(-1, 3)
    scores = np.asarray(ndimage.maximum(values, pieces, numbers), np.float64)
    volumes = sizes[numbers] * float(np.prod(probabilities.spacing_mm))
    order = np.argsort(-scores, kind="stable")
    places = probabilities.origin_mm + (centres * probabilities.spacing_mm) @ probabilities.direction
    return Candidates(places[order], scores[order], np.cbrt(6 / math.pi * volumes)[order])
