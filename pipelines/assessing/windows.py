"""Sliding windows: pictures and volumes of any size, looked at through a window of the size a model knows.

Where windows overlap, the middle of each counts more than its edge, at which a model sees half of what there
is: weights are a Gaussian with a deviation of an eighth of the side (nnU-Net, Isensee et al. 2021,
doi:10.1038/s41592-020-01008-z; MONAI's `sliding_window_inference`, arXiv 2211.02701, also keeps weights from
vanishing).

Evaluation passes a torch model, serving an ONNX graph, and both get the same windows in the same batches.

Shape letters: B windows, K findings, D slices, H height, W width, S side of a window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, groupby, islice
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..media.image import normalise

Pixels: TypeAlias = NDArray[np.uint8]
Floats: TypeAlias = NDArray[np.float32]
Mask: TypeAlias = NDArray[np.bool_]
Place: TypeAlias = tuple[int, int]
"""Row and column of a window's first pixel."""
Predict: TypeAlias = Callable[[Floats], Floats]
"""Windows (B, 3, S, S) in [-1, 1], or (B, 6, S, S) with what they are compared with → probabilities
(B, K, S, S)."""

DEVIATION = 1 / 8
"""Of the Gaussian, as a share of the side."""
LEAST_WEIGHT = 1e-3
"""Of a window's pixel, where that of its middle is 1."""
OVERLAP_SHARE = 0.5
"""Of a window that its neighbour sees too, by default."""
BATCH = 8
"""Windows that are looked at together, by default."""


def slide(
    pixels: Pixels,
    size: int,
    predict: Predict,
    overlap_share: float = OVERLAP_SHARE,
    batch: int = BATCH,
) -> Floats:
    """Probabilities (K, H, W) of a picture (H, W, 3), or of one and its reference (H, W, 6).

    The last windows end with the picture. One that is smaller than a window is mirrored at its right and
    lower edge until it fills one.

    Args:
        pixels: of the picture.
        size: side of a window.
        predict: what the model sees in windows.
        overlap_share: of a window that its neighbour sees too, at least.
        batch: windows that are looked at together.
    """
    height, width = pixels.shape[:2]
    missing = [(0, max(0, size - height)), (0, max(0, size - width)), (0, 0)]
    whole = np.pad(pixels, missing, mode="symmetric")
    shape = (whole.shape[0], whole.shape[1])
    places = list(window_places(shape, size, overlap_share))
    windows = (whole[top : top + size, left : left + size] for top, left in places)
    return _blend(shape, size, places, _predicted(windows, predict, batch))[:, :height, :width]


def slide_volume(
    voxels: Pixels,
    size: int,
    predict: Predict,
    overlap_share: float = OVERLAP_SHARE,
    gap: int = 1,
    batch: int = BATCH,
    within: Mask | None = None,
) -> Iterator[tuple[int, Floats]]:
    """Number and probabilities (K, H, W) of each slice that has anything to look at.

    One slice is worked on at a time, so memory is the caller's affair. A window's colours are those of
    `patches.slab`, which is also what a model learns from: beyond the volume all is 0.

    Args:
        voxels: (D, H, W).
        size: side of a window.
        predict: what the model sees in windows.
        overlap_share: of a window that its neighbour sees too, at least.
        gap: slices from one of a window's colours to the next.
        batch: windows that are looked at together.
        within: (D, H, W); windows without any of it are left out, and pixels in no other have 0. Of the rest
            it takes away nothing: a pixel that is `within` is seen by all windows it would be seen by.
    """
    from ..media.patches import slab  # which needs SciPy, and pictures don't

    height, width = voxels.shape[1:]
    shape = (max(height, size), max(width, size))
    every = list(window_places(shape, size, overlap_share))
    for depth in range(len(voxels)):
        places = every
        if within is not None:
            region = within[depth]
            places = [
                (top, left) for top, left in every if region[top : top + size, left : left + size].any()
            ]
        if places:
            windows = (slab(voxels, (depth, *place), size, gap, (0, 255)) for place in places)
            found = _blend(shape, size, places, _predicted(windows, predict, batch))
            yield depth, found[:, :height, :width]


def window_places(shape: Sequence[int], size: int, overlap_share: float) -> Iterator[Place]:
    """Places of windows that cover a picture of `shape`, row by row; no side of it is below `size`."""
    stride = max(1, size - round(size * overlap_share))
    rows, columns = ([*range(0, length - size, stride), length - size] for length in shape)
    return ((top, left) for top in rows for left in columns)


def window_weights(size: int) -> NDArray[np.float64]:
    """What each pixel of a window counts (S, S); its middle 1."""
    offsets = np.arange(size) - (size - 1) / 2
    side = np.exp(-0.5 * (offsets / (size * DEVIATION)) ** 2)
    weights = np.outer(side, side)
    return np.maximum(weights / weights.max(), LEAST_WEIGHT)


def _predicted(windows: Iterable[Pixels], predict: Predict, batch: int) -> Iterator[Floats]:
    """Probabilities (K, S, S) of each window (S, S, C)."""
    left = iter(windows)
    while taken := list(islice(left, batch)):
        yield from predict(normalise(np.stack(taken)))


def _blend(shape: Sequence[int], size: int, places: Sequence[Place], predicted: Iterator[Floats]) -> Floats:
    """Weighted means (K, H, W) of windows; 0 where there are none.

    Sums are kept in double precision, so that where all windows agree their mean is what they say to the
    last bit; and for as many rows only as are not yet finished, so that they don't take more than the result.
    """
    weights = window_weights(size)
    first = next(predicted)
    result = np.zeros((len(first), *shape), np.float32)
    sums, counted = np.zeros((len(first), size, shape[1])), np.zeros((size, shape[1]))
    left_over = chain([first], predicted)
    rows = [(top, [left for _, left in row]) for top, row in groupby(places, lambda place: place[0])]
    following = [*(top for top, _ in rows[1:]), shape[0]]
    for (top, lefts), after in zip(rows, following, strict=True):
        for left, probabilities in zip(lefts, left_over):  # noqa: B905 - the rest is other rows'
            sums[:, :, left : left + size] += weights * probabilities
            counted[:, left : left + size] += weights
        done = min(after - top, size)
        result[:, top : top + done] = sums[:, :done] / np.maximum(counted[:done], LEAST_WEIGHT)
        for kept in (sums, counted):
            kept[..., : size - done, :] = kept[..., done:, :]
            kept[..., size - done :, :] = 0
    return result
