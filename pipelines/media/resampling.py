"""Volumes on another grid, and their values in a window; the same in preprocessing, evaluation and serving.

Axes are (depth, height, width).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform, gaussian_filter1d

from ..quarantine import Refused
from ..spec import MAX_VOXELS
from .volumes import Volume

Bytes = NDArray[np.uint8]
SAME = 1e-6
"""Spacings that differ by no more than that, as a share, are one."""


def resample(volume: Volume, spacing_mm: Sequence[float], max_voxels: int = MAX_VOXELS) -> Volume:
    """A volume with other distances between voxels; the first one stays where it is.

    Linear interpolation; where voxels get larger by a factor s, after a Gaussian of deviation (s - 1) / 2
    voxels, which keeps what is finer than the new grid from showing up as something coarser. The volume
    itself, if it has these distances already.

    Args:
        volume: of any type of voxels, which the result has too.
        spacing_mm: wanted distances along depth, height and width.
        max_voxels: the most that the result may have.

    Raises:
        Refused: when it has more.
    """
    steps = np.array(spacing_mm) / volume.spacing_mm
    if np.abs(steps - 1).max() < SAME:
        return volume
    # As many voxels as have their centres within the volume, or half an old voxel beyond it.
    sizes = np.array(volume.voxels.shape)
    shape = tuple(int(size) for size in np.maximum(1, np.floor((sizes - 0.5) / steps).astype(int) + 1))
    if math.prod(shape) > max_voxels:
        size = "x".join(str(one) for one in shape)
        raise Refused("volume-too-large", f"resampled, {size} voxels are over {max_voxels:,}")
    values = volume.voxels.astype(np.float32)
    for axis, step in enumerate(steps):
        if step > 1:
            values = gaussian_filter1d(values, (step - 1) / 2, axis, mode="nearest")
    moved = affine_transform(values, steps, output_shape=shape, order=1, mode="nearest")
    kind = volume.voxels.dtype
    if kind.kind in "iu":
        limits = np.iinfo(kind)
        moved = np.clip(np.rint(moved), limits.min, limits.max)
    return Volume(moved.astype(kind), np.array(spacing_mm), volume.origin_mm, volume.direction)


def resample_marks(marks: Bytes, spacing_mm: Sequence[float], changed: Volume) -> Bytes:
    """What is marked in a volume, on the grid of the one that `resample` made of it: the nearest voxels.

    Args:
        marks: (D, H, W).
        spacing_mm: of their voxels.
        changed: the resampled volume.
    """
    steps = changed.spacing_mm / np.array(spacing_mm)
    moved = affine_transform(marks, steps, output_shape=changed.voxels.shape, order=0, mode="nearest")
    return np.asarray(moved, np.uint8)


def share_of_window(values: NDArray[Any], low: float, high: float) -> NDArray[np.float32]:
    """Values as shares of a window, 0 below it and 1 above."""
    share = (values.astype(np.float32) - low) / (high - low)
    return np.clip(share, 0, 1).astype(np.float32)


def to_bytes(values: NDArray[Any], low: float, high: float) -> Bytes:
    """Values in a window, from 0 to 255."""
    return np.rint(share_of_window(values, low, high) * 255).astype(np.uint8)
