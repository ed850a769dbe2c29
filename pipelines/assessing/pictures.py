"""Pictures of any size, such as photographs of boards: what is marked in them, or why nothing is said.

Shape letters: B windows, K findings, H height, W width, S side of a window.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist

from ..bundle import MARKS, PROBABILITIES, LoadedBundle
from ..media import morphology
from .quality import CHECKS, Check
from .spec import NotAssessable, PictureAssessment, PictureFinding
from .windows import BATCH, OVERLAP_SHARE, Floats, Pixels, slide

LEAST_PIXELS = 6
"""Of a finding; what is smaller is noise."""


class PictureAssessor:
    """Assesses pictures with a bundle's graph.

    Args:
        bundle: with a graph that marks pictures.
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
        assert bundle.info.marking is not None
        self._bundle, self._marking = bundle, bundle.info.marking
        self._checks, self._overlap_share, self._batch = checks, overlap_share, batch

    def assess(self, pixels: Pixels) -> PictureAssessment | NotAssessable:
        """Find what is marked in a picture (H, W, 3).

        Its scale is taken to be that of the pictures that the model was trained on.
        """
        problem = next((one for check in self._checks if (one := check(pixels, self._marking.size))), None)
        if problem is not None:
            return problem
        marking = self._marking
        found = findings(
            self.probabilities(pixels), marking.findings, marking.threshold, marking.pixels_per_mm
        )
        return PictureAssessment(
            verdict="defective" if found else "normal",
            findings=tuple(found),
            width=pixels.shape[1],
            height=pixels.shape[0],
        )

    def probabilities(self, pixels: Pixels) -> Floats:
        """How likely each finding is in each pixel (K, H, W)."""
        return slide(pixels, self._marking.size, self._predict, self._overlap_share, self._batch)

    def _predict(self, windows: Floats) -> Floats:
        return self._bundle.run(MARKS, {"image": windows}, (PROBABILITIES,))[PROBABILITIES]


def findings(
    probabilities: Floats, labels: Sequence[str], threshold: float, pixels_per_mm: float | None = None
) -> list[PictureFinding]:
    """The pieces of what is likely, joined over sides and corners, the likeliest first.

    Args:
        probabilities: (K, H, W).
        labels: of each of the K.
        threshold: from which on a pixel belongs to a finding.
        pixels_per_mm: scale, if it is known.
    """
    found = [
        one
        for label, likely in zip(labels, probabilities, strict=True)
        for one in _pieces(label, likely, threshold, pixels_per_mm)
    ]
    return sorted(found, key=lambda one: -one.score)


def extent_px(piece: NDArray[np.bool_]) -> float:
    """Distance of the farthest points of a piece (H, W), the outer edges of its pixels included.

    They are corners of the convex hull, and those are at the ends of rows.
    """
    rows = np.flatnonzero(piece.any(axis=1))
    first, last = piece[rows].argmax(axis=1), piece.shape[1] - piece[rows, ::-1].argmax(axis=1)
    corners = np.concatenate([np.stack([rows + side, end], 1) for side in (0, 1) for end in (first, last)])
    return float(pdist(corners[ConvexHull(corners).vertices]).max())


def _pieces(
    label: str, likely: Floats, threshold: float, pixels_per_mm: float | None
) -> Iterator[PictureFinding]:
    numbered, _ = morphology.parts(likely >= threshold)
    for number, window in enumerate(morphology.boxes(numbered), 1):
        piece = numbered[window] == number
        area = int(piece.sum())
        if area < LEAST_PIXELS:
            continue
        rows, columns = window
        yield PictureFinding(
            label=label,
            score=float(likely[window][piece].max()),
            left=columns.start,
            top=rows.start,
            width=columns.stop - columns.start,
            height=rows.stop - rows.start,
            area_px=area,
            length_mm=extent_px(piece) / pixels_per_mm if pixels_per_mm else None,
            area_mm2=area / pixels_per_mm**2 if pixels_per_mm else None,
        )
