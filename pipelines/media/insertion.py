"""Nodules put into the lungs of a CT, with the masks and findings of where they are.

Axes are (depth, height, width) and values Hounsfield units.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ..quarantine import Refused
from ..source import Row
from .lungs import Mask, Reals, Values, distance_mm, enlarge, in_plane_step, segment_lungs, shrink
from .nodules import Noise, Pose, Shape, blend, draw_shape, noise_of
from .volumes import Volume, Voxels, read_nifti, read_nrrd

LABELS = ("nodule", "lesion", "lung")
"""Of the regions; a voxel has the first that it is."""
MARGIN_MM = 10.0
"""What is kept of the CT around the lungs."""
VESSEL_HU = -300.0
VESSEL_MM = 2.0
"""A vessel whose radius is at least that, in its slice, is a large one."""
CLEAR_MM = 3.0
"""Between a nodule and a lesion that was there; a voxel at least."""
POSES, PLACES = 4, 40
"""How often a nodule is tried, turned in another way, and in how many places each time."""
PLEURAL_SHARE = (0.8, 0.98)
"""Of a nodule at the pleura that lies in the lung: what is over is cut off."""
GLASS_HU = (-700.0, -400.0)
CONTRAST_HU = 150.0
"""Ground glass is at least that much denser than the lung around it, or it would be a label and no nodule."""


@dataclass(frozen=True)
class Wanted:
    """A nodule that is to be inserted.

    Attributes:
        diameter_mm: of a sphere of its volume.
        level_hu: of it, apart from its core.
        core_hu: of its solid core.
        core_share: of its volume; 0 where it is all solid, or all ground glass.
        is_pleural: it touches the lung's surface, and lies wholly inside else.
    """

    diameter_mm: float
    level_hu: float
    core_hu: float
    core_share: float
    is_pleural: bool


@dataclass(frozen=True)
class Chest:
    """A CT cut to its lungs, and what is to be known of it to put something there.

    Attributes:
        volume: (D, H, W).
        lungs: (D, H, W), vessels included.
        inner: (D, H, W) lungs without their outermost voxels.
        lesion: (D, H, W) what was marked in it.
        filled: (D, H, W) large vessels, the lesion and what is near it.
        step: voxels of a row or column of `volume` that are one of the two below.
        depth_mm: distance to the lung's surface from within; negative outside.
        clear_mm: distance to what is filled.
        noise: of the CT.
    """

    volume: Volume
    lungs: Mask
    inner: Mask
    lesion: Mask
    filled: Mask
    step: int
    depth_mm: Reals
    clear_mm: Reals
    noise: Noise


@dataclass(frozen=True)
class Inserted:
    """A CT with nodules.

    Attributes:
        volume: (D, H, W).
        regions: (D, H, W) uint8, as `contracts.COLUMNS` has them, of `LABELS`.
        findings: of the nodules in the order they were wanted in, and of the lesion.
        left_out: numbers of the nodules without a place.
    """

    volume: Volume
    regions: NDArray[np.uint8]
    findings: list[Row]
    left_out: list[int]


@dataclass(frozen=True)
class Placed:
    """Where a nodule lies: its box, and its shares of the voxels there."""

    box: tuple[slice, ...]
    shares: tuple[Values, Values]


@lru_cache(maxsize=1)
def read_chest(image: bytes, lesion: bytes | None) -> Chest:
    """A CT with lungs, from NIfTI or NRRD. Remembered, since one CT has many variants.

    Args:
        image: the file.
        lesion: one of the same grid with a mask, if there is one.

    Raises:
        Refused: when it can't be read or has no lungs.
    """
    volume = _decode(image)
    marked = _decode(lesion).voxels > 0 if lesion is not None else np.zeros(volume.voxels.shape, np.bool_)
    if marked.shape != volume.voxels.shape:
        raise Refused("mixed-geometry", "the mask of the lesion has another size than the CT")
    lungs = segment_lungs(volume.voxels, volume.spacing_mm)
    if not lungs.any():
        raise Refused("no-lungs", "the CT has no lungs that are whole and full of air")
    noise = noise_of(volume.voxels)
    box = _box(lungs | marked, volume.spacing_mm)
    start = np.array([one.start for one in box])
    origin = volume.origin_mm + (start * volume.spacing_mm) @ volume.direction
    volume = dataclasses.replace(volume, voxels=volume.voxels[box], origin_mm=origin)
    lungs, marked = lungs[box] | marked[box], marked[box]
    step = in_plane_step(volume.spacing_mm)
    spacing = volume.spacing_mm * [1, step, step]
    whole = shrink(lungs, step) > 0.999
    filled = _large_vessels(shrink(volume.voxels, step), whole, spacing)
    if marked.any():
        filled |= distance_mm(shrink(marked, step) == 0, spacing) <= max(CLEAR_MM, float(spacing.max()))
    # The surface lies between two voxels.
    depth, clear = distance_mm(whole, spacing) - spacing[1] / 2, distance_mm(~filled, spacing)
    inner = np.asarray(ndimage.binary_erosion(lungs), np.bool_)
    filled = enlarge(filled, step, lungs.shape)
    return Chest(volume, lungs, inner, marked, filled, step, depth, clear, noise)


def insert(chest: Chest, wanted: Sequence[Wanted], shapes: Sequence[Shape], seed: int) -> Inserted:
    """Nodules in a CT.

    Args:
        chest: the CT.
        wanted: the nodules, of which the largest find their places first.
        shapes: one for each.
        seed: of all that is drawn by lot.
    """
    voxels = chest.volume.voxels.copy()
    taken = np.zeros(voxels.shape, np.bool_)
    regions = np.zeros(voxels.shape, np.uint8)
    regions[chest.lungs] = 1 + LABELS.index("lung")
    regions[chest.lesion] = 1 + LABELS.index("lesion")
    findings: dict[int, Row] = {}
    for number in sorted(range(len(wanted)), key=lambda n: -wanted[n].diameter_mm):
        one = wanted[number]
        rng = np.random.default_rng(
            [seed, number]
        )  # so that no nodule depends on how often another was tried
        placed = place(chest, taken, one, shapes[number], rng)
        if placed is None:
            continue
        taken[placed.box] = True
        before = chest.volume.voxels[placed.box]
        levels = _levels(one, before, placed.shares[0])
        after = blend(before, placed.shares, levels, chest.volume.spacing_mm, chest.noise, rng)
        voxels[placed.box] = _as_kind(after, voxels.dtype)
        inside = fullest(placed.shares[0])
        regions[placed.box][inside] = 1 + LABELS.index("nodule")
        mask = np.zeros(voxels.shape, np.bool_)
        mask[placed.box] = inside
        findings[number] = finding("nodule", mask, chest.volume)
    rows = [findings[number] for number in sorted(findings)]
    if chest.lesion.any():
        rows.append(finding("lesion", chest.lesion, chest.volume))
    left_out = [number for number in range(len(wanted)) if number not in findings]
    return Inserted(dataclasses.replace(chest.volume, voxels=voxels), regions, rows, left_out)


def place(chest: Chest, taken: Mask, wanted: Wanted, shape: Shape, rng: np.random.Generator) -> Placed | None:
    """A place for a nodule; None where none was found.

    Args:
        chest: the CT.
        taken: (D, H, W) where others are.
        wanted: the nodule.
        shape: of it.
        rng: for its place and pose.
    """
    radius = wanted.diameter_mm / 2
    fits = chest.clear_mm >= 0.9 * radius
    if wanted.is_pleural:
        fits &= (chest.depth_mm >= 0.3 * radius) & (chest.depth_mm <= 0.9 * radius)
    else:
        fits &= chest.depth_mm >= radius
    places = np.flatnonzero(fits)
    for _ in range(POSES if places.size else 0):
        pose = Pose(
            wanted.diameter_mm,
            float(rng.uniform(0, 2 * math.pi)),
            rng.choice([-1.0, 1.0], 3),
            rng.uniform(-0.5, 0.5, 3),
            wanted.core_share,
        )
        shares = draw_shape(shape, pose, chest.volume.spacing_mm)
        half = [size // 2 for size in shares[0].shape]
        for chosen in rng.choice(places, PLACES):
            depth, *plane = (int(one) for one in np.unravel_index(int(chosen), chest.depth_mm.shape))
            middle = (depth, *(one * chest.step + int(rng.integers(chest.step)) for one in plane))
            box = tuple(slice(at - n, at + n + 1) for at, n in zip(middle, half, strict=True))
            inside = all(
                one.start >= 0 and one.stop <= size for one, size in zip(box, taken.shape, strict=True)
            )
            if inside and _is_free(chest, taken, box, shares[0], wanted.is_pleural):
                lung = chest.lungs[box]
                return Placed(box, (shares[0] * lung, shares[1] * lung))
    return None


def fullest(share: Values) -> Mask:
    """The voxels that have most of a nodule, as many as it has volume for; one at least.

    Half of a voxel is the usual bound, but of a small nodule between two thick slices no voxel has that much.
    """
    count = max(1, round(float(share.sum())))
    mask = np.zeros(share.size, np.bool_)
    mask[np.argsort(-share, axis=None, kind="stable")[:count]] = True
    return mask.reshape(share.shape)


def finding(label: str, mask: Mask, volume: Volume) -> Row:
    """A mask (D, H, W) as a finding: its centre, and the diameter of a sphere of its volume."""
    places = np.argwhere(mask)
    x, y, z = volume.origin_mm + (places.mean(axis=0) * volume.spacing_mm) @ volume.direction
    size = float(len(places) * np.prod(volume.spacing_mm))
    diameter = (6 * size / math.pi) ** (1 / 3)
    return {"label": label, "x_mm": float(x), "y_mm": float(y), "z_mm": float(z), "diameter_mm": diameter}


def _is_free(chest: Chest, taken: Mask, box: tuple[slice, ...], share: Values, is_pleural: bool) -> bool:
    """Whether a nodule may lie there."""
    touched = share > 0.05
    if taken[box].any() or (chest.filled[box] & touched).any():
        return False
    if not is_pleural:
        return bool(chest.inner[box][touched].all())
    kept = float((share * chest.lungs[box]).sum() / share.sum())
    return PLEURAL_SHARE[0] <= kept <= PLEURAL_SHARE[1]


def _levels(wanted: Wanted, before: Voxels, share: Values) -> tuple[float, float]:
    """Of the nodule and its core."""
    if wanted.level_hu > GLASS_HU[1]:
        return wanted.level_hu, wanted.core_hu
    around = float(np.median(before[share >= share.max() / 2]))
    return min(max(wanted.level_hu, around + CONTRAST_HU), GLASS_HU[1]), wanted.core_hu


def _large_vessels(coarse: NDArray[Any], lungs: Mask, spacing: Reals) -> Mask:
    """What is dense within the lungs and wide in its slice."""
    reach = math.ceil(VESSEL_MM / float(spacing[1]))
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1] * float(spacing[1])
    disc = (rows**2 + columns**2 <= VESSEL_MM**2)[None]
    return np.asarray(ndimage.binary_opening(lungs & (coarse > VESSEL_HU), disc), np.bool_)


def _box(mask: Mask, spacing: Reals) -> tuple[slice, ...]:
    """Slices around a mask, with a margin."""
    (found,) = ndimage.find_objects(mask.astype(np.uint8))
    return tuple(_widened(found, mask.shape, np.ceil(MARGIN_MM / spacing)))


def _widened(box: Sequence[slice], shape: Sequence[int], margins: Reals) -> Iterator[slice]:
    for one, size, margin in zip(box, shape, margins, strict=True):
        yield slice(max(0, one.start - int(margin)), min(size, one.stop + int(margin)))


def _as_kind(values: Values, kind: np.dtype[Any]) -> Voxels:
    """Rounded where the type has whole numbers, and cut to its range."""
    if kind.kind not in "iu":
        return values.astype(kind)
    limits = np.iinfo(kind)
    return np.clip(np.rint(values), limits.min, limits.max).astype(kind)


def _decode(content: bytes) -> Volume:
    if not content.startswith(b"NRRD"):
        return read_nifti(content)

    def beside(name: str) -> bytes:
        raise Refused("missing-file", f"the voxels are said to lie in {name}")

    return read_nrrd(content, beside)
