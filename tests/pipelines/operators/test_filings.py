"""Cutting documents."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eagleray.pipelines.operators.filings import (
    SlidingWindowSpec,
    SplitSectionsSpec,
    sections,
    sliding_window,
    split_sections,
    windows,
)
from eagleray.pipelines.quarantine import Refused
from eagleray.pipelines.spec import Preparation

BODY = "We sell boards to makers of boards, and they may stop buying them. " * 5
REPORT = f"""ANNUAL REPORT
TABLE OF CONTENTS
Item 1. Business\t3
Item 1A. Risk Factors\t9
Item 7. Management's Discussion\t20

PART I
Item 1. Business
{BODY}
As we say in Item 1A, risks are many.
ITEM 1A \u2014 RISK FACTORS
{BODY * 2}
Part II, Item 7. Management's Discussion and Analysis
{BODY}
Item 9B. Other Information
None.
"""


def test_a_report_is_cut_at_its_headings_not_at_its_table_of_contents_or_where_they_are_mentioned():
    found = dict(sections(REPORT, 30))
    assert list(found) == ["1", "1A", "7"]
    assert found["1"].startswith("Item 1. Business\nWe sell")
    assert found["1"].endswith("risks are many.")
    assert found["1A"].count("We sell") == 10
    assert "Other Information" not in found["7"]


def test_sections_become_records_with_their_item():
    apply = split_sections(SplitSectionsSpec(items=("1A", "7")), Preparation())
    rows = apply({"text": REPORT}, lambda *args: None)
    assert [row["category"] for row in rows] == ["1A", "7"]
    assert apply({"text": None}, lambda *args: None) is None
    with pytest.raises(Refused, match="no heading") as refused:
        apply({"text": BODY}, lambda *args: None)
    assert refused.value.reason == "no-sections"


@given(
    st.lists(st.sampled_from(["a", "bb", "ccc"]), min_size=1, max_size=60),
    st.integers(1, 20),
    st.integers(1, 20),
)
def test_windows_cover_a_text_whole_and_have_one_size(words, size, stride):
    text = "  ".join(words)
    found = windows(text, size, min(stride, size))
    assert all(len(window.split()) == min(size, len(words)) for window in found)
    assert found[0].split() == words[:size]
    assert found[-1].split() == words[-size:]
    covered = 0
    for number, window in enumerate(found[:-1]):
        start = number * min(stride, size)
        assert window.split() == words[start : start + size]
        assert start <= covered
        covered = start + size
    assert len(words) - size <= covered


def test_windows_become_records():
    rows = sliding_window(SlidingWindowSpec(size=3, stride=2), Preparation())(
        {"text": "a b c d e f"}, lambda *a: None
    )
    assert [row["text"] for row in rows] == ["a b c", "c d e", "d e f"]
