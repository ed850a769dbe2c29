"""CT scans: what is marked in the lungs, or why nothing is said.

Shape letters: B windows, K findings, D slices, H height, W width, S side of a window.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform, maximum_filter

from ..bundle import LoadedBundle, Marking
from ..media.lungs import Mask, segment_lungs
from ..media.resampling import resample, to_bytes
from ..media.volumes import TOLERANCE, Volume
from ..quarantine import Refused
from .components import candidates
from .spec import NotAssessable, VolumeAssessment, VolumeFinding, not_assessable
from .windows import BATCH, OVERLAP_SHARE, Predict, slide_volume

Halves: TypeAlias = NDArray[np.float16]

COARSEST_MM = 5.0
"""Of voxels' sides. Where slices are farther apart, a nodule of 6 mm, from which on they are followed up
(MacMahon et al. 2017), is in one slice only, and looks like a vessel that is cut across."""
FEWEST_SLICES = 10
"""Of which lungs can be told: 5 cm of them at the coarsest."""
AIR_HU, TISSUE_HU = (-1100.0, -700.0), (-200.0, 300.0)
"""What air and lung have, and what muscle, fat and blood have."""
LEAST_SHARE = 0.02
"""Of a chest's voxels, that each of these is."""
SAMPLE = 1_000_000
"""Voxels whose values are looked at, about."""
LEAST_UPRIGHT = math.cos(math.radians(45))
"""Of the direction from slice to slice: how far it goes along the patient, and not across."""
MARGIN_MM = 5.0
"""Around lungs, in which findings are told as well: those at the pleura may reach out of them."""
LEAST_DIAMETER_MM = 2.0
"""Of a finding; what is smaller is noise."""


@dataclass(frozen=True)
class Found:
    """What is found in a scan, and where.

    Attributes:
        assessment: what is said of it.
        probabilities: (K, D, H, W) on the grid that the scan was brought to. In half precision, which tells
            apart 0.5 and 0.5005: they take half the memory of all else.
        grid: the scan on that grid, in the window that the model sees.
        threshold: probability from which on a voxel belongs to a finding.
    """

    assessment: VolumeAssessment
    probabilities: Halves
    grid: Volume
    threshold: float

    def marked(self, scan: Volume, threshold: float | None = None) -> NDArray[np.bool_]:
        """What is marked (K, D, H, W) in the voxels of the scan as it was given, or is beyond a threshold."""
        least = self.threshold if threshold is None else threshold
        steps = scan.spacing_mm / self.grid.spacing_mm
        shape = scan.voxels.shape
        marked = np.zeros((len(self.probabilities), *shape), np.bool_)
        for number, likely in enumerate(self.probabilities):
            values = likely.astype(np.float32)
            moved = affine_transform(values, steps, output_shape=shape, order=1, mode="nearest")
            marked[number] = moved >= least
        return marked


class VolumeAssessor:
    """Assesses chest CTs with a bundle's graph.

    Args:
        bundle: with a graph that marks slices of volumes.
        overlap_share: of a window that its neighbour sees too, at least.
        batch: windows that are looked at together.
    """

    def __init__(
        self, bundle: LoadedBundle, overlap_share: float = OVERLAP_SHARE, batch: int = BATCH
    ) -> None:
        assert bundle.info.marking is not None
        assert bundle.info.marking.slicing is not None
        self._bundle, self._marking, self._slicing = bundle, bundle.info.marking, bundle.info.marking.slicing
        self._overlap_share, self._batch = overlap_share, batch

    def assess(self, scan: Volume, text: str | None = None) -> VolumeAssessment | NotAssessable:
        """Find what is marked in a scan in Hounsfield units.

        Args:
            scan: the volume.
            text: a report that stands beside it, for a bundle that reads one.
        """
        found = self.find(scan, text)
        return found if isinstance(found, NotAssessable) else found.assessment

    def find(self, scan: Volume, text: str | None = None) -> Found | NotAssessable:
        """As `assess`, and keep where it is."""
        problem = next((one for check in CHECKS if (one := check(scan))), None)
        if problem is not None:
            return problem
        slicing, marking = self._slicing, self._marking
        try:
            even = resample(scan, slicing.spacing_mm)
        except Refused as refused:
            return not_assessable(refused)
        lungs = segment_lungs(even.voxels, even.spacing_mm)
        if not lungs.any():
            return NotAssessable(
                reason="no-lungs", message="there are no lungs in the scan, or they hold no air"
            )
        grid = replace(even, voxels=to_bytes(even.voxels, slicing.low_hu, slicing.high_hu))
        predict = partial(self._bundle.mark, beside=self._bundle.told_beside(text))
        probabilities = mark_lungs(grid, lungs, marking, predict, self._overlap_share, self._batch)
        findings = sorted(self._findings(probabilities, grid, scan), key=lambda one: -one.score)
        between, down, across = scan.spacing_mm.tolist()
        assessment = VolumeAssessment(
            findings=tuple(findings), spacing_mm=(between, down, across), slices=len(scan.voxels)
        )
        return Found(assessment, probabilities, grid, marking.threshold)

    def _findings(self, probabilities: Halves, grid: Volume, scan: Volume) -> Iterator[VolumeFinding]:
        least = least_voxels(grid.spacing_mm)
        for label, likely in zip(self._marking.findings, probabilities, strict=True):
            found = candidates(replace(grid, voxels=likely), self._marking.threshold, least)
            places = zip(found.centres_mm, found.scores.tolist(), found.diameters_mm.tolist(), strict=True)
            for centre, score, diameter in places:
                number = round(float((centre - scan.origin_mm) @ scan.direction[0] / scan.spacing_mm[0]))
                x, y, z = centre.tolist()
                yield VolumeFinding(
                    label=label,
                    score=score,
                    x_mm=x,
                    y_mm=y,
                    z_mm=z,
                    diameter_mm=diameter,
                    slice=min(max(number, 0), len(scan.voxels) - 1),
                )


