"""Masks of pictures: what is marked in them, pixel by pixel, as a PNG of one channel.

A mask is uint8 (height, width): 0 where there is nothing, n where it is the label n - 1.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..quarantine import Refused
from . import morphology
from .image import MAX_PIXELS, Fit, fitted, size_of

Mask: TypeAlias = NDArray[np.uint8]
MIDDLE = 127
"""Grey that is still dark."""


def encode(mask: Mask) -> bytes:
    """A PNG of one channel."""
    content = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(mask, np.uint8)).save(content, "PNG")
    return content.getvalue()


def decode(content: bytes, size: tuple[int, int] | None = None) -> Mask:
    """The mask in a PNG.

    Args:
        content: the PNG.
        size: width and height that it must have; nothing is decoded of one that has others.

    Raises:
        Refused: when it is no PNG of one channel with 8 bits, or has another size.
    """
    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as picture:
            mode, found = picture.mode, picture.size
            if mode == "L" and size in (None, found):
                return np.asarray(picture)
    except Exception as error:  # Pillow's format plugins raise anything on hostile bytes
        raise Refused("bad-mask", f"the mask can't be decoded: {error}") from error
    if mode != "L":
        raise Refused("bad-mask", f"the mask is a PNG of mode {mode}, it must be L: one channel of 8 bits")
    raise Refused("bad-mask", f"the mask is {_shown(found)}, its picture {_shown(size or found)}")


def read(marked: Mapping[str, Any], width: int, height: int) -> Mask:
    """The mask in a record's column `mask`, of a picture that is `width`×`height` once it is upright.

    Raises:
        Refused: when it is none, has another size, or marks what it has no label for.
    """
    mask = decode(marked["content"], (width, height))
    if (most := int(mask.max(initial=0))) > len(marked["labels"]):
        message = f"the mask has a pixel of {most}, and {len(marked['labels'])} labels"
        raise Refused("bad-mask", message)
    return mask


def white(content: bytes) -> NDArray[np.bool_]:
    """What is not black in a picture: a mask as annotators draw it.

    Raises:
        Refused: when it can't be decoded.
    """
    return _grey(content, "bad-mask") > 0


def differing(content: bytes, other: bytes) -> NDArray[np.bool_]:
    """Where one of two pictures is dark and the other light; for pictures of two tones.

    Raises:
        Refused: when one can't be decoded, or they differ in size.
    """
    one, two = (_grey(each, "corrupt-image") for each in (content, other))
    if one.shape != two.shape:
        sizes = [_shown((each.shape[1], each.shape[0])) for each in (one, two)]
        raise Refused("bad-template", f"the picture is {sizes[0]}, its template {sizes[1]}")
    return (one > MIDDLE) != (two > MIDDLE)


def boxes(marked: NDArray[np.bool_]) -> list[tuple[float, float, float, float]]:
    """Left, top, width and height of each part that hangs together, corners included."""
    return [
        (
            float(columns.start),
            float(rows.start),
            float(columns.stop - columns.start),
            float(rows.stop - rows.start),
        )
        for rows, columns in morphology.boxes(morphology.parts(marked)[0])
    ]


def _grey(content: bytes, reason: str) -> NDArray[np.uint8]:
    if (size := size_of(content)) is None or size[0] * size[1] > MAX_PIXELS:
        raise Refused(reason, "the content is no picture, or has too many pixels")
    try:
        with Image.open(io.BytesIO(content)) as picture:
            return np.asarray(picture.convert("L"))
    except Exception as error:  # Pillow's format plugins raise anything on hostile bytes
        raise Refused(reason, f"the picture can't be decoded: {error}") from error


def fit(mask: Mask, size: int, how: Fit = "letterbox") -> Mask:
    """Fit into (size, size) as `image.read` fits the picture, with bars of 0, or crop its middle likewise."""
    height, width = mask.shape
    if how == "crop":
        side = min(width, height)
        return _resized(mask, ((width - side) / 2, (height - side) / 2), (side, side), (size, size))
    inner = fitted(width, height, size)
    left, top = (size - inner[0]) // 2, (size - inner[1]) // 2
    square = np.zeros((size, size), np.uint8)
    square[top : top + inner[1], left : left + inner[0]] = _resized(mask, (0, 0), (width, height), inner)
    return square


def crop(mask: Mask, left: int, top: int, width: int, height: int) -> Mask:
    """A part of a mask, in its own pixels."""
    return mask[top : top + height, left : left + width]


def _resized(mask: Mask, corner: tuple[float, float], extent: tuple[int, int], size: tuple[int, int]) -> Mask:
    """The rectangle of `extent` (width, height) at `corner` (left, top), brought to `size` (width, height).

    Where it shrinks, a pixel becomes the most frequent label of those it covers, and 0 only if none of them
    has any: what marks a crack or a cut trace is a pixel or two wide, and would vanish if it were sampled.
    Of two that are equally frequent the first counts. Where it grows, each pixel takes its nearest.
    """
    if extent[0] <= size[0] and extent[1] <= size[1]:
        columns, rows = (_nearest(*one) for one in zip(corner, extent, size, strict=True))
        return mask[np.ix_(np.minimum(rows, len(mask) - 1), np.minimum(columns, mask.shape[1] - 1))]
    (left, columns), (top, rows) = (_starts(*one) for one in zip(corner, extent, size, strict=True))
    part = mask[top : top + extent[1], left : left + extent[0]]
    smaller = np.zeros((size[1], size[0]), np.uint8)
    most = np.zeros(smaller.shape, np.int32)
    for label in np.flatnonzero(np.bincount(part.ravel(), minlength=1)[1:]) + 1:
        counted = np.add.reduceat(part == label, columns, axis=1, dtype=np.int32)
        counted = np.add.reduceat(counted, rows, axis=0)
        smaller[counted > most] = label
        np.maximum(most, counted, out=most)
    return smaller


def _nearest(start: float, length: int, size: int) -> NDArray[np.int64]:
    """Pixels nearest to the middles of `size` pixels that are laid over `length` of them."""
    return np.floor(start + (np.arange(size) + 0.5) * length / size).astype(np.int64)


def _starts(start: float, length: int, size: int) -> tuple[int, NDArray[np.int64]]:
    """Where `length` pixels begin, and each of the `size` runs of them that become one: those whose middles
    it covers.
    """
    first = int(np.ceil(start - 0.5))
    runs = np.ceil(start + np.arange(size) * length / size - 0.5).astype(np.int64) - first
    return first, np.minimum(runs, length - 1)


def _shown(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
