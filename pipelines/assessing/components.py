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
    likely = probabilities.voxels >= threshold
    found = ndimage.label(likely, np.ones((3, 3, 3)))
    pieces: NDArray[np.int32] = found[0]  # pyright: ignore[reportAssignmentType, reportIndexIssue]
    # Of few voxels there is anything to be said, so it takes little time and memory from here on.
    voxels = np.argwhere(likely)
    of, values = pieces[likely], probabilities.voxels[likely].astype(np.float64)
    sizes = np.bincount(of, minlength=1)
    numbers = np.flatnonzero(sizes >= min_voxels)
    numbers = numbers[numbers > 0]
    if not numbers.size:
        return Candidates(np.zeros((0, 3)), np.zeros(0), np.zeros(0))
    sums = np.stack([np.bincount(of, values * axis) for axis in voxels.T], axis=1)
    centres = sums[numbers] / np.bincount(of, values)[numbers, None]
    greatest = np.zeros(len(sizes))
    np.maximum.at(greatest, of, values)
    scores = greatest[numbers]
    volumes = sizes[numbers] * float(np.prod(probabilities.spacing_mm))
    order = np.argsort(-scores, kind="stable")
    places = probabilities.origin_mm + (centres * probabilities.spacing_mm) @ probabilities.direction
    return Candidates(places[order], scores[order], np.cbrt(6 / math.pi * volumes)[order])
