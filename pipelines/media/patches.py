"""Patches of a volume's slices, with the slices above and below as colours.

Axes are (depth, height, width). A place is the slice, row and column of a patch's first voxel; rows and
columns may lie outside.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from ..source import Row
from .volumes import Volume

Marks = NDArray[np.uint8]
Pixels = NDArray[np.uint8]
Place = tuple[int, int, int]

POOL = 4096
"""Voxels that are drawn for patches without a finding; the densest are what looks like one."""
HARD_SHARE = 0.05
TRIES = 20
"""Places that are tried for each patch without a finding."""


def marks_of(row: Row, volume: Volume, labels: Sequence[str]) -> Marks | None:
    """What is marked in a volume (D, H, W): n where it is `labels[n - 1]`; None where nothing is known of it.

    Of a record without regions, findings are balls of their diameter.
    """
    shape = volume.voxels.shape
    if row.get("regions"):
        numbers = np.zeros(256, np.uint8)
        for number, label in enumerate(row["regions"]["labels"], 1):
            numbers[number] = labels.index(label) + 1 if label in labels else 0
        return numbers[np.frombuffer(row["regions"]["voxels"], np.uint8).reshape(shape)]
    if row.get("findings") is None:
        return None
    marks = np.zeros(shape, np.uint8)
    for one in row["findings"]:
        if one["label"] in labels:
            point = np.array([one["x_mm"], one["y_mm"], one["z_mm"]]) - volume.origin_mm
            centre = volume.direction @ point / volume.spacing_mm
            radius = np.maximum(one["diameter_mm"] / 2 / volume.spacing_mm, 0.5)
            first = np.clip(np.ceil(centre - radius), 0, np.array(shape) - 1).astype(int)
            last = np.clip(np.floor(centre + radius), 0, np.array(shape) - 1).astype(int)
            box = tuple(slice(a, b + 1) for a, b in zip(first, last, strict=True))
            axes = np.ogrid[box]
            sides = zip(axes, centre, radius, strict=True)
            marks[box][sum(((axis - at) / reach) ** 2 for axis, at, reach in sides) <= 1] = (
                labels.index(one["label"]) + 1
            )
    return marks


def all_places(shape: Sequence[int], size: int, stride: int, slice_step: int) -> Iterator[Place]:
    """Places of patches that cover a volume."""
    rows, columns = ([*range(0, max(1, n - size), stride), max(0, n - size)] for n in shape[1:])
    for depth in range(0, shape[0], slice_step):
        for top in dict.fromkeys(rows):
            for left in dict.fromkeys(columns):
                yield depth, top, left


def finding_places(marks: Marks, size: int, count: int, rng: np.random.Generator) -> Iterator[Place]:
    """Places of patches around each connected piece of what is marked.

    Args:
        marks: (D, H, W), 0 where nothing is marked.
        size: of a patch, in voxels.
        count: patches of each piece.
        rng: for which of its voxels is how far from the patch's middle, a quarter of the side at most.
    """
    pieces: NDArray[np.int32] = ndimage.label(marks > 0, np.ones((3, 3, 3)))[0]  # pyright: ignore[reportAssignmentType, reportIndexIssue]
    for number, box in enumerate(ndimage.find_objects(pieces), 1):
        start = np.array([one.start for one in box])
        voxels = np.argwhere(pieces[box] == number) + start
        for voxel in voxels[rng.integers(len(voxels), size=count)]:
            shift = rng.integers(-(size // 4), size // 4 + 1, 2)
            yield _around(voxel, size, shift)


def background_places(
    values: NDArray[Any],
    within: NDArray[np.bool_] | None,
    avoided: NDArray[np.bool_],
    size: int,
    counts: tuple[int, int],
    rng: np.random.Generator,
) -> Iterator[Place]:
    """Places of patches without anything that is to be avoided in their slice.

    Args:
        values: (D, H, W) of the volume.
        within: (D, H, W) where the middles of patches lie; None for anywhere.
        avoided: (D, H, W).
        size: of a patch, in voxels.
        counts: patches in the middle of which is something dense, such as a vessel, and patches of anything.
        rng: for the places.
    """
    there = np.arange(values.size) if within is None else np.flatnonzero(within)
    if not there.size:
        return
    pool = there[rng.integers(len(there), size=POOL)]
    dense = values.reshape(-1)[pool]
    hard = pool[dense >= np.quantile(dense, 1 - HARD_SHARE)]
    for chosen, count in ((hard, counts[0]), (pool, counts[1])):
        for _ in range(count):
            for flat in rng.choice(chosen, TRIES):
                place = _around(np.array(np.unravel_index(int(flat), values.shape)), size, np.zeros(2, int))
                if not cut(avoided[place[0]], place, size).any():
                    yield place
                    break


def cut(values: NDArray[Any], place: Place, size: int) -> NDArray[Any]:
    """The patch of a slice (H, W); zeros where it reaches beyond."""
    patch = np.zeros((size, size), values.dtype)
    _, top, left = place
    rows = slice(max(0, top), max(0, min(values.shape[0], top + size)))
    columns = slice(max(0, left), max(0, min(values.shape[1], left + size)))
    inner = values[rows, columns]
    below, right = rows.start - top, columns.start - left
    patch[below : below + inner.shape[0], right : right + inner.shape[1]] = inner
    return patch


def slab(values: NDArray[Any], place: Place, size: int, gap: int, window: tuple[float, float]) -> Pixels:
    """A patch (size, size, 3): the slice `gap` before, its own, and the one `gap` after, the outermost ones
    being repeated.

    Args:
        values: (D, H, W) of the volume.
        place: of the patch.
        size: of the patch, in voxels.
        gap: slices between colours.
        window: what becomes 0 and 255, where the values aren't uint8 already. Beyond the volume all is 0.
    """
    low, high = window
    pixels = np.zeros((size, size, 3), np.uint8)
    for colour, move in enumerate((-gap, 0, gap)):
        depth = min(max(place[0] + move, 0), len(values) - 1)
        patch = values[depth]
        if values.dtype == np.uint8:
            pixels[..., colour] = cut(patch, place, size)
        else:
            shifted = cut(patch.astype(np.float32) - low, place, size)
            pixels[..., colour] = np.rint(np.clip(shifted / (high - low), 0, 1) * 255)
    return pixels


def fit(pixels: Pixels, side: int, is_mask: bool = False) -> Pixels:
    """Of another size; a mask's pixels keep their values."""
    if pixels.shape[0] == side:
        return pixels
    how = Image.Resampling.NEAREST if is_mask else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(pixels).resize((side, side), how))


def lot(name: str) -> np.random.Generator:
    """What is drawn by lot for a record, always the same."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:16]))


def named(mask: Pixels, labels: Sequence[str]) -> str | None:
    """The label that most of a mask's marked pixels have; None where none is marked."""
    counts: Mapping[int, int] = dict(enumerate(np.bincount(mask.ravel(), minlength=len(labels) + 1)[1:]))
    most = max(counts, key=lambda number: (counts[number], -number))
    return labels[most] if counts[most] else None


def _around(voxel: NDArray[Any], size: int, shift: NDArray[Any]) -> Place:
    """The place of a patch whose middle is a voxel, or `shift` from it."""
    depth, row, column = (int(one) for one in voxel)
    return depth, row + int(shift[0]) - size // 2, column + int(shift[1]) - size // 2
