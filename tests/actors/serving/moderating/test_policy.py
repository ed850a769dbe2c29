"""From scores to verdicts."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from eagleray.actors.serving.messages import Judgement
from eagleray.actors.serving.moderating.noting import summary
from eagleray.actors.serving.moderating.policy import (
    ORDER,
    blocks,
    judge,
    judge_all,
    judge_pairs,
    remarks,
    shown,
    verdict,
)
from eagleray.actors.serving.spec import ModerationSpec, PairRule, TextPolicy, Thresholds
from eagleray.pipelines.index import Hit

SHARES = st.floats(0, 1)
RULE = PairRule(name="cruelty", picture=r"\banimals?\b", words=r"\bhurt it\b")


@st.composite
def thresholds(draw):
    flag, block = (draw(st.none() | st.floats(0.01, 1)) for _ in range(2))
    if flag is not None and block is not None:
        flag, block = sorted((flag, block))
    return Thresholds(flag=flag, block=block)


@given(SHARES, SHARES, thresholds())
def test_a_higher_score_is_never_judged_more_mildly(one, other, limits):
    low, high = (judge("text", "offensive", score, limits) for score in sorted((one, other)))
    assert ORDER[low.action] <= ORDER[high.action]


@given(SHARES, thresholds())
def test_a_threshold_itself_is_reached(score, limits):
    found = judge("text", "offensive", score, limits)
    assert (found.action == "block") == (limits.block is not None and score >= limits.block)
    assert (found.action == "allow") == (found.threshold is None)
    assert found.threshold is None or score >= found.threshold


@given(st.lists(st.tuples(SHARES, thresholds())))
def test_a_verdict_is_the_strictest_of_its_judgements(scored):
    judged = [judge("text", "offensive", score, limits) for score, limits in scored]
    found = verdict(judged)
    assert ORDER[found.action] == max((ORDER[one.action] for one in judged), default=0)
    assert set(blocks(judged)) <= set(remarks(judged))
    assert all(one.action != "allow" for one in remarks(judged))


@pytest.mark.parametrize("score", [math.nan, math.inf, -0.1, 1.1])
def test_what_is_no_score_lets_nothing_pass(score):
    with pytest.raises(ValueError, match="no score"):
        judge("image", "sexual", score, Thresholds())


def test_what_wasnt_scored_lets_nothing_pass():
    with pytest.raises(ValueError, match="profane text"):
        judge_all("text", {"offensive": 0.1}, TextPolicy())


def hit(category, score, caption="A thing."):
    return Hit("1", caption, category, "1.png", score)


NEAR = [hit("animals", 0.9), hit("vehicles", 0.2)]


def test_a_pair_is_blocked_only_together():
    def action(words, nearest):
        (found,) = judge_pairs([RULE], words, nearest)
        return found.action

    assert action("How do I hurt it?", NEAR) == "block"
    assert action("What is it?", NEAR) == "allow"
    assert action("How do I hurt it?", [hit("vehicles", 0.9), hit("animals", 0.2)]) == "allow"
    assert action("How do I hurt it?", []) == "allow"


@given(st.lists(st.tuples(st.sampled_from(["animals", "vehicles"]), st.floats(-1, 1)), min_size=1))
def test_what_a_picture_shows_is_a_share(found):
    nearest = [hit(category, score) for category, score in found]
    other = RULE.model_copy(update={"picture": "vehicles"})
    assert shown(RULE, nearest) + shown(other, nearest) == pytest.approx(1)


def test_a_header_names_each_category_once():
    one = Judgement(of="text", category="offensive", score=0.6, threshold=0.5, action="flag")
    pair = Judgement(of="pair", category="cruelty", score=0.9, threshold=0.5, action="block")
    assert summary([one, one, pair]) == "block; category=text/offensive, pair/cruelty"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"text": {"offensive": {"flag": 0.9, "block": 0.5}}}, "at most block"),
        ({"text": {"offensive": {"flag": 2}}}, "less than or equal to 1"),
        ({"text": {"rude": {"flag": 0.5}}}, "Extra inputs"),
        ({"pairs": [{"name": "a", "picture": "(", "words": "b"}]}, "no regular expression"),
    ],
)
def test_a_policy_that_means_nothing_is_refused(given, said):
    with pytest.raises(ValidationError, match=said):
        ModerationSpec.model_validate(given)
