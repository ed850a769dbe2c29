"""What was refused and why, and how much of that a run puts up with."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from ..workflows.errors import EaglerayError

NUM_EXAMPLES = 3
KEPT_BYTES = 1 << 18
"""A refused file up to this size lies in the quarantine table itself."""


class Refused(ValueError):
    """An input that can't be used, or that a filter leaves out.

    Args:
        reason: the code it is counted under, in words joined by hyphens.
        message: one sentence for people.
        wanted: a filter did what it was asked to; else the input is broken.
    """

    def __init__(self, reason: str, message: str, wanted: bool = False) -> None:
        super().__init__(reason, message, wanted)
        self.reason = reason
        self.message = message
        self.wanted = wanted

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True, order=True)
class Refusal:
    """A row of the quarantine table.

    Attributes:
        id: of the record; the unit's name where no record was read.
        address: of the file, relative to the source's folder.
        operator: what refused it.
        reason: the code it is counted under.
        message: one sentence for people.
        wanted: a filter did what it was asked to; else the input is broken.
        whole: the record is gone with it.
        size_bytes: of the file; -1 where it is not known.
        content: of the file, unless it is large.
    """

    id: str
    address: str
    operator: str
    reason: str
    message: str
    wanted: bool = False
    whole: bool = True
    size_bytes: int = -1
    content: bytes | None = None


def link_outside(operator: str, path: str, name: str | None = None) -> Refusal:
    """The refusal of a link that leads out of a source's folder; such a link is never followed.

    Args:
        operator: the source's kind.
        path: of the link.
        name: of the record, if that isn't the path.
    """
    return Refusal(name or path, path, operator, "link-outside", "the link leads out of the folder")


def file_missing(operator: str, path: str) -> Refusal:
    """The refusal of all of a source, for want of a file that says what is in it.

    Args:
        operator: the source's kind.
        path: of the file.
    """
    return Refusal(path, path, operator, "missing-file", f"there is no {path}")


class Refuse(Protocol):
    """Notes that a part of a record is refused while the record goes on without it, or that a unit of many
    records has one that can't be used.
    """

    def __call__(
        self, refused: Refused, address: str, content: bytes | None = None, whole: bool = False
    ) -> None:
        """Refuse the file at `address`, whose `content` may be at hand; with `whole`, a record of its own."""
        ...


@dataclass
class Quarantine:
    """Counts refusals until there are more than a budget allows.

    Attributes:
        budget: of broken inputs: below 1 a share of all records, from 1 on a number.
        budgets: by reason, instead; of what a filter leaves out as well.
        num_records: of the run, as far as is known.
    """

    budget: float
    budgets: Mapping[str, float]
    num_records: int
    _counts: Counter[str] = field(default_factory=Counter[str])
    _broken: int = 0
    _examples: list[str] = field(default_factory=list[str])

    def add(self, refusals: Iterable[Refusal]) -> None:
        """Count refusals.

        Raises:
            EaglerayError: when there are more than a budget allows, with counts and examples.
        """
        for one in refusals:
            self._counts[one.reason] += 1
            if one.reason not in self.budgets and not one.wanted:
                self._broken += 1
                if len(self._examples) < NUM_EXAMPLES:
                    self._examples.append(f"{one.address}: {one.message}")
        for reason, budget in self.budgets.items():
            if self._counts[reason] > self._allowed(budget):
                raise EaglerayError(
                    f"{self._counts[reason]} of {self.num_records} refused as {reason}, "
                    f"budget {self._allowed(budget)}",
                    f"look at the reason, or allow more with error_budgets.{reason}",
                )
        if self._broken > self._allowed(self.budget):
            counts = ", ".join(f"{count} {reason}" for reason, count in self.counts().items())
            raise EaglerayError(
                f"{self._broken} of {self.num_records} refused ({counts}), "
                f"budget {self._allowed(self.budget)}; {'; '.join(self._examples)}",
                "mend the files, or allow more with error_budget (below 1 a share of all records, "
                "else a number)",
            )

    def counts(self) -> dict[str, int]:
        """Refusals by reason, sorted."""
        return dict(sorted(self._counts.items()))

    def _allowed(self, budget: float) -> int:
        return int(budget) if budget >= 1 else math.floor(budget * self.num_records)
