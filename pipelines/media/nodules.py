"""Nodules as a CT would show them: a shape of a real one, drawn on another CT's voxels.

Axes are (depth, height, width) and values Hounsfield units.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from .lungs import Mask, Reals, Values, distance_mm, mean_around

STEP_MM = 0.6
"""A voxel's share of a nodule is taken at points that far apart."""
FWHM_VOXELS = 1.2
LEAST_FWHM_MM = 0.8
"""Of the point-spread in plane: about that of a lung kernel; of voxels that were made coarser, their own."""
WINDOW = 11
"""Side of the squares that noise is measured in."""
GLASS_STRUCTURE = 0.5
"""Of the lung's structure that is seen through ground glass."""
TISSUE_HU = (-100.0, 250.0)


@dataclass(frozen=True)
class Shape:
    """A nodule's shape.

    Attributes:
        distance_mm: (D, H, W) to its surface, positive within; margins included.
        spacing_mm: (3,).
        centre: (3,) of its mass, in voxels.
        reach_mm: of its farthest voxel from there.
        diameter_mm: of a sphere of its volume.
    """

    distance_mm: Values
    spacing_mm: Reals
    centre: Reals
    reach_mm: float
    diameter_mm: float


@dataclass(frozen=True)
class Pose:
    """How a shape is drawn.

    Attributes:
        diameter_mm: of a sphere of its volume.
        angle: by which it is turned about the axis of depth, in radians.
        flips: (3,) 1 or -1 for each axis.
        offset: (3,) of its centre from that of a voxel, in voxels.
        core_share: of its volume, the innermost, that is solid; 0 for none.
    """

    diameter_mm: float
    angle: float
    flips: Reals
    offset: Reals
    core_share: float = 0.0


@dataclass(frozen=True)
class Noise:
    """A CT's noise.

    Attributes:
        deviation_hu: standard deviation.
        sigmas: (3,) of the Gaussian, in voxels, that makes white noise as smooth as it.
    """

    deviation_hu: float
    sigmas: Reals

    def draw(self, shape: tuple[int, ...], rng: np.random.Generator) -> Values:
        """Noise of that shape."""
        around = [int(np.ceil(3 * sigma)) for sigma in self.sigmas]
        white = rng.standard_normal([size + 2 * n for size, n in zip(shape, around, strict=True)])
        smooth = ndimage.gaussian_filter(white, self.sigmas)
        kept = smooth[tuple(slice(n, n + size) for size, n in zip(shape, around, strict=True))]
        return (kept * (self.deviation_hu / smooth.std())).astype(np.float32)


def shape_of(mask: Mask, spacing_mm: Reals) -> Shape:
    """The shape of a nodule.

    Args:
        mask: (D, H, W), with a margin of a voxel.
        spacing_mm: (3,).
    """
    margin = [int(n) for n in np.ceil(2.0 / spacing_mm)]
    wide = np.pad(mask, [(n, n) for n in margin])
    signed = distance_mm(wide, spacing_mm) - distance_mm(~wide, spacing_mm)
    # Hand-drawn outlines have corners of a pixel, which no nodule has.
    distance = ndimage.gaussian_filter(signed, (0, 0.7, 0.7), mode="nearest").astype(np.float32)
    places = np.argwhere(wide)
    centre = places.mean(axis=0)
    reach = np.linalg.norm((places - centre) * spacing_mm, axis=1).max() + spacing_mm.max() / 2
    volume = float(wide.sum() * np.prod(spacing_mm))
    return Shape(distance, spacing_mm, centre, float(reach), (6 * volume / np.pi) ** (1 / 3))


