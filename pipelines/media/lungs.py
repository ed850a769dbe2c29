"""Lungs in a CT: by threshold, connected components and morphology, as all classical methods do (Hu, Hoffman
& Reinhardt 2001); enough for lungs without large consolidations.

Axes are (depth, height, width) and values Hounsfield units.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Mask = NDArray[np.bool_]
Reals = NDArray[np.float64]
Values = NDArray[np.float32]

AIR_HU = -400.0
"""Below it a voxel is air or lung."""
GAS_HU = 35.0
"""What is no denser than the air around the patient by more than that is gas: trachea, stomach, bowel."""
LEAST_ML = 150.0
"""What is smaller is no lung."""
AIRWAY_ML = 1.0
"""What is smaller is no main airway."""
CLOSING_MM = 7.0
"""Gaps that are closed: vessels, and nodules at the pleura."""
GRID_MM = 1.0
"""Distances are taken on voxels of about that side, in plane."""


def segment_lungs(voxels: NDArray[Any], spacing_mm: Reals) -> Mask:
    """Lungs (D, H, W) with their vessels, without trachea and main bronchi; nothing where there are none.

    Args:
        voxels: (D, H, W) Hounsfield units.
        spacing_mm: (3,).
    """
    step = in_plane_step(spacing_mm)
    coarse, spacing = shrink(voxels, step), spacing_mm * [1, step, step]
    lungs = _lung_bodies(coarse, spacing)
    if not lungs.any():
        return np.zeros(voxels.shape, np.bool_)
    lungs = close(lungs, spacing, CLOSING_MM)
    return enlarge(lungs, step, voxels.shape)


def in_plane_step(spacing_mm: Reals) -> int:
    """Voxels of a row or column that become one, so that it is at least `GRID_MM` wide."""
    return max(1, math.ceil(GRID_MM / float(min(spacing_mm[1:])) - 1e-6))


def shrink(voxels: NDArray[Any], step: int) -> Values:
    """Means over `step` x `step` voxels of each slice; what is left over at the end is repeated."""
    if step == 1:
        return voxels.astype(np.float32)
    rest = [(0, 0), *((0, -size % step) for size in voxels.shape[1:])]
    padded = np.pad(voxels, rest, mode="edge")
    depth, height, width = padded.shape
    blocks = padded.reshape(depth, height // step, step, width // step, step)
    return blocks.mean(axis=(2, 4), dtype=np.float32)


def enlarge(mask: NDArray[Any], step: int, shape: tuple[int, ...]) -> NDArray[Any]:
    """Undo the change of size of `shrink`."""
    return mask.repeat(step, 1).repeat(step, 2)[:, : shape[1], : shape[2]]


def close(mask: Mask, spacing_mm: Reals, radius_mm: float) -> Mask:
    """Morphological closing by a ball.

    Nothing is known of what lies before the first slice and after the last, so a body that reaches them is
    taken to go on.
    """
    box = (slice(None), *ndimage.find_objects(mask.astype(np.uint8))[0][1:])
    around = [int(n) for n in np.ceil(radius_mm / spacing_mm) + 1]
    padded = np.pad(mask[box], [(0, 0), *((n, n) for n in around[1:])])
    padded = np.pad(padded, [(around[0],) * 2, (0, 0), (0, 0)], mode="edge")
    grown = distance_mm(~padded, spacing_mm) <= radius_mm
    shrunk = distance_mm(grown, spacing_mm) > radius_mm
    closed = mask.copy()
    closed[box] |= shrunk[tuple(slice(n, -n) for n in around)]
    return closed


def distance_mm(mask: Mask, spacing_mm: Reals) -> Reals:
    """Distance of each voxel of a mask to the nearest that is none; 0 outside."""
    return np.asarray(ndimage.distance_transform_edt(mask, spacing_mm), np.float64)


def mean_around(values: Values, side: int) -> Values:
    """Means of squares of `side` by `side` voxels in each slice."""
    return np.asarray(
        ndimage.uniform_filter1d(ndimage.uniform_filter1d(values, side, 1), side, 2), np.float32
    )


def _lung_bodies(coarse: Values, spacing: Reals) -> Mask:
    """Air that the body encloses, in large pieces that are not gas alone, without the main airways."""
    labels, sizes = _pieces(coarse < AIR_HU, spacing)
    borders = (labels[:, 0], labels[:, -1], labels[:, :, 0], labels[:, :, -1])
    outside = np.unique(np.concatenate([one.ravel() for one in borders]))
    around = coarse[np.isin(labels, outside[outside > 0])]
    gas = float(np.median(around)) + GAS_HU if around.size else GAS_HU - 1000
    large = [n for n in range(1, len(sizes)) if sizes[n] >= LEAST_ML and n not in outside]
    bodies = np.isin(labels, [n for n in large if np.median(coarse[labels == n]) > gas])
    hollow = bodies & (mean_around(coarse, 3) < gas)
    empty, sizes = _pieces(np.asarray(ndimage.binary_opening(hollow, np.ones((1, 3, 3))), np.bool_), spacing)
    airways = np.isin(empty, np.flatnonzero(sizes >= AIRWAY_ML))
    bodies &= ~np.asarray(ndimage.binary_dilation(airways, np.ones((1, 3, 3))), np.bool_)
    labels, sizes = _pieces(bodies, spacing)
    return np.isin(labels, np.flatnonzero(sizes >= LEAST_ML))


def _pieces(mask: Mask, spacing: Reals) -> tuple[NDArray[np.int32], Reals]:
    """Connected components, and the millilitres of each; what is none has 0."""
    labels: NDArray[np.int32] = ndimage.label(mask)[0]  # pyright: ignore[reportAssignmentType, reportIndexIssue]
    sizes = np.bincount(labels.ravel()) * float(np.prod(spacing)) / 1000
    sizes[0] = 0
    return labels, sizes
