"""What an assessment says. Imports pydantic only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, TypeAlias

from ...workflows.spec import Spec

if TYPE_CHECKING:
    from ..quarantine import Refused

Notice: TypeAlias = Literal[
    "Not a medical device: for research only. Nothing here is a diagnosis, and what is not told may be there."
]
NOTICE: Notice = (
    "Not a medical device: for research only. Nothing here is a diagnosis, and what is not told may be there."
)
"""Stands with everything that is said of a patient's scan."""


class NotAssessable(Spec):
    """Why something is not assessed: no answer is given that might be taken for one."""

    reason: str
    """Stable, for programs."""
    message: str
    """What is the matter with it."""


def not_assessable(refused: Refused) -> NotAssessable:
    """What can't be read can't be assessed, for the same reason."""
    return NotAssessable(reason=refused.reason, message=refused.message)


class Evidence(Spec):
    """A sentence, or a row of a table, and what it added to the decision."""

    text: str
    start: int
    """Place of its first character in the document."""
    share: float
    """Of all that speaks for the category."""


class DocumentAssessment(Spec):
    """What a document is about, and where that is said."""

    category: str
    """The likeliest."""
    probabilities: Mapping[str, float]
    """By category, all of them."""
    evidence: tuple[Evidence, ...]
    """What speaks most for the category, the most telling first."""
    tokens: int
    """That were read."""
    segments: int
    """That they were read in."""


class PictureFinding(Spec):
    """Something that is marked in a picture."""

    label: str
    """What it is; `anomaly` where it is only known to look like nothing normal."""
    score: float
    """Greatest probability of its pixels; of an anomaly no probability, but a half at the threshold and more
    the less normal it looks."""
    left: int
    """Of the box around it, in pixels."""
    top: int
    width: int
    height: int
    area_px: int
    """Pixels that are marked."""
    length_mm: float | None
    """Between its farthest points; none where the scale isn't known."""
    area_mm2: float | None


class PictureAssessment(Spec):
    """What is found in a picture."""

    verdict: Literal["normal", "defective"]
    """Defective, where anything is found."""
    findings: tuple[PictureFinding, ...]
    """The likeliest first."""
    width: int
    """Of the picture, in pixels."""
    height: int


class VolumeFinding(Spec):
    """Something that is marked in a scan."""

    label: str
    score: float
    """Greatest probability of its voxels."""
    x_mm: float
    """Of its centre in patient space (LPS): to the patient's left."""
    y_mm: float
    """To the back."""
    z_mm: float
    """To the head."""
    diameter_mm: float
    """Of a ball of the same volume."""
    slice: int
    """Of the scan as it was given, the one nearest to its centre; the first is 0."""


class VolumeAssessment(Spec):
    """What is found in a scan."""

    notice: Notice = NOTICE
    findings: tuple[VolumeFinding, ...]
    """The likeliest first."""
    spacing_mm: tuple[float, float, float]
    """Of the scan as it was given: distances of voxels along depth, height and width."""
    slices: int
    """Of the scan as it was given."""


Assessment: TypeAlias = DocumentAssessment | PictureAssessment | VolumeAssessment | NotAssessable
