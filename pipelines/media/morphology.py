"""Shapes in pictures of two values, by scipy: what hangs together, how far things are, what grows."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Layer: TypeAlias = NDArray[np.bool_]
"""(height, width)."""
Window: TypeAlias = tuple[slice, slice]
"""A part of one: rows and columns."""

CORNERS = np.ones((3, 3), np.bool_)
"""Pixels that touch at a corner hang together."""
_scipy: Any = ndimage  # its stubs give unions of all that any option may return


def parts(layer: Layer, corners: bool = True) -> tuple[NDArray[np.int32], int]:
    """Number of the part that a pixel belongs to, 0 for none, and how many parts there are."""
    return _scipy.label(layer, CORNERS if corners else None)


def boxes(numbered: NDArray[np.int32]) -> tuple[Window, ...]:
    """The window that each part lies in, the first part's first."""
    return tuple(_scipy.find_objects(numbered))


def depth(layer: Layer) -> NDArray[np.float32]:
    """Pixels from one of the layer to the nearest beside it; 0 beside it."""
    return _scipy.distance_transform_edt(layer).astype(np.float32)


def nearest(layer: Layer) -> NDArray[np.int32]:
    """(2, height, width): row and column of the nearest pixel of the layer."""
    return _scipy.distance_transform_edt(~layer, return_distances=False, return_indices=True)


def dilated(layer: Layer, pixels: float) -> Layer:
    """With all that is at most so many pixels away, corners included; one at least."""
    return _scipy.binary_dilation(layer, CORNERS, iterations=max(1, round(pixels)))


def ridges(depths: NDArray[np.float32]) -> Layer:
    """Where nothing near lies deeper: the middle of traces and pads."""
    return (depths == _scipy.maximum_filter(depths, 3)) & (depths > 0)


def smoothed(picture: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """Blurred by a Gaussian along the first two axes."""
    if sigma <= 0:
        return picture
    sigmas = (sigma, sigma, *[0] * (picture.ndim - 2))
    return _scipy.gaussian_filter(picture, sigmas, truncate=3)


def shifted(layer: Layer, rows: int, columns: int) -> Layer:
    """Moved down by `rows` and right by `columns`; what comes in is empty."""
    moved = np.zeros_like(layer)
    height, width = layer.shape
    rows, columns = max(-height, min(rows, height)), max(-width, min(columns, width))
    to = (slice(max(0, rows), height + min(0, rows)), slice(max(0, columns), width + min(0, columns)))
    of = (slice(max(0, -rows), height + min(0, -rows)), slice(max(0, -columns), width + min(0, -columns)))
    moved[to] = layer[of]
    return moved
