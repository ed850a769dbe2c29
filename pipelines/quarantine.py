"""What was refused and why, and how much of that a run puts up with."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, get_args

from ..workflows.errors import EaglerayError

Reason = Literal[
    "unreadable-file",
    "empty-image",
    "not-an-image",
    "truncated-image",
    "corrupt-image",
    "undecodable-svg",
    "image-too-large",
    "blank-image",
    "empty-audio",
    "undecodable-audio",
    "caption-not-utf8",
    "missing-caption",
]
REASONS: tuple[str, ...] = get_args(Reason)
NUM_EXAMPLES = 3


class Refused(ValueError):
    """An input that can't be used.

    Args:
        reason: the code it is counted under.
        message: one sentence for people.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(reason, message)
        self.reason: Reason = reason
        self.message = message

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True, order=True)
class Refusal:
    """A row of the quarantine table.

    Attributes:
        id: of the record the file belongs to.
        path: of the file, relative to the source's folder.
        operator: what refused it: `caption`, `image` or `audio`.
        reason: the code it is counted under.
        message: one sentence for people.
        size_bytes: of the file; -1 where it could not be read.
    """

    id: str
    path: str
    operator: str
    reason: str
    message: str
    size_bytes: int = -1


@dataclass
class Quarantine:
    """Collects refusals until they pass a budget.

    Attributes:
        budget: below 1 a share of all files, from 1 on a number of files.
        num_files: all files of the run.
        refusals: so far.
    """

    budget: float
    num_files: int
    refusals: list[Refusal] = field(default_factory=list[Refusal])

    @property
    def allowed(self) -> int:
        """Files that may be refused."""
        return int(self.budget) if self.budget >= 1 else math.floor(self.budget * self.num_files)

    def add(self, refusals: Iterable[Refusal]) -> None:
        """Add refusals.

        Raises:
            EaglerayError: when there are more than the budget allows, with counts and examples.
        """
        self.refusals.extend(refusals)
        if len(self.refusals) <= self.allowed:
            return
        counts = ", ".join(f"{count} {reason}" for reason, count in self.counts().items())
        examples = "; ".join(f"{one.path}: {one.message}" for one in sorted(self.refusals)[:NUM_EXAMPLES])
        raise EaglerayError(
            f"{len(self.refusals)} of {self.num_files} files refused ({counts}), budget {self.allowed}; "
            f"{examples}",
            "mend the files, or allow more with error_budget (below 1 a share of all files, else a number)",
        )

    def counts(self) -> dict[str, int]:
        """Refusals by reason, sorted."""
        return dict(sorted(Counter(one.reason for one in self.refusals).items()))