def mark_lungs(
    grid: Volume,
    lungs: Mask,
    marking: Marking,
    predict: Predict,
    overlap_share: float = OVERLAP_SHARE,
    batch: int = BATCH,
) -> Halves:
    """How likely each finding is in each voxel (K, D, H, W) of the lungs and what is near them; 0 elsewhere.

    Args:
        grid: a scan in a model's spacing and window, uint8.
        lungs: (D, H, W).
        marking: how the model marks slices.
        predict: what it sees in windows.
        overlap_share: of a window that its neighbour sees too, at least.
        batch: windows that are looked at together.
    """
    assert marking.slicing is not None
    reach = 2 * np.ceil(MARGIN_MM / grid.spacing_mm).astype(int) + 1
    near = np.asarray(maximum_filter(lungs.view(np.uint8), tuple(reach.tolist()), mode="constant"))
    found = np.zeros((len(marking.findings), *grid.voxels.shape), np.float16)
    slices = slide_volume(
        grid.voxels, marking.size, predict, overlap_share, marking.slicing.gap, batch, lungs
    )
    for depth, likely in slices:
        found[:, depth] = likely * near[depth]
    return found


def least_voxels(spacing_mm: NDArray[np.float64]) -> int:
    """Of a finding."""
    return math.ceil(math.pi / 6 * LEAST_DIAMETER_MM**3 / float(np.prod(spacing_mm)))


def too_few_slices(scan: Volume) -> NotAssessable | None:
    """Lungs can't be told from other gas in a few slices, nor nodules from vessels."""
    if len(scan.voxels) >= FEWEST_SLICES:
        return None
    message = f"the scan has {len(scan.voxels)} slices, fewer than {FEWEST_SLICES}"
    return NotAssessable(reason="too-few-slices", message=message)


def too_coarse(scan: Volume) -> NotAssessable | None:
    """Small nodules fall between the slices, or into one."""
    if scan.spacing_mm.max() <= COARSEST_MM * (1 + TOLERANCE):
        return None
    shown = " x ".join(f"{one:.3g}" for one in scan.spacing_mm)
    return NotAssessable(
        reason="too-coarse", message=f"voxels are {shown} mm, farther apart than {COARSEST_MM:g}"
    )


def not_axial(scan: Volume) -> NotAssessable | None:
    """Slices are along the patient, and a model has learnt from those across."""
    if abs(float(scan.direction[0, 2])) >= LEAST_UPRIGHT:
        return None
    return NotAssessable(reason="not-axial", message="the scan's slices don't lie across the patient's body")


def not_ct(scan: Volume) -> NotAssessable | None:
    """Air and soft tissue aren't where Hounsfield's units put them.

    So it is with magnetic resonance, with what was windowed for a screen, and with stored values that were
    not rescaled.
    """
    step = max(1, scan.voxels.size // SAMPLE)
    values = scan.voxels.reshape(-1)[::step]
    shares = [float(((values >= low) & (values <= high)).mean()) for low, high in (AIR_HU, TISSUE_HU)]
    if min(shares) >= LEAST_SHARE:
        return None
    air, tissue = (f"{share:.0%}" for share in shares)
    message = f"values are no Hounsfield units of a chest: {air} of them are air's, {tissue} soft tissue's"
    return NotAssessable(reason="not-ct", message=message)


CHECKS = (too_few_slices, too_coarse, not_axial, not_ct)
"""What a scan must pass before anything is looked for in it, the cheapest first."""
