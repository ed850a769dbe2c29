"""Pictures of any size, such as photographs of boards: what is marked in them, or why nothing is said.

Shape letters: B windows, K findings, H height, W width, S side of a window.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ..bundle import ANOMALY, SCORES, LoadedBundle
from .pieces import pieces
from .quality import CHECKS, Check
from .registration import align
from .spec import NotAssessable, PictureAssessment, PictureFinding
from .windows import BATCH, OVERLAP_SHARE, Floats, Pixels, slide

LEAST_PIXELS = 6
"""Of what is marked; what is smaller is noise. An anomaly's threshold was set for single pixels."""
LEAST_AGREEMENT = 0.4
"""Of a picture's edges with its reference's. Of boards of `circuit-boards` with 8 to 16 defects, 0.5 mm off
and in other light, it is 0.60 to 0.92, of two different ones at most 0.20."""


class PictureAssessor:
    """Assesses pictures with a bundle's graph.

    Args:
        bundle: with a graph that marks pictures, one that tells what looks like nothing normal, or both.
        checks: what a picture must pass before the model is asked; those for boards by default.
        overlap_share: of a window that its neighbour sees too, at least.
        batch: windows that are looked at together.
    """

    def __init__(
        self,
        bundle: LoadedBundle,
        checks: Sequence[Check] = CHECKS,
        overlap_share: float = OVERLAP_SHARE,
        batch: int = BATCH,
    ) -> None:
        self._bundle, self._marking, self._anomaly = bundle, bundle.info.marking, bundle.info.anomaly
        seeing = self._marking or self._anomaly
        assert seeing is not None
        self._size = seeing.size
        self._checks, self._overlap_share, self._batch = checks, overlap_share, batch

    def assess(
        self, pixels: Pixels, reference: Pixels | None = None, text: str | None = None
    ) -> PictureAssessment | NotAssessable:
        """Find what is marked in a picture.

        Its scale is taken to be that of the pictures that the model was trained on.

        Args:
            pixels: of the picture (H, W, 3).
            reference: how it should look, about in the same place, for a bundle that compares.
            text: that stands beside it, for a bundle that reads one.
        """
        problem = next((one for check in self._checks if (one := check(pixels, self._size))), None)
        if problem is not None:
            return problem
        marking, anomaly = self._marking, self._anomaly
        found: list[PictureFinding] = []
        if marking is not None:
            if marking.compares:
                compared = _compared(pixels, reference)
                if isinstance(compared, NotAssessable):
                    return compared
                reference = compared
            likely = self.probabilities(pixels, reference, text)
            found += findings(likely, marking.findings, marking.threshold, marking.pixels_per_mm)
        if anomaly is not None:
            scores = self.scores(pixels)
            found += findings(scores, (ANOMALY,), anomaly.threshold, anomaly.pixels_per_mm, 1)
        return PictureAssessment(
            verdict="defective" if found else "normal",
            findings=tuple(sorted(found, key=lambda one: -one.score)),
            width=pixels.shape[1],
            height=pixels.shape[0],
        )

    def probabilities(
        self, pixels: Pixels, reference: Pixels | None = None, text: str | None = None
    ) -> Floats:
        """How likely each finding is in each pixel (K, H, W); a reference lies over the picture."""
        seen = pixels if reference is None else np.concatenate((pixels, reference), axis=-1)
        predict = partial(self._bundle.mark, beside=self._bundle.told_beside(text))
        return slide(seen, self._size, predict, self._overlap_share, self._batch)

    def scores(self, pixels: Pixels) -> Floats:
        """How unlike a normal one each pixel is (1, H, W)."""

        def predict(windows: Floats) -> Floats:
            return self._bundle.run(ANOMALY, {"image": windows}, (SCORES,))[SCORES]

        return slide(pixels, self._size, predict, self._overlap_share, self._batch)


def _compared(pixels: Pixels, reference: Pixels | None) -> Pixels | NotAssessable:
    """A reference, laid over a picture."""
    if reference is None:
        message = "what is wrong with it is told by comparing, and there is nothing to compare it with"
        return NotAssessable(reason="no-reference", message=message)
    if reference.shape != pixels.shape:
        (height, width), (high, wide) = pixels.shape[:2], reference.shape[:2]
        message = f"the picture is {width}x{height}, the reference {wide}x{high} pixels"
        return NotAssessable(reason="other-size", message=message)
    laid, agreement = align(reference, pixels)
    if agreement < LEAST_AGREEMENT:
        message = f"the reference shows something else: edges agree by {agreement:.2f} of 1"
        return NotAssessable(reason="unknown-board", message=message)
    return laid


def findings(
    probabilities: Floats,
    labels: Sequence[str],
    threshold: float,
    pixels_per_mm: float | None = None,
    least_pixels: int = LEAST_PIXELS,
) -> list[PictureFinding]:
    """The pieces of what is likely, joined over sides and corners, the likeliest first.

    A piece is what most of it is likely to be.

    Args:
        probabilities: (K, H, W); of a pixel their sum is how likely anything is.
        labels: of each of the K.
        threshold: of anything, from which on a pixel belongs to a finding.
        pixels_per_mm: scale, if it is known.
        least_pixels: that a finding has.
    """
    found = _found(probabilities, labels, threshold, pixels_per_mm, least_pixels)
    return sorted(found, key=lambda one: -one.score)


def told_of(probabilities: Floats, threshold: float) -> NDArray[np.int64]:
    """What is told of each pixel (H, W) by probabilities (K, H, W): 0 nothing, k the finding k - 1."""
    return np.where(probabilities.sum(axis=0) >= threshold, probabilities.argmax(axis=0) + 1, 0)


def _found(
    probabilities: Floats,
    labels: Sequence[str],
    threshold: float,
    pixels_per_mm: float | None,
    least_pixels: int,
) -> Iterator[PictureFinding]:
    likely = probabilities.sum(axis=0)
    for piece in pieces(likely >= threshold):
        area = piece.area
        if area < least_pixels:
            continue
        left, top, right, bottom = piece.box
        yield PictureFinding(
            label=labels[int(piece.sums(probabilities).argmax())],
            score=min(1.0, piece.greatest(likely)),
            left=left,
            top=top,
            width=right - left,
            height=bottom - top,
            area_px=area,
            length_mm=piece.extent / pixels_per_mm if pixels_per_mm else None,
            area_mm2=area / pixels_per_mm**2 if pixels_per_mm else None,
        )
