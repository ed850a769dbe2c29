"""Cutting long documents: annual and quarterly reports into their sections, any text into windows."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Literal

from pydantic import Field

from ..operator import Apply, Operator, OperatorSpec
from ..quarantine import Refuse, Refused
from ..source import Row
from ..spec import Preparation

_HEADING = re.compile(
    r"^[ \t]*(?:PART[ \t]+[IV]+[ \t.,:-]*)?ITEM[ \t]+(?P<number>\d{1,2})(?P<letter>[A-C])?"
    r"[ \t]*[.:\u2013\u2014-]*[ \t]*[^\n]{0,120}$",
    re.IGNORECASE | re.MULTILINE,
)
_WORD = re.compile(r"\S+")


class SplitSectionsSpec(OperatorSpec):
    """Cut a 10-K or 10-Q into its items; each becomes a record with the item as its category."""

    kind: Literal["split-sections"] = "split-sections"
    items: tuple[str, ...] = ()
    """Items that are kept, such as 1A or 7; all by default."""
    min_words: int = Field(default=30, ge=1)
    """Words below which a section is a line of the table of contents, or says nothing."""


class SlidingWindowSpec(OperatorSpec):
    """Cut a document into windows of words; each becomes a record."""

    kind: Literal["sliding-window"] = "sliding-window"
    size: int = Field(default=512, ge=1)
    """Words of a window."""
    stride: int = Field(default=384, ge=1)
    """Words from the beginning of one to that of the next."""


def sections(text: str, min_words: int) -> list[tuple[str, str]]:
    """The items of a report with their text, heading included, in order.

    A heading stands on a line of its own: "Item 1A. Risk Factors". What stands in the table of contents has
    no text of its own; of an item that comes twice, the longest is taken.
    """
    headings = list(_HEADING.finditer(text))
    found: dict[str, str] = {}
    edges = [*(heading.start() for heading in headings), len(text)]
    for heading, (start, end) in zip(headings, pairwise(edges), strict=True):
        item = f"{int(heading['number'])}{(heading['letter'] or '').upper()}"
        section = text[start:end].strip()
        if len(section.split()) >= min_words and len(section) > len(found.get(item, "")):
            found[item] = section
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
        return [
            {"text": text, "category": item} for item, text in found if not spec.items or item in spec.items
        ]

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
