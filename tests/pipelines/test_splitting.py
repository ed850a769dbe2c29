"""Splits by caption."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from eagleray.pipelines.spec import Splits
from eagleray.pipelines.splitting import place

captions = st.lists(
    st.one_of(st.none(), st.sampled_from(["A frog.", "a frog", "A ROSE", "a rose.", "x", ""])), max_size=20
)


@given(captions)
def test_records_share_a_group_if_and_only_if_they_share_a_caption(texts):
    placed = place([str(i) for i in range(len(texts))], texts, Splits())
    for i, one in enumerate(texts):
        for j, other in enumerate(texts):
            same = i == j or (
                one is not None and other is not None and one.strip(".").lower() == other.strip(".").lower()
            )
            assert (placed[i].group == placed[j].group) == same
            if same:
                assert placed[i].split == placed[j].split


@given(captions, captions)
def test_a_caption_stays_in_its_split_when_the_corpus_grows(texts, more):
    few = place([f"a{i}" for i in range(len(texts))], texts, Splits())
    many = place(
        [f"a{i}" for i in range(len(texts))] + [f"b{i}" for i in range(len(more))], texts + more, Splits()
    )
    assert [one.split for one in few] == [one.split for one in many[: len(texts)]]


def test_shares_are_kept():
    ids = [str(i) for i in range(10_000)]
    placed = place(ids, [f"caption {i}" for i in ids], Splits(train=0.7, val=0.2, test=0.1))
    shares = {
        split: sum(one.split == split for one in placed) / len(ids) for split in ("train", "val", "test")
    }
    assert shares == pytest.approx({"train": 0.7, "val": 0.2, "test": 0.1}, abs=0.02)


def test_shares_that_do_not_add_up_are_refused():
    with pytest.raises(ValidationError, match=r"add up to 1, not 0\.9"):
        Splits(train=0.7, val=0.1, test=0.1)