def draw_shape(shape: Shape, pose: Pose, spacing_mm: Reals) -> tuple[Values, Values]:
    """Shares (2n + 1 voxels an axis) of each voxel that are nodule and that are its solid core.

    The voxel in the middle is the one that the pose's offset is counted from. There is a margin of two voxels
    at least.
    """
    scale = pose.diameter_mm / shape.diameter_mm
    half = np.ceil(shape.reach_mm * scale / spacing_mm + np.abs(pose.offset)).astype(int) + 2
    parts = np.ceil(spacing_mm / STEP_MM).astype(int)
    sides: list[Reals] = []
    for n, count, offset, spacing in zip(half, parts, pose.offset, spacing_mm, strict=True):
        within = (np.arange(count) + 0.5) / count - 0.5
        sides.append(((np.arange(-n, n + 1)[:, None] + within).ravel() - offset) * spacing)
    depth, height, width = np.meshgrid(*sides, indexing="ij", sparse=True)
    cos, sin = np.cos(pose.angle), np.sin(pose.angle)
    turned = (depth, cos * height + sin * width, cos * width - sin * height)
    parameters = zip(turned, pose.flips, shape.spacing_mm, shape.centre, strict=True)
    places = [axis * (flip / (scale * spacing)) + middle for axis, flip, spacing, middle in parameters]
    points = np.stack(np.broadcast_arrays(*places))
    distance = ndimage.map_coordinates(shape.distance_mm, points, order=1, mode="nearest") * scale
    # The level at which it has the volume asked for: interpolation and smoothing move the surface a bit.
    step_volume = float(np.prod(spacing_mm / parts))
    wanted = np.pi / 6 * pose.diameter_mm**3 / step_volume / distance.size
    level = float(np.quantile(distance, 1 - min(wanted, 1.0)))
    share = _means(np.clip(0.5 + (distance - level) / STEP_MM, 0, 1), parts)
    if not pose.core_share:
        return share, np.zeros_like(share)
    core = float(np.quantile(distance, 1 - min(wanted * pose.core_share, 1.0)))
    return share, _means(np.clip(0.5 + (distance - core) / STEP_MM, 0, 1), parts)


def blend(
    values: NDArray[Any],
    shares: tuple[Values, Values],
    levels_hu: tuple[float, float],
    spacing_mm: Reals,
    noise: Noise,
    rng: np.random.Generator,
) -> Values:
    """A CT's voxels with a nodule in them.

    What is solid takes the place of what was there. Ground glass lets half of the lung's structure through
    and hides no vessel: the denser of the two is seen.

    Args:
        values: (d, h, w) of the CT.
        shares: (d, h, w) of nodule and of solid core.
        levels_hu: of the nodule, and of its core.
        spacing_mm: (3,).
        noise: of the CT, of which there is as much within the nodule as there was.
        rng: for the noise.
    """
    wide, dense = (spread(one, spacing_mm) for one in shares)
    ground, core = levels_hu
    before = values.astype(np.float32)
    mixed = before * (1 - wide) + ground * wide
    if ground < TISSUE_HU[0]:
        around = float(np.median(before[wide >= wide.max() / 2]))
        mixed = np.maximum(mixed + wide * GLASS_STRUCTURE * (before - around), before)
    mixed = mixed * (1 - dense) + core * dense
    lost = np.sqrt(1 - (1 - np.maximum(wide, dense)) ** 2)
    return np.asarray(mixed + lost * noise.draw(before.shape, rng), np.float32)


def spread(share: Values, spacing_mm: Reals) -> Values:
    """A share after the CT's point-spread, a Gaussian."""
    width = max(LEAST_FWHM_MM, FWHM_VOXELS * float(min(spacing_mm[1:])))
    sigmas = width / (2 * np.sqrt(2 * np.log(2))) / spacing_mm
    return np.asarray(ndimage.gaussian_filter(share, sigmas, mode="nearest"), np.float32)


def noise_of(voxels: NDArray[Any]) -> Noise:
    """A CT's noise, from even soft tissue: squares whose means are those of larger ones around them."""
    values = voxels[:: max(1, len(voxels) // 24)].astype(np.float32)
    mean = mean_around(values, WINDOW)
    deviation = np.sqrt(np.maximum(mean_around(values**2, WINDOW) - mean**2, 0))
    tissue = ((values > TISSUE_HU[0]) & (values < TISSUE_HU[1])).astype(np.float32)
    even = mean_around(tissue, 2 * WINDOW + 1) > 0.999
    if not even.any():
        return Noise(0.0, np.zeros(3))
    slope = np.abs(mean - mean_around(values, 2 * WINDOW + 1))
    even &= slope <= np.quantile(slope[even], 0.25)
    even &= deviation <= np.median(deviation[even]) * 1.2  # without thin vessels
    rest = (values - mean) * even
    sigmas = [0.0]
    for axis in (1, 2):
        ahead, behind = np.delete(rest, 0, axis), np.delete(rest, -1, axis)
        both = (ahead != 0) & (behind != 0)
        alike = float((ahead * behind)[both].mean() / max(float((rest[even] ** 2).mean()), 1e-9))
        # Of white noise after a Gaussian, neighbours correlate by exp(-1 / (4 sigma^2)).
        sigmas.append(1 / (2 * np.sqrt(-np.log(np.clip(alike, 1e-6, 0.9)))))
    return Noise(float(np.median(deviation[even])), np.array(sigmas))


def _means(points: NDArray[Any], parts: NDArray[np.int64]) -> Values:
    """Means over blocks."""
    shape = [n for size, count in zip(points.shape, parts, strict=True) for n in (size // count, count)]
    return points.reshape(shape).mean(axis=(1, 3, 5)).astype(np.float32)
