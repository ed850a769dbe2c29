"""What is refused, and how much of it is too much."""

from __future__ import annotations

import pickle

import pytest

from eagleray.pipelines.quarantine import Quarantine, Refusal, Refused
from eagleray.workflows.errors import EaglerayError


def refusals(count: int, reason: str = "not-an-image") -> list[Refusal]:
    return [Refusal(f"r{i}", f"r{i}.png", "image", reason, "no picture", 3) for i in range(count)]


@pytest.mark.parametrize(
    ("budget", "files", "allowed"),
    [(0, 100, 0), (0.02, 100, 2), (0.02, 49, 0), (0.5, 3, 1), (1, 9, 1), (7, 5, 7)],
)
def test_budget_is_a_share_below_one_and_a_number_from_one_on(budget, files, allowed):
    quarantine = Quarantine(budget, files)
    quarantine.add(refusals(allowed))
    with pytest.raises(EaglerayError):
        quarantine.add(refusals(1))


def test_a_passed_budget_names_counts_examples_and_the_setting():
    quarantine = Quarantine(2, 100)
    quarantine.add(refusals(2))
    with pytest.raises(EaglerayError) as error:
        quarantine.add(refusals(1, "empty-audio"))
    assert "3 of 100 files refused (1 empty-audio, 2 not-an-image), budget 2" in error.value.cause
    assert "r0.png: no picture" in error.value.cause
    assert "error_budget" in error.value.remedy


def test_a_refusal_survives_the_way_between_processes():
    refused = pickle.loads(pickle.dumps(Refused("empty-audio", "0 bytes")))
    assert (refused.reason, str(refused)) == ("empty-audio", "0 bytes")
