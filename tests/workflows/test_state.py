from __future__ import annotations

from eagleray.workflows.state import TABLE, State


def test_every_state_has_its_traits() -> None:
    assert set(TABLE) == set(State)


def test_a_stage_that_has_an_artifact_is_done() -> None:
    assert {state for state, traits in TABLE.items() if traits.has_artifact} == {State.HIT, State.SUCCEEDED}
    assert all(traits.terminal for traits in TABLE.values() if traits.has_artifact)


def test_only_what_waits_runs_or_is_tried_again_is_not_over() -> None:
    going = {state for state, traits in TABLE.items() if not traits.terminal}
    assert going == {State.WAITING, State.RUNNING, State.RETRYING}
