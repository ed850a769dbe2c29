from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from workflow_harness import CHAIN, KINDS, Home, parse

from eagleray.workflows.errors import EaglerayError
from eagleray.workflows.fingerprint import identity
from eagleray.workflows.loading import Workflow
from eagleray.workflows.plan import Decision, Plan, make_plan
from eagleray.workflows.store import Record

HIT, RUN, BLOCKED = Decision.HIT, Decision.RUN, Decision.BLOCKED


def record(planned: Any, **changes: Any) -> Record:
    values: dict[str, Any] = {
        "type": planned.kind.gives.__name__,
        "fingerprint": planned.fingerprint,
        "digest": "d",
        "files": (),
        "stage": planned.name,
        "kind": planned.kind.name,
        "run_id": "r1",
        "spec": identity(planned.spec),
        "parents": {},
        "inputs": {},
        "facts": {},
        "created_s": 0.0,
    }
    return Record(**values | changes)


def plan_with(workflow: Workflow, records: list[Record]) -> Plan:
    found = {one.fingerprint: one for one in records}
    return make_plan(workflow, KINDS, found.get, Path(), records)


def made_by(workflow: Workflow) -> list[Record]:
    """Records as they stand after a run of the workflow."""
    plan = plan_with(workflow, [])
    records: list[Record] = []
    for stage in plan.stages:
        inputs = {key: plan[source].fingerprint for key, source in stage.spec.inputs.items()}
        records.append(record(stage, inputs=inputs))
    return records


def decisions(plan: Plan) -> dict[str, Decision]:
    return {stage.name: stage.decision for stage in plan.stages}


def test_what_was_never_made_is_to_be_run() -> None:
    plan = plan_with(parse(CHAIN), [])
    assert decisions(plan) == {"corpus": RUN, "capitals": RUN, "report": RUN}
    assert {stage.reason for stage in plan.stages} == {"was never run"}


def test_what_was_made_is_a_cache_hit_that_names_the_run() -> None:
    plan = plan_with(parse(CHAIN), made_by(parse(CHAIN)))
    assert set(decisions(plan).values()) == {HIT}
    assert plan["report"].reason == "made by run r1"
    assert plan["report"].record is not None


def test_renaming_a_stage_is_a_cache_hit() -> None:
    renamed = CHAIN.replace("  corpus:\n", "  letters:\n").replace("{corpus: corpus", "{corpus: letters")
    assert set(decisions(plan_with(parse(renamed), made_by(parse(CHAIN)))).values()) == {HIT}


@given(st.permutations(["corpus", "capitals", "report"]), st.text("ab \n", max_size=9))
def test_moving_stages_and_remarks_about_is_a_cache_hit(order: list[str], remark: str) -> None:
    stages = re.split(r"^(?=  \w)", CHAIN, flags=re.MULTILINE)[1:]
    blocks = {stage.split(":")[0].strip(): stage for stage in stages}
    remarks = "".join(f"# {line}\n" for line in remark.split("\n"))
    moved = f"{remarks}version: 1\nname: other\nstages:\n" + remarks.join(blocks[name] for name in order)
    assert set(decisions(plan_with(parse(moved), made_by(parse(CHAIN)))).values()) == {HIT}


def test_another_layout_is_a_cache_hit() -> None:
    other = parse(CHAIN, "corpus.workers=8", "corpus.run.retries=9", "corpus.options.lanes=4")
    assert set(decisions(plan_with(other, made_by(parse(CHAIN)))).values()) == {HIT}


def test_a_change_is_named_and_runs_whatever_reads_from_it() -> None:
    plan = plan_with(parse(CHAIN, "corpus.times=3"), made_by(parse(CHAIN)))
    assert decisions(plan) == {"corpus": RUN, "capitals": RUN, "report": RUN}
    assert plan["corpus"].reason == "times: 1 → 3"
    assert plan["capitals"].reason == "input corpus changed"
    assert plan["report"].reason == "input corpus changed; input checkpoint changed"


