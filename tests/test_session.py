"""A session: what the commands have in common."""

from __future__ import annotations

from pathlib import Path

import pytest

from eagleray.session import Session
from eagleray.workflows.errors import EaglerayError

SPEC = """\
version: 1
name: flow
stages:
  corpus:
    kind: preprocess
    source: {kind: tuxpaint}
  evaluate:
    kind: evaluate
    inputs: {corpus: corpus, checkpoint: pretrain}
  pretrain:
    kind: pretrain
    inputs: {corpus: corpus}
    steps: 2
"""


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "flow.yaml"
    path.write_text(SPEC)
    return path


def test_every_stage_kind_of_the_house_is_found(tmp_path: Path) -> None:
    assert {"preprocess", "pretrain", "finetune", "evaluate", "export", "serve"} <= set(
        Session(tmp_path).kinds
    )


def test_planning_leaves_nothing_behind(tmp_path: Path, spec: Path) -> None:
    session = Session(tmp_path / "home")
    plan = session.plan(session.load(spec, []))
    assert [stage.name for stage in plan.stages] == ["corpus", "pretrain", "evaluate"]
    assert not (tmp_path / "home").exists()


def test_a_run_is_taken_up_from_its_log_without_its_file(tmp_path: Path, spec: Path) -> None:
    session = Session(tmp_path / "home")
    run = session.prepare(session.load(spec, ["pretrain.steps=3"]))
    spec.unlink()
    again = Session(tmp_path / "home").prepare_again(run.id)
    assert again.id == run.id
    assert [s.fingerprint for s in again.plan.stages] == [s.fingerprint for s in run.plan.stages]
    assert again.workflow.overrides == ("pretrain.steps=3",)


def test_a_workflow_that_can_not_work_begins_no_run(tmp_path: Path, spec: Path) -> None:
    session = Session(tmp_path / "home")
    with pytest.raises(EaglerayError):
        session.prepare(session.load(spec, ["pretrain.mesh.tensor=3"]))
    assert session.log.runs() == []


def test_a_home_may_be_named_by_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Session(Path("~/x")).home == tmp_path / "x"
    monkeypatch.chdir(tmp_path)
    assert Session(Path("x")).home == tmp_path / "x"
