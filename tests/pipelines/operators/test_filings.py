"""Cutting documents."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

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


QUARTERLY = f"""
Part I
Item 1.\u00a0Financial Statements 3
Item 2. Management's Discussion 9
Part II
Item 1. Legal Proceedings 20
Item 6. Exhibits 30
Statements in this report look forward. {BODY}
PART I \u2013 FINANCIAL INFORMATION
Item\u00a01. Financial Statements
{BODY}
ITEM 2. MANAGEMENT'S DISCUSSION
{BODY * 2}
PART I
ITEM 2. MANAGEMENT'S DISCUSSION (continued)
It goes on here. {BODY}
PART II - OTHER INFORMATION
Item 1. Legal Proceedings
As told in
Item 3, and in
Item 1A of our annual report, {BODY}
Item 1A. Risk Factors
{BODY * 3}
Items 5 and 5A. Other Information
{BODY}
Item 6. Exhibits
None.
"""


def test_a_10q_counts_its_items_anew_in_its_second_part():
    found = dict(sections(QUARTERLY, 30))
    assert list(found) == ["I-1", "I-2", "II-1", "II-1A", "II-5"]
    assert found["I-1"].count("We sell") == 5
    assert found["I-2"].count("We sell") == 15  # goes on over the page
    assert "OTHER INFORMATION" not in found["I-2"]
    assert "Item 1A of our annual report" in found["II-1"]  # a wrapped sentence is no heading
    assert found["II-5"].startswith("Items 5 and 5A. Other")
    assert not any("look forward" in text for text in found.values())  # what follows the table of contents


ITEMS_10K = ("1", "1A", "1B", "2", "3", "4", "5", "7", "7A", "8", "9", "9A", "10", "11", "15", "16")
PART_OF = {"1": "I", "5": "II", "10": "III", "15": "IV"}


@given(
    st.lists(st.sampled_from(ITEMS_10K), min_size=2, unique=True),
    st.lists(st.integers(1, 90), min_size=len(ITEMS_10K), max_size=len(ITEMS_10K)),
    st.sampled_from(
        ["Item {}. Some Title", "ITEM {} \u2014 SOME TITLE", "Item {}.", "\u00a0Item\u00a0{}: Title"]
    ),
    st.booleans(),
    st.booleans(),
)
def test_a_report_put_together_comes_apart_again(items, lengths, form, parts, contents):
    items = sorted(items, key=ITEMS_10K.index)
    lines = [form.format(item) + " 12" for item in items] if contents else []
    expected = []
    for number, (item, length) in enumerate(zip(items, lengths, strict=False)):
        section = f"{form.format(item)}\n" + " ".join(f"word{number}" for _ in range(length))
        lines += [f"PART {PART_OF[item]}"] if parts and item in PART_OF else []
        lines.append(section)
        if len(section.split()) >= 30:
            expected.append((item, section.strip()))
    assert sections("\n".join(lines), 30) == expected


def test_sections_become_records_with_their_item():
    apply = split_sections(SplitSectionsSpec(items=("1A", "7")), Preparation())
    rows = apply({"text": REPORT}, lambda *args: None)
    assert [row["category"] for row in rows] == ["1A", "7"]
    assert apply({"text": None}, lambda *args: None) is None
    with pytest.raises(Refused, match="no heading") as refused:
        apply({"text": BODY}, lambda *args: None)
    assert refused.value.reason == "no-sections"
    with pytest.raises(Refused, match="the items 1, 1A, 7 only") as refused:
        split_sections(SplitSectionsSpec(items=("8",)), Preparation())({"text": REPORT}, lambda *args: None)
    assert (refused.value.reason, refused.value.wanted) == ("no-wanted-section", True)


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


def test_windows_that_would_lose_words_are_no_spec():
    with pytest.raises(ValidationError, match="words would be lost"):
        SlidingWindowSpec(size=10, stride=11)