def test_a_renamed_input_is_not_called_a_change() -> None:
    renamed = CHAIN.replace("  corpus:\n", "  letters:\n").replace("{corpus: corpus", "{corpus: letters")
    plan = plan_with(parse(renamed, "letters.text=x"), made_by(parse(CHAIN)))
    assert plan["capitals"].reason == "input corpus changed"


def test_changed_outside_data_is_named() -> None:
    plan = plan_with(parse(CHAIN, "corpus.outside=d2"), made_by(parse(CHAIN)))
    assert plan["corpus"].reason == "its outside data changed"


def test_the_newest_earlier_run_is_what_is_compared_with() -> None:
    newest, older = made_by(parse(CHAIN, "corpus.times=2")), made_by(parse(CHAIN, "corpus.times=9"))
    assert plan_with(parse(CHAIN), newest + older)["corpus"].reason == "times: 2 → 1"


def test_a_stage_whose_input_is_gone_may_be_a_hit_all_the_same() -> None:
    records = [one for one in made_by(parse(CHAIN)) if one.stage != "corpus"]
    assert decisions(plan_with(parse(CHAIN), records)) == {"corpus": RUN, "capitals": HIT, "report": HIT}


def test_what_can_not_work_blocks_whatever_reads_from_it() -> None:
    plan = plan_with(parse(CHAIN, "corpus.workers=65"), [])
    assert decisions(plan) == {"corpus": BLOCKED, "capitals": BLOCKED, "report": BLOCKED}
    assert plan["corpus"].error is not None
    assert plan["corpus"].error.cause == "no cluster has so many workers"
    assert plan["report"].reason == "corpus is blocked"
    assert plan.cpus == 0


def test_what_is_to_run_needs_what_its_kind_says_and_what_was_made_does_not() -> None:
    def needs(name: str, stages: Any, has: Any) -> None:
        if not has("proof"):
            raise EaglerayError(f"no proof of {name} among {len(stages)}")

    workflow, made = parse(CHAIN), made_by(parse(CHAIN))
    kind = workflow.stages["capitals"].kind
    kinds = {**KINDS, kind: dataclasses.replace(KINDS[kind], needs=needs)}

    def found(*records: Record) -> Plan:
        return make_plan(workflow, kinds, {one.fingerprint: one for one in records}.get, Path())

    refused = found(made[0])["capitals"]
    assert (refused.decision, refused.reason) == (BLOCKED, "no proof of capitals among 3")
    proof = made[0].model_copy(update={"fingerprint": "proof"})
    assert found(made[0], proof)["capitals"].decision is RUN
    assert decisions(found(*made)) == {"corpus": HIT, "capitals": HIT, "report": HIT}


def test_a_stage_done_for_its_effect_always_runs() -> None:
    text = f"{CHAIN}  tell:\n    kind: announce\n    inputs: {{report: report}}\n"
    assert decisions(plan_with(parse(text), made_by(parse(text))))["tell"] is RUN


def test_the_value_of_a_secret_decides_nothing() -> None:
    once = parse(CHAIN, "corpus.text=${env:TOKEN}", env={"TOKEN": "one"})
    again = parse(CHAIN, "corpus.text=${env:TOKEN}", env={"TOKEN": "two"})
    assert set(decisions(plan_with(again, made_by(once))).values()) == {HIT}
    assert all("one" not in record.model_dump_json() for record in made_by(once))


def test_the_largest_stage_that_runs_says_how_many_cpus_are_needed() -> None:
    workflow = parse(CHAIN, "corpus.run.num_cpus=7", "capitals.run.num_cpus=3")
    assert plan_with(workflow, []).cpus == 7
    records = [one for one in made_by(workflow) if one.stage == "corpus"]
    assert plan_with(workflow, records).cpus == 3


def test_planning_leaves_nothing_behind(home: Home) -> None:
    home.plan(parse(CHAIN))
    assert not (home.path / "store").exists()


def test_a_plan_has_no_stage_of_another_name() -> None:
    with pytest.raises(StopIteration):
        plan_with(parse(CHAIN), [])["nothing"]
