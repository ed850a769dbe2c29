"""Cutting long documents: annual and quarterly reports into their sections, any text into windows."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from pydantic import Field, model_validator

from ..operator import Apply, Operator, OperatorSpec
from ..quarantine import Refuse, Refused
from ..source import Row
from ..spec import Preparation

# A title begins with no small letter, nor does a comma follow the number: else a sentence was wrapped there.
_HEADING = re.compile(
    r"""^[^\S\n]*+ (?=PART|ITEM)
    (?:PART [^\S\n]++ (?P<part>IV|I{1,3})\b (?:[^\S\n]|[.,:\u2013\u2014-])*+)?+
    (?:ITEMS? [^\S\n]++ (?P<number>\d{1,2}+) (?P<letter>[A-C])?+ (?:\(T\))?+
       (?:[^\S\n]*(?:and|&)[^\S\n]*\d{1,2}[A-C]?)?+ (?![\w,;]) (?:[^\S\n]|[.:\u2013\u2014-])*+)?+
    (?-i:(?![a-z])) [^\n]{0,120}$""",
    re.IGNORECASE | re.MULTILINE | re.VERBOSE,
)
_PARTS = ("", "I", "II", "III", "IV")
_WORD = re.compile(r"\S+")


class SplitSectionsSpec(OperatorSpec):
    """Cut a 10-K or 10-Q into its items; each becomes a record with the item as its category.

    A 10-Q counts its items anew in its second part, so there they are called I-2 or II-1A.
    """

    kind: Literal["split-sections"] = "split-sections"
    items: tuple[str, ...] = ()
    """Items that are kept, such as 1A, 7 or II-1A; all by default."""
    min_words: int = Field(default=30, ge=1)
    """Words below which a section is a line of the table of contents, or says nothing."""


class SlidingWindowSpec(OperatorSpec):
    """Cut a document into windows of words; each becomes a record."""

    kind: Literal["sliding-window"] = "sliding-window"
    size: int = Field(default=512, ge=1)
    """Words of a window."""
    stride: int = Field(default=384, ge=1)
    """Words from the beginning of one to that of the next; no more than `size`, so that none is lost."""

    @model_validator(mode="after")
    def _covering(self) -> SlidingWindowSpec:
        if self.stride > self.size:
            raise ValueError(f"stride {self.stride} is larger than size {self.size}: words would be lost")
        return self


@dataclass(frozen=True)
class _Heading:
    """A line that begins an item, or a part if `number` is 0."""

    start: int
    part: str
    number: int
    letter: str

    @property
    def item(self) -> tuple[int, str]:
        return self.number, self.letter

    def repeats(self, before: _Heading) -> bool:
        """Whether it stands at the top of a page in what `before` has begun."""
        return self.part == before.part and (self.item == before.item or not self.number)

    def is_before_restart(self, following: _Heading) -> bool:
        """Whether items are counted anew after it, though not because a part has ended."""
        next_part = bool(self.part) and _PARTS.index(following.part) > _PARTS.index(self.part)
        return following.item <= self.item and not next_part


def _headings(text: str) -> list[_Heading]:
    found: list[_Heading] = []
    part = ""
    for match in _HEADING.finditer(text):
        if match["part"] or match["number"]:
            part = (match["part"] or part).upper()
            found.append(
                _Heading(match.start(), part, int(match["number"] or 0), (match["letter"] or "").upper())
            )
    return found


def sections(text: str, min_words: int) -> list[tuple[str, str]]:
    """The items of a report with their text, heading included, in order.

    A heading stands on a line of its own: "Item 1A. Risk Factors". Left out is what the table of contents
    has: items of less than `min_words`, and the last one before items are counted anew, which comes again. A
    heading that is repeated (at the top of each page) cuts nothing; of an item that comes twice, the longest
    is taken.
    """
    headings = _headings(text)
    quarterly = any(one.part == "II" and 0 < one.number < 5 for one in headings)
    cuts: list[_Heading] = []
    for one in headings:
        if not cuts or not one.repeats(cuts[-1]):
            cuts.append(one)
    items = [one for one in cuts if one.number]
    ends = {one: following.start for one, following in pairwise(cuts)}
    found: dict[str, str] = {}
    for number, one in enumerate(items):
        later = items[number + 1 :]
        if later and one.is_before_restart(later[0]) and any(other.item == one.item for other in later):
            continue
        name = f"{one.part}-" * (quarterly and bool(one.part)) + f"{one.number}{one.letter}"
        section = text[one.start : ends.get(one, len(text))].strip()
        if len(section.split()) >= min_words and len(section) > len(found.get(name, "")):
            found[name] = section
    return list(found.items())


def windows(text: str, size: int, stride: int) -> list[str]:
    """Windows of `size` words, one every `stride` words; the last one ends with the text."""
    words = list(_WORD.finditer(text))
    if len(words) <= size:
        return [text]
    starts = [*range(0, len(words) - size, stride), len(words) - size]
    return [text[words[start].start() : words[start + size - 1].end()] for start in starts]


def split_sections(spec: SplitSectionsSpec, preparation: Preparation) -> Apply:
    """`text` → a record for each section."""

    def apply(row: Row, refuse: Refuse) -> list[Row] | None:
        if row["text"] is None:
            return None
        found = sections(row["text"], spec.min_words)
        if not found:
            raise Refused("no-sections", "the text has no heading such as `Item 1A. Risk Factors`")
        wanted = [(item, text) for item, text in found if not spec.items or item in spec.items]
        if not wanted:
            names = ", ".join(item for item, _ in found)
            raise Refused("no-wanted-section", f"the text has the items {names} only", wanted=True)
        return [{"text": text, "category": item} for item, text in wanted]

    return apply


def sliding_window(spec: SlidingWindowSpec, preparation: Preparation) -> Apply:
    """`text` → a record for each window."""

    def apply(row: Row, refuse: Refuse) -> list[Row] | None:
        if row["text"] is None:
            return None
        return [{"text": text} for text in windows(row["text"], spec.size, spec.stride)]

    return apply


SECTIONS = Operator(
    spec=SplitSectionsSpec,
    summary="cut a 10-K or 10-Q into its items",
    needs=lambda spec: ("text",),
    gives=lambda spec: ("text", "category"),
    start=split_sections,
    splits=True,
)
WINDOW = Operator(
    spec=SlidingWindowSpec,
    summary="cut a document into windows of words",
    needs=lambda spec: ("text",),
    gives=lambda spec: ("text",),
    start=sliding_window,
    splits=True,
)
