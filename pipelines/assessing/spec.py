"""What an assessment says. Imports pydantic only."""

from __future__ import annotations

from collections.abc import Mapping

from ...workflows.spec import Spec


class NotAssessable(Spec):
    """Why something is not assessed: no answer is given that might be taken for one."""

    reason: str
    """Stable, for programs."""
    message: str
    """What is the matter with it."""


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
