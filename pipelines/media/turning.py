"""Volumes turned and bent, with what is marked in them; in millimetres, whatever the voxels' shape.

The grid stays where it is and the content moves, so a volume needs no other spacing or orientation. Axes are
(depth, height, width).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates, zoom

from .lungs import Reals
from .volumes import Volume

Marks = NDArray[np.uint8]
SLAB = 16
"""Slices whose places are held at once: 12 bytes a voxel."""
STEPS = 20
"""Of the iteration that inverts a bend, of which each leaves at most half of the error."""
MAX_SLOPE = 0.5
"""Of displacements, in millimetres a millimetre: below 1 no place is met twice, and at half of it the
inversion is sure to converge."""


@dataclass(frozen=True)
class Turn:
    """Where the content of a volume comes from.

    Attributes:
        rotation: (3, 3) by which the content is turned about the volume's middle, in millimetres along
            depth, height and width.
        bends_mm: (3, d, h, w) displacements at a coarse grid over the whole volume, linear in between; of
            any size along an axis from 2 on. What is seen at a place comes from that far away, before it was
            turned.
    """

    rotation: Reals
    bends_mm: Reals


def draw_turn(volume: Volume, max_angle_rad: float, bend_mm: float, every_mm: float, lot: Any) -> Turn:  # noqa: ANN401 - a Generator
    """A turn by lot: an axis of any direction, an angle of -max to max, and a bend.

    Args:
        volume: that will be turned.
        max_angle_rad: the greatest angle.
        bend_mm: standard deviation of displacements at the coarse grid, along each axis; less where that
            would fold the volume.
        every_mm: between places of that grid, about.
        lot: a NumPy generator.
    """
    axis = lot.normal(size=3)
    rotation = rotation_about(axis, lot.uniform(-max_angle_rad, max_angle_rad))
    extent = (np.array(volume.voxels.shape) - 1) * volume.spacing_mm
    places = np.maximum(2, np.rint(extent / every_mm).astype(int) + 1)
    bends = lot.normal(size=(3, *places)) * bend_mm
    slope = _slope(bends, extent)
    return Turn(rotation, bends * min(1.0, MAX_SLOPE / slope) if slope else bends)


def rotation_about(axis: Reals, angle_rad: float) -> Reals:
    """The rotation (3, 3) about an axis (3,), by Rodrigues' formula."""
    x, y, z = np.asarray(axis, np.float64) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + math.sin(angle_rad) * cross + (1 - math.cos(angle_rad)) * cross @ cross


def turn_volume(volume: Volume, turn: Turn, outside: float) -> Volume:
    """The volume with its content moved, by linear interpolation.

    Args:
        volume: of any type of voxels, which the result has too.
        turn: of the content.
        outside: what a place gets whose content lies beyond the volume.
    """
    turned = np.empty(volume.voxels.shape, np.float32)
    values = volume.voxels.astype(np.float32)
    for slices, places in _places(volume, turn):
        turned[slices] = map_coordinates(values, places, order=1, mode="constant", cval=outside)
    kind = volume.voxels.dtype
    if kind.kind in "iu":  # between two values of the type, so in its range
        turned = np.rint(turned)
    return Volume(turned.astype(kind), volume.spacing_mm, volume.origin_mm, volume.direction)


def turn_marks(marks: Marks, volume: Volume, turn: Turn) -> Marks:
    """What is marked in a volume (D, H, W), moved as its content: the nearest voxels, 0 beyond the volume."""
    turned = np.empty_like(marks)
    for slices, places in _places(volume, turn):
        turned[slices] = map_coordinates(marks, places, order=0, mode="constant")
    return turned


def turn_points(points_mm: Reals, volume: Volume, turn: Turn) -> Reals:
    """Where points (N, 3) of patient space are found in a volume once its content has moved."""
    middle, extent = _middle(volume)
    told = (np.asarray(points_mm, np.float64) - volume.origin_mm) @ volume.direction.T - middle
    # told = rotation^T (found + bend(found)): inverted by a fixed point, as bends are contractions
    wanted = told @ turn.rotation.T
    found = wanted
    for _ in range(STEPS):
        found = wanted - _bend_at(turn.bends_mm, found + middle, extent)
    return volume.origin_mm + (found + middle) @ volume.direction


def _places(volume: Volume, turn: Turn) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Slices of the result, and where in the volume their voxels come from, (3, d, H, W) in voxels."""
    depth, height, width = volume.voxels.shape
    middle, _ = _middle(volume)
    spacing = volume.spacing_mm
    flat = _stretched(turn.bends_mm, (height, width)) if turn.bends_mm.any() else None
    for start in range(0, depth, SLAB):
        slices = slice(start, min(start + SLAB, depth))
        number = np.arange(slices.start, slices.stop)
        axes = np.meshgrid(number, np.arange(height), np.arange(width), indexing="ij", sparse=True)
        sides = [axis * step - half for axis, step, half in zip(axes, spacing, middle, strict=True)]
        if flat is not None:
            sides = [side + bend for side, bend in zip(sides, _between(flat, number, depth), strict=True)]
        places = np.empty((3, len(number), height, width), np.float32)
        for row, column in enumerate(turn.rotation.T):
            moved = sum(share * side for share, side in zip(column, sides, strict=True))
            places[row] = (moved + middle[row]) / spacing[row]
        yield slices, places


def _stretched(bends: Reals, plane: tuple[int, int]) -> NDArray[np.float32]:
    """Displacements (3, d, h, w) at each row and column (3, d, H, W), linear in between."""
    factors = (1, 1, *(size / few for size, few in zip(plane, bends.shape[2:], strict=True)))
    return np.asarray(zoom(bends.astype(np.float32), factors, order=1), np.float32)


def _between(flat: NDArray[np.float32], number: NDArray[np.int64], depth: int) -> NDArray[np.float32]:
    """Displacements (3, d, H, W) at slices."""
    at = number * ((flat.shape[1] - 1) / max(depth - 1, 1))
    below = np.minimum(at.astype(int), flat.shape[1] - 2)
    share = (at - below).astype(np.float32)[:, None, None]
    return flat[:, below] * (1 - share) + flat[:, below + 1] * share


def _bend_at(bends: Reals, places_mm: Reals, extent: Reals) -> Reals:
    """Displacements (N, 3) at places (N, 3) from the first voxel, linear between those of the coarse grid."""
    steps = (np.array(bends.shape[1:]) - 1) / np.maximum(extent, 1e-9)
    places = (places_mm * steps).T
    return np.stack([map_coordinates(one, places, order=1, mode="nearest") for one in bends], axis=1)


def _middle(volume: Volume) -> tuple[Reals, Reals]:
    """The volume's middle and its last voxel, in millimetres from its first one."""
    extent = (np.array(volume.voxels.shape) - 1) * volume.spacing_mm
    return extent / 2, extent


def _slope(bends: Reals, extent: Reals) -> float:
    """How much displacements change with place, at most: the Frobenius norm of greatest slopes."""
    total = 0.0
    for axis, size in enumerate(extent, 1):
        apart = max(size, 1e-9) / (bends.shape[axis] - 1)
        total += float((np.abs(np.diff(bends, axis=axis)).max(axis=(1, 2, 3)) ** 2).sum()) / apart**2
    return math.sqrt(total)
