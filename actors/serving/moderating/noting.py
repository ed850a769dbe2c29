"""What moderation remarks about a request, on its way to the response's header."""

from __future__ import annotations

from collections.abc import Iterable
from contextvars import ContextVar

from ..messages import Judgement
from .policy import verdict

_noted: ContextVar[list[Judgement]] = ContextVar("noted")


def note_from_here() -> list[Judgement]:
    """Begin a request: the list that its remarks are added to."""
    noted: list[Judgement] = []
    _noted.set(noted)
    return noted


def note(remarks: Iterable[Judgement]) -> None:
    """Add remarks to the request that is being served; outside of one they are told in its answer only."""
    if (noted := _noted.get(None)) is not None:
        noted.extend(remarks)


def summary(noted: list[Judgement]) -> str:
    """Remarks as a header: `flag; category=text/offensive, pair/cruelty`."""
    categories = dict.fromkeys(f"{one.of}/{one.category}" for one in noted)  # each once, in order
    return f"{verdict(noted).action}; category={', '.join(categories)}"
