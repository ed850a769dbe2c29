"""Whether a photograph is such that a model can be asked about it: size, light, sharpness and angle.

Limits were chosen on photographs of the eight real boards of the source `circuit-boards`, at 8, 10 and 20
pixels per millimetre, in four colours and light of up to half (`lighting: 0.5`); each measure's docstring
says what it gave there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..media.filtering import gaussian, laplacian
from .spec import NotAssessable

Pixels: TypeAlias = NDArray[np.uint8]
Grey: TypeAlias = NDArray[np.float32]
Check: TypeAlias = Callable[[Pixels, int], NotAssessable | None]
"""A picture (H, W, 3) and a window's side → what is the matter with it."""

LEAST_SHARE = 0.5
"""Of a window's side, that each of a picture's is to have."""
DARK, BRIGHT = 22.0, 215.0
"""Mean grey, from 0 to 255, below and above which little can be told."""
SCALES_PX = (1.5, 3.0)
"""At which edges are looked at to see how blurred they are."""
MOST_BLUR_PX = 1.4
"""Of boards `blur_px` is 0, or at 20 pixels per millimetre up to 1.2; blurred by 3 pixels it is from 1.7 on,
and from 1.5 on with a camera's noise over it."""
LEAST_EDGES = 0.05
"""Variance of the Laplacian at the finer scale, below which there are no edges; of sharp boards from 6 on."""
GRADIENT_PX = 1.5
"""Scale at which directions of edges are taken."""
TURN_DEG = 6.0
"""Of boards `turn_deg` is within 0.8 of what they are turned by; from 8.7 on for 10 with white corners."""
EDGE_SHARE = 0.1
"""Of all pixels, those whose directions count: where grey changes most."""
ALIKE_DEG = 45.0
"""After which directions of edges are alike: traces run along sides and diagonals."""
BIN_DEG, BLEND_DEG = 0.5, 2.0
"""Of the histogram of directions: width of a bin, and deviation of what it is smoothed by."""
LEAST_PEAK = 1.32
"""Of boards the most frequent direction is so from 1.37 times on."""
CHANCE = 12.0
"""Of grain and blots, it is so by chance up to 1 + 12 / √n times, n being the pixels that count."""


def too_small(pixels: Pixels, size: int) -> NotAssessable | None:
    """Most of the only window would be the picture's mirror image."""
    height, width = pixels.shape[:2]
    if min(height, width) >= LEAST_SHARE * size:
        return None
    return NotAssessable(
        reason="too-small", message=f"the picture is {width}x{height}, a window {size}x{size} pixels"
    )


def too_dark(pixels: Pixels, size: int) -> NotAssessable | None:
    """Noise of the camera is as strong as what there is to see."""
    found = float(grey(pixels).mean())
    if found >= DARK:
        return None
    return NotAssessable(reason="too-dark", message=f"the picture's mean grey is {found:.0f} of 255")


def too_bright(pixels: Pixels, size: int) -> NotAssessable | None:
    """Nearly everything is white."""
    found = float(grey(pixels).mean())
    if found <= BRIGHT:
        return None
    return NotAssessable(reason="too-bright", message=f"the picture's mean grey is {found:.0f} of 255")


def blurred(pixels: Pixels, size: int) -> NotAssessable | None:
    """Edges are wider than a crack or a scratch."""
    found = blur_px(pixels)
    if found is not None and found <= MOST_BLUR_PX:
        return None
    said = "there are no edges" if found is None else f"edges are blurred by {found:.1f} pixels"
    return NotAssessable(reason="blurred", message=said)


def rotated(pixels: Pixels, size: int) -> NotAssessable | None:
    """Edges run along other directions than the picture's sides and diagonals."""
    height, width = pixels.shape[:2]
    by_chance = 1 + CHANCE / math.sqrt(EDGE_SHARE * height * width)
    found, peak = turn_deg(pixels)
    if abs(found) <= TURN_DEG or peak < max(LEAST_PEAK, by_chance):
        return None
    return NotAssessable(reason="rotated", message=f"the picture is turned by {found:.0f} degrees")


CHECKS: Sequence[Check] = (too_small, too_dark, too_bright, blurred, rotated)
"""Those that photographs of boards pass, the cheapest first."""


def grey(pixels: Pixels) -> Grey:
    """Brightness (H, W) from 0 to 255 (Rec. 601 luma); of boards 28 to 110, at 15 % up to 16."""
    return pixels @ np.array([0.299, 0.587, 0.114], np.float32)


def blur_px(pixels: Pixels) -> float | None:
    """Standard deviation of the blur of a picture's edges; None where there are no edges.

    The variance of the Laplacian at one scale alone says as much of how many edges there are, and of how much
    contrast, as of how sharp they are. A step that was blurred by d and is looked at on a scale of s has a
    Laplacian whose energy falls with (d² + s²)^1.5, so two scales tell d.
    """
    values = grey(pixels)
    fine, coarse = (float(np.var(laplacian(values, scale))) for scale in SCALES_PX)
    if fine < LEAST_EDGES or coarse <= 0:
        return None
    ratio = max((fine / coarse) ** (2 / 3), 1 + 1e-3)
    near, far = (scale**2 for scale in SCALES_PX)
    return float(np.sqrt(max(0.0, (far - ratio * near) / (ratio - 1))))


def turn_deg(pixels: Pixels) -> tuple[float, float]:
    """By how much a picture is turned from having its edges every 45 degrees, from -22.5 to 22.5; and how
    many times as frequent that is as any angle.

    It is the most frequent direction of gradients, weighted by their strength; a mean would be led astray by
    curved traces.
    """
    values = grey(pixels)
    down, across = gaussian(values, GRADIENT_PX, (1, 0)), gaussian(values, GRADIENT_PX, (0, 1))
    strength = np.hypot(down, across)
    is_edge = strength >= np.quantile(strength, 1 - EDGE_SHARE)
    weights = strength[is_edge]
    if not weights.any():
        return 0.0, 0.0
    directions = np.degrees(np.arctan2(down[is_edge], across[is_edge])) % ALIKE_DEG
    counted = np.histogram(directions, round(ALIKE_DEG / BIN_DEG), (0, ALIKE_DEG), weights=weights)[0]
    counted = gaussian(counted.astype(np.float32), BLEND_DEG / BIN_DEG, (0,), "wrap")
    found = (float(counted.argmax()) + 0.5) * BIN_DEG
    return found - ALIKE_DEG * (found > ALIKE_DEG / 2), float(counted.max() / counted.mean())
