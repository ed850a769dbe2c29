"""Laying a reference over a picture of the same thing, and telling whether it is the same thing at all.

Only a shift is looked for: cameras over a line don't turn, and a board that lies askew is refused before.
"""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import NDArray

from .quality import grey

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]

LONGEST_PX = 256
"""Side of what a shift is first looked for in; blocks of pixels are one there."""
MOST_SHIFT_SHARE = 0.1
"""Of the shorter side, by which a reference may lie off."""
STRIDE = 3
"""Rows and columns of which the finer search looks at one."""


def align(reference: Pixels, pixels: Pixels) -> tuple[Pixels, float]:
    """Shift a reference so that it lies over a picture, both (H, W, 3).

    The shift is the peak of the phase correlation (Kuglin & Hines 1975) of edges' strengths in blocks of
    pixels, then, to the pixel, the one at which greys go together best around it. What comes in is the
    reference's edge, repeated.

    Returns:
        The reference, shifted, and how well edges agree: a correlation, 1 where they are the same.
    """
    ours, theirs = _edges(pixels), _edges(reference)
    block = -(-max(ours.shape) // LONGEST_PX)
    coarse, wanted = _blocks(ours, block), _blocks(theirs, block)
    reach = int(MOST_SHIFT_SHARE * min(coarse.shape))
    rows, columns = (block * one for one in _peak(coarse, wanted, reach))
    nearby = range(-block, block + 1)
    shifts = [(rows + down, columns + right) for down, right in product(nearby, nearby)]
    best = max(shifts, key=lambda shift: _agreement(ours, theirs, shift, STRIDE))
    return moved(reference, *best), _agreement(ours, theirs, best, 1)


def moved(pixels: Pixels, rows: int, columns: int) -> Pixels:
    """A picture (H, W, 3) shifted by whole pixels; what comes in is its edge, repeated."""
    height, width = pixels.shape[:2]
    down = np.clip(np.arange(height) - rows, 0, height - 1)
    right = np.clip(np.arange(width) - columns, 0, width - 1)
    return pixels[down[:, None], right]


def _edges(pixels: Pixels) -> Floats:
    """How strong edges are (H, W): light falls off slowly, and so doesn't count."""
    values = grey(pixels)
    down, across = np.gradient(values)
    return np.hypot(down, across).astype(np.float32)


def _blocks(values: Floats, size: int) -> Floats:
    """Means of blocks; what is left over at the lower and right edge is left out."""
    height, width = (side // size for side in values.shape)
    return values[: height * size, : width * size].reshape(height, size, width, size).mean((1, 3))


def _peak(ours: Floats, theirs: Floats, reach: int) -> tuple[int, int]:
    """By how many rows and columns ours lies off theirs, each at most by `reach`."""
    taper = np.outer(*(np.hanning(side + 2)[1:-1] for side in ours.shape)).astype(np.float32)
    one, other = (np.asarray(np.fft.rfft2((values - values.mean()) * taper)) for values in (ours, theirs))
    cross = one * other.conj()
    found = np.fft.irfft2(cross / np.maximum(np.abs(cross), 1e-9), ours.shape)
    offsets = np.arange(-reach, reach + 1)
    near = found[np.ix_(offsets, offsets)]
    row, column = np.unravel_index(int(near.argmax()), near.shape)
    return int(offsets[row]), int(offsets[column])


def _agreement(ours: Floats, theirs: Floats, shift: tuple[int, int], stride: int) -> float:
    """Correlation of what both show once theirs is shifted."""
    (height, width), (rows, columns) = ours.shape, shift
    a = ours[max(0, rows) : height + min(0, rows), max(0, columns) : width + min(0, columns)]
    b = theirs[max(0, -rows) : height + min(0, -rows), max(0, -columns) : width + min(0, -columns)]
    a, b = a[::stride, ::stride], b[::stride, ::stride]
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / max(np.sqrt((a * a).sum() * (b * b).sum()), 1e-9))
