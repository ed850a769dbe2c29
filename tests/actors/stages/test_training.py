"""Stages `pretrain`, `finetune` and `evaluate` on real Ray Train workers."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from eagleray.actors.serving.spec import TextPolicy
from eagleray.actors.stages.evaluate import EvaluateSpec, evaluate
from eagleray.actors.stages.export import ExportSpec, export
from eagleray.actors.stages.finetune import FinetuneSpec, finetune
from eagleray.actors.stages.pretrain import PretrainSpec, pretrain
from eagleray.actors.training.checkpoint import load_model
from eagleray.pipelines.ledger import verify_checkpoint
from eagleray.workflows.artifacts import Checkpoint, Corpus
from eagleray.workflows.errors import EaglerayError

from ..conftest import MODEL, _context

COMMIT_TIMEOUT_S = 60
FIELDS: dict[str, Any] = {"batch_size": 8, "steps": 5, "checkpoint_every": 2}


@dataclass(frozen=True)
class FileEmit:
    """Writes events to a file, from any process; kills the one that reports step `kill_at`, once.

    It waits until Ray Train has committed a checkpoint, as a longer step would have.
    """

    path: Path
    kill_at: int = 0
    committed: Path = Path()

    def __call__(self, event: str, /, **fields: Any) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"event": event, **fields}) + "\n")
        killed = self.path.with_suffix(".killed")
        if self.kill_at and fields.get("step") == self.kill_at and not killed.exists():
            killed.touch()
            deadline = time.monotonic() + COMMIT_TIMEOUT_S
            while not self.committed.exists() and time.monotonic() < deadline:
                time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGKILL)

    def of(self, event: str) -> list[dict[str, Any]]:
        return [e for e in map(json.loads, self.path.read_text().splitlines()) if e["event"] == event]


@pytest.fixture(scope="module")
def corpus(corpus_folder: Path) -> Corpus:
    return Corpus(corpus_folder, "d" * 64, "f", {})


@pytest.fixture(scope="module")
def trained(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, FileEmit]:
    """A checkpoint of two workers, one of which was killed on the way."""
    work = tmp_path_factory.mktemp("pretrain")
    snapshot = work / "scratch" / "train" / "checkpoint_manager_snapshot.json"
    emit = FileEmit(work / "events", kill_at=3, committed=snapshot)
    context = dataclasses.replace(_context(work, "pretrain"), emit=emit)
    spec = PretrainSpec.model_validate({**FIELDS, "model": MODEL.model_dump(), "parallel": {"data": 2}})
    facts = pretrain.function(context, spec, corpus=corpus)
    return Checkpoint(work / "pretrain", "c" * 64, "f", dict(facts or {})), emit


def test_a_killed_worker_is_replaced_and_training_goes_on_from_the_last_checkpoint(trained):
    _, emit = trained
    assert [e["step"] for e in emit.of("progress")] == [1, 2, 3, 3, 4, 5]
    *told, last = [e["message"] for e in emit.of("log")]
    assert last == "goes on from step 2"
    assert all("rank 0" in message for message in told)  # by the other one, if it still could
    before, after = (e["metrics"]["loss"] for e in emit.of("progress")[2:4])
    assert before == pytest.approx(after, abs=1e-6)


def test_after_a_crash_the_ledger_has_every_record_as_often_as_the_order_says(trained, corpus):
    checkpoint, _ = trained
    found = verify_checkpoint(checkpoint.path, corpus.path)
    assert found["used"] == FIELDS["steps"] * FIELDS["batch_size"]
    assert found["entries"] == 3  # at steps 2, 4 and 5
    assert found["each_at_most"] - found["each_at_least"] <= 1


def test_a_ledger_of_another_corpus_is_refused(trained, corpus, tmp_path):
    shutil.copytree(corpus.path, tmp_path / "corpus")
    described = tmp_path / "corpus" / "corpus.json"
    described.write_text(described.read_text() + "\n")
    with pytest.raises(EaglerayError, match="another corpus"):
        verify_checkpoint(trained[0].path, tmp_path / "corpus")


def test_progress_tells_loss_speed_and_time_left(trained):
    last = trained[1].of("progress")[-1]
    assert last["total"] == FIELDS["steps"]
    assert {"loss", "contrastive", "samples_per_s", "left_s", "grad_norm"} <= set(last["metrics"])
    assert last["metrics"]["left_s"] == 0


def test_finetuning_goes_on_from_the_checkpoint_and_evaluation_measures_it(trained, corpus, make_context):
    checkpoint, _ = trained
    context = make_context("finetune")
    spec = FinetuneSpec.model_validate({**FIELDS, "steps": 1, "optimizer": {"learning_rate": 1e-5}})
    facts = finetune.function(context, spec, corpus=corpus, checkpoint=checkpoint)
    before, after = load_model(checkpoint.path).state_dict(), load_model(context.output).state_dict()
    for name, weight in before.items():
        torch.testing.assert_close(after[name], weight, rtol=0, atol=1e-4)
    assert any(not torch.equal(after[name], weight) for name, weight in before.items())

    tuned = Checkpoint(context.output, "e" * 64, "f", dict(facts or {}))
    context = make_context("evaluate")
    report = evaluate.function(
        context,
        EvaluateSpec(split="train", resamples=100, groups={"roses": "rose"}, moderation=TextPolicy()),
        corpus=corpus,
        checkpoint=tuned,
    )
    assert json.loads((context.output / "report.json").read_text()) == report
    rows = {row["name"]: row for row in report["metrics"]}
    flagged = rows.pop("texts flagged by moderation")
    assert {one["name"] for one in flagged["parts"]} == {"group roses", "language en", "language es"}
    assert sum(one["queries"] for one in flagged["parts"][1:]) == flagged["queries"]
    assert flagged["value"] == 0
    assert [one["name"] for one in rows["recall@1 speech→image"]["parts"]] == ["group roses", "language es"]
    assert [one["name"] for one in rows["recall@1 image→caption"]["parts"]] == ["group roses"]
    assert len(rows) == 6 * 3 + 1
    for row in rows.values():
        assert 0 <= row["low"] <= row["value"] <= row["high"] <= 1
        assert 0 < row["chance"] <= 1


def test_a_corpus_with_another_tokenizer_is_refused_with_the_input_that_mends_it(
    trained, corpus_folder, make_context, tmp_path
):
    folder = shutil.copytree(corpus_folder, tmp_path / "corpus")
    (folder / "tokenizer.json").write_text("{}")
    given = {"corpus": Corpus(folder, "d" * 64, "f", {}), "checkpoint": trained[0]}
    for kind, spec in ((finetune, FinetuneSpec(steps=1)), (evaluate, EvaluateSpec()), (export, ExportSpec())):
        with pytest.raises(EaglerayError, match="has another tokenizer"):
            kind.function(make_context(kind.name), spec, **given)


def test_an_empty_split_is_refused_by_name(trained, corpus, make_context):
    assert json.loads((corpus.path / "corpus.json").read_text())["splits"]["val"]["records"] == 0
    with pytest.raises(EaglerayError, match="no record in its val split"):
        evaluate.function(
            make_context("evaluate"),
            EvaluateSpec(split="val"),
            corpus=corpus,
            checkpoint=trained[0],
        )


def test_a_mesh_that_cannot_work_is_refused_when_the_plan_is_made():
    spec = PretrainSpec.model_validate({"parallel": {"tensor": 3}})
    assert pretrain.check is not None
    with pytest.raises(EaglerayError, match="tensor=3"):
        pretrain.check("pretrain", spec)
