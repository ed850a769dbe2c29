"""A candidate is promoted if it can be excluded that it is worse than is allowed, and not otherwise."""

import json

import numpy as np
import pytest

from eagleray.actors.serving.promoting import GoldenRequest, Outcome, ask_both, golden, judge, worse_by
from eagleray.actors.serving.spec import PromotionSpec
from eagleray.actors.serving.switching import Tally
from eagleray.workflows.errors import EaglerayError

SPEC = PromotionSpec()
SEARCH = GoldenRequest(path="/v1/search", body={"text": "a"}, expect="A frog.")


def drawn(count, was, is_now, slower=1.0, seed=0):
    """Pairs of outcomes that don't depend on each other."""
    random = np.random.default_rng(seed)
    return [
        (
            Outcome(random.random() < was, random.lognormal(-4, 0.3)),
            Outcome(random.random() < is_now, slower * random.lognormal(-4, 0.3)),
        )
        for _ in range(count)
    ]


def promoted(pairs, live=Tally(), candidate=Tally(), spec=SPEC):
    return judge(pairs, live, candidate, spec)


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        (drawn(400, 0.8, 0.6), "fewer golden requests"),
        (drawn(400, 0.8, 0.9, slower=1.6), "times as long"),
        (drawn(30, 0.5, 0.5), "fewer golden requests"),  # too few to exclude it
    ],
)
def test_a_worse_a_slower_and_a_doubtful_one_are_not(pairs, said):
    verdict = promoted(pairs)
    assert not verdict.promotes
    assert any(said in one for one in verdict.against)


def test_a_better_one_and_the_same_are():
    assert promoted(drawn(400, 0.6, 0.9)).promotes
    same = [(one, one) for one, _ in drawn(200, 0.7, 0.7)]
    assert promoted(same).promotes


def test_nothing_is_promoted_by_requests_that_nobody_answers_rightly():
    wrong = [(Outcome(False, 0.01), Outcome(False, 0.01))] * 200
    assert "0 golden requests right" in promoted(wrong).against[0]


def test_one_that_fails_is_not():
    same = [(one, one) for one, _ in drawn(200, 0.7, 0.7)]
    verdict = promoted(same, Tally(1000, 1), Tally(100, 9))
    assert "fails more often (9 of 300 requests, 1 of 1200 before)" in verdict.against[0]
    assert promoted(same, Tally(1000, 30), Tally(100, 3)).promotes
    broken = [(one, Outcome(False, 0.01, failed=True)) for one, _ in drawn(200, 0.7, 0.7)]
    assert len(promoted(broken).against) == 2


def test_one_that_is_as_much_worse_as_is_just_not_allowed_is_promoted_as_seldom_as_is_said():
    """A simulation of the rule: at the border its error is the one that was asked for."""
    random = np.random.default_rng(3)
    runs, count, wrongly = 2000, 300, 0
    for _ in range(runs):
        draws = random.random(count)
        only_old, only_new = int((draws < 0.15).sum()), int((draws > 0.9).sum())  # the share sinks by 0.05
        wrongly += worse_by(only_new, only_old, count, 0.05) <= 0.05
    assert 0.035 < wrongly / runs < 0.065


def test_with_nothing_between_them_many_requests_are_needed():
    assert worse_by(0, 0, 30, 0.05) > 0.05
    assert worse_by(0, 0, 200, 0.05) < 0.05


def test_both_are_asked_the_same_and_either_of_them_first():
    asked = []

    def ask(request, bundle):
        asked.append(bundle)
        return Outcome(bundle == "new", 0.1)

    pairs = ask_both(ask, "old", "new", [SEARCH] * 4)
    assert asked == ["old", "new", "new", "old"] * 2
    assert all((was.right, is_now.right) == (False, True) for was, is_now in pairs)


def test_what_is_right():
    found = {"results": [{"id": "p1", "caption": "A  FROG"}, {"id": "p2", "caption": "A boat."}]}
    assert SEARCH.is_right(found)
    assert not SEARCH.model_copy(update={"expect": "A cat."}).is_right(found)
    answer = GoldenRequest(path="/v1/answer", body={}, expect="green")
    assert answer.is_right({"answer": " Green."})
    assert not answer.is_right({"answer": "greenish"})


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["{"], "line 1 is no golden request"),
        (["", '{"path": "/v1/embed", "body": {}, "expect": "a"}'], "line 2 is no golden request: path"),
        ([json.dumps(SEARCH.model_dump(mode="json"))] * 29, "29 golden requests are too few"),
    ],
)
def test_a_file_of_golden_requests_is_checked(tmp_path, loaded_bundle, lines, said):
    path = tmp_path / "golden.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(EaglerayError, match=said):
        golden(loaded_bundle, PromotionSpec(golden=str(path)))
    with pytest.raises(EaglerayError, match="can't be read"):
        golden(loaded_bundle, PromotionSpec(golden=str(tmp_path)))
