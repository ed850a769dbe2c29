"""Splits by group."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from eagleray.pipelines.spec import Splits
from eagleray.pipelines.splitting import group_of, split_of


def record(name: str, *captions: str, language: str = "en") -> dict:
    return {"id": name, "captions": [{"language": language, "text": one} for one in captions]}


@given(st.text(), st.text())
def test_records_that_share_a_caption_share_a_group(one, other):
    assert group_of(record("a", one), "en") == group_of(record("b", one), "en")
    assert group_of(record("a", "A red  Rose."), "en") == group_of(record("b", "a red rose"), "en")
    assert group_of(record(one), "en") == group_of(record(one, other, language="es"), "en")
    assert (group_of(record(one), "en") == group_of(record(other), "en")) == (one == other)


@given(st.lists(st.text(), min_size=1, unique=True))
def test_a_split_is_a_function_of_the_group_alone(groups):
    splits = Splits()
    before = {group: split_of(group, splits) for group in groups[: len(groups) // 2]}
    after = {group: split_of(group, splits) for group in groups}
    assert before.items() <= after.items()


def test_shares_are_as_asked():
    found = [split_of(f"group {i}", Splits(train=0.6, val=0.1, test=0.3)) for i in range(20_000)]
    assert abs(found.count("train") / 20_000 - 0.6) < 0.015
    assert abs(found.count("val") / 20_000 - 0.1) < 0.015


def test_a_share_of_nothing_gets_nothing():
    assert {split_of(f"group {i}", Splits(train=1, val=0, test=0)) for i in range(1000)} == {"train"}


def test_a_group_may_be_named():
    splits = Splits(train=1, val=0, test=0, by_group={"board *": "test", "board 1": "val"})
    found = [split_of(group, splits) for group in ("board 1", "board 2", "a board 2", "other")]
    assert found == ["val", "test", "train", "train"]
