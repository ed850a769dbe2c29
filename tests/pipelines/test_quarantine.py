"""What is refused, and how much of it is too much."""

from __future__ import annotations

import pickle

import pytest

from eagleray.pipelines.quarantine import Quarantine, Refusal, Refused
from eagleray.workflows.errors import EaglerayError


def refusals(count: int, reason: str = "not-an-image", wanted: bool = False) -> list[Refusal]:
    return [Refusal(f"r{i}", f"r{i}.png", "decode-image", reason, "no picture", wanted) for i in range(count)]


@pytest.mark.parametrize(
    ("budget", "records", "allowed"),
    [(0, 100, 0), (0.02, 100, 2), (0.02, 49, 0), (0.5, 3, 1), (1, 9, 1), (7, 5, 7)],
)
def test_budget_is_a_share_below_one_and_a_number_from_one_on(budget, records, allowed):
    quarantine = Quarantine(budget, {}, records)
    quarantine.add(refusals(allowed))
    with pytest.raises(EaglerayError):
        quarantine.add(refusals(1))


def test_a_passed_budget_names_counts_examples_and_the_setting():
    quarantine = Quarantine(2, {}, 100)
    quarantine.add(refusals(2))
    with pytest.raises(EaglerayError) as error:
        quarantine.add(refusals(1, "empty-audio"))
    assert "3 of 100 refused (1 empty-audio, 2 not-an-image), budget 2" in error.value.cause
    assert "r0.png: no picture" in error.value.cause
    assert "error_budget" in error.value.remedy


def test_what_a_filter_leaves_out_costs_nothing_unless_it_has_a_budget_of_its_own():
    Quarantine(0, {}, 10).add(refusals(10, "near-duplicate", wanted=True))
    with pytest.raises(EaglerayError) as error:
        Quarantine(0, {"near-duplicate": 0.5}, 10).add(refusals(6, "near-duplicate", wanted=True))
    assert "6 of 10 refused as near-duplicate, budget 5" in error.value.cause
    assert "error_budgets.near-duplicate" in error.value.remedy


def test_a_reason_with_a_budget_does_not_count_for_the_common_one():
    quarantine = Quarantine(1, {"empty-audio": 3}, 100)
    quarantine.add(refusals(3, "empty-audio"))
    quarantine.add(refusals(1))
    assert quarantine.counts() == {"empty-audio": 3, "not-an-image": 1}


def test_a_refusal_survives_the_way_between_processes():
    refused = pickle.loads(pickle.dumps(Refused("empty-audio", "0 bytes")))
    assert (refused.reason, str(refused)) == ("empty-audio", "0 bytes")
