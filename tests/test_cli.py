"""The commands as a user types them: real processes, a real Ray, and stages that do as they are asked."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import eagleray
from eagleray.cluster import local

ROOT = Path(eagleray.__file__).parent
EAGLERAY = str(Path(sys.executable).parent / "eagleray")
CPUS = max(os.cpu_count() or 1, 4) + 1  # what a `run` asks for at least
FLOW = """\
version: 1
name: "[flow] of two"
stages:
  first:
    kind: trial
  second:
    kind: copy
    inputs: {corpus: first}
"""
LOADED = """
import atexit, sys
from eagleray.cli import main
atexit.register(lambda: print("LOADED", [name for name in ("ray", "torch") if name in sys.modules]))
main()
"""


@dataclass(frozen=True)
class Shell:
    """A folder with a workflow, and the environment in which commands run."""

    folder: Path
    environment: dict[str, str]

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def __call__(self, *words: str, code: int | None = 0, **environment: str) -> Any:
        """Run a command to its end; its exit code must be that one."""
        done = subprocess.run(
            [EAGLERAY, *words],
            cwd=self.folder,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert code is None or done.returncode == code, done.stdout + done.stderr
        return done

    def json(self, *words: str) -> Any:
        return json.loads(self(*words, "--json").stdout)

    def begin(self, *words: str) -> subprocess.Popen[str]:
        """Start a command; its output goes to a pipe."""
        return subprocess.Popen(
            [EAGLERAY, *words],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def attempts(self) -> list[tuple[str, int]]:
        """Stage and process of every attempt."""
        path = self.home / "downloads" / "attempts"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(line.split()[0], int(line.split()[1])) for line in lines]

    def wait_for(self, stage: str, since: int) -> int:
        """The process of a stage that has begun after so many attempts."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            for name, pid in self.attempts()[since:]:
                if name == stage:
                    return pid
            time.sleep(0.05)
        raise AssertionError(f"{stage} did not begin")


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """A home whose cluster is up, as if another run used it."""
    folder = tmp_path_factory.mktemp("cli")
    info = folder / "extension" / "trial_extension-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: trial-extension\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[eagleray.stages]\ntrial = trial_stages\n")
    (folder / "flow.yaml").write_text(FLOW)
    path = os.pathsep.join([str(info.parent), str(ROOT / "tests" / "cluster" / "packages")])
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "EAGLERAY_"))}
    environment = {**kept, "PYTHONPATH": path, "EAGLERAY_HOME": str(folder / "home"), "COLUMNS": "80"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        with local.use(folder / "home", CPUS, lambda _: None, lambda _: False):
            yield Shell(folder, environment)


@pytest.fixture(scope="module")
def finished(shell: Shell) -> str:
    """The id of a run that succeeded."""
    done = shell("run", "flow.yaml", "--set", "first.times=4")
    assert done.stderr == ""
    return shell.json("runs")[-1]["run"]


def is_running(pid: int) -> bool:
    return local._is_alive(pid)


def wait_until_ended(pid: int) -> None:
    deadline = time.monotonic() + 30
    while is_running(pid):
        assert time.monotonic() < deadline, f"process {pid} goes on"
        time.sleep(0.1)


def loaded_by(shell: Shell, *words: str) -> str:
    """What a command prints, and then which of Ray and torch it has loaded."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *words],
        env=shell.environment,
        cwd=shell.folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_help_and_plan_load_no_more_than_they_need(shell: Shell) -> None:
    for words in (["--help"], ["plan", "flow.yaml"]):
        assert loaded_by(shell, *words).splitlines()[-1] == "LOADED []"
    quickstart = str(ROOT / "examples" / "quickstart.yaml")
    assert loaded_by(shell, "plan", quickstart).splitlines()[-1] == "LOADED ['torch']"  # to trace the model


def test_plan_says_what_would_run_and_makes_nothing(shell: Shell, tmp_path: Path) -> None:
    rows = shell.json("plan", "flow.yaml", "--home", str(tmp_path / "new"))
    assert [(row["stage"], row["decision"]) for row in rows] == [("first", "RUN"), ("second", "RUN")]
    assert not (tmp_path / "new").exists()


def test_plan_foretells_what_a_training_takes(shell: Shell) -> None:
    example = str(ROOT / "examples" / "pretrain-3d.yaml")
    row = next(row for row in shell.json("plan", example, "--device", "h100") if row["stage"] == "pretrain")
    found = row["estimate"]
    assert [sorted(worker) for worker in found["workers"]] == 2 * [["flops", "memory", "sent", "waits"]]
    assert all(worker["sent"]["tensor"] > 0 for worker in found["workers"])
    assert found["total_s"] == pytest.approx(20 * found["step_s"])
    said = shell("plan", example, "--device", "a100", "--devices", "4").stdout
    assert "pretrain on 2×2×2, 4 microbatches, zero-bubble" in said
    assert "20 steps on 8 × A100 SXM, 80 GB: at the least" in said
    assert "the mesh needs 8 devices, and there are 4" in said
    large = ["pretrain.model.preset=base", "pretrain.batch_size=65536", "corpus.preparation.image_size=256"]
    more = ["corpus.preparation.stored_image_size=256", "pretrain.precision=bf16"]
    words = [word for one in (*large, *more) for word in ("--set", one)]
    assert "it does not fit: " in shell("plan", example, "--device", "h100", *words).stdout


def test_plan_does_not_guess_what_a_training_of_unknown_sizes_takes(shell: Shell) -> None:
    weights = TRAINED.replace("checkpoint: first", "checkpoint: weights")
    (shell.folder / "later.yaml").write_text(weights + "  weights: {kind: import-weights, path: nowhere}\n")
    row = next(row for row in shell.json("plan", "later.yaml") if row["stage"] == "second")
    assert "estimate" not in row


def test_a_run_shows_where_it_stands_from_begin_to_end(shell: Shell, finished: str) -> None:
    status = shell.json("status", finished)
    assert status["state"] == "succeeded"
    assert [(s["stage"], s["state"], s["attempt"]) for s in status["stages"]] == [
        ("first", "succeeded", 1),
        ("second", "succeeded", 1),
    ]
    assert status["stages"][0]["facts"]["times"] == 4
    text = shell("status", finished).stdout
    assert "[flow] of two: succeeded" in text  # no markup is read into a name
    assert "4/4" in text
    row = next(row for row in shell.json("runs") if row["run"] == finished)
    assert (row["state"], row["stages_done"], row["set"]) == ("succeeded", "2/2", "first.times=4")


def test_logs_tell_the_events_in_order_and_follow_ends_with_the_run(shell: Shell, finished: str) -> None:
    events = [json.loads(line) for line in shell("logs", finished, "--json", "-f").stdout.splitlines()]
    assert events[0]["event"] == "plan"
    assert events[-1]["state"] == "succeeded"
    steps = [e["step"] for e in events if e["stage"] == "first" and e["event"] == "progress"]
    assert steps == [1, 2, 3, 4]
    only = shell("logs", finished, "--stage", "second").stdout
    assert "second" in only
    assert "first" not in only


def test_the_workers_of_this_machine_import_this_very_code(shell: Shell, finished: str) -> None:
    facts = shell.json("status", finished)["stages"][0]["facts"]
    assert facts["file"] == str(ROOT / "__init__.py")


def test_a_run_that_is_cached_whole_starts_no_ray(shell: Shell, finished: str) -> None:
    before = shell.attempts()
    said = loaded_by(shell, "run", "flow.yaml", "--set", "first.times=4")
    assert said.splitlines()[-1] == "LOADED []"
    assert "succeeded" in said
    assert shell.attempts() == before
    assert [row["decision"] for row in shell.json("plan", "flow.yaml", "--set", "first.times=4")] == [
        "HIT"
    ] * 2


def test_a_killed_run_is_interrupted_and_resume_does_only_what_is_left(shell: Shell) -> None:
    began, gate = len(shell.attempts()), shell.folder / "gate"
    run = shell.begin("run", "flow.yaml", "--set", "first.times=5", "--set", f"second.hold_until={gate}")
    stage = shell.wait_for("second", began)
    run.kill()
    run.wait()
    status = shell.json("status")
    assert status["state"] == "interrupted"
    assert [s["state"] for s in status["stages"]] == ["succeeded", "interrupted"]
    assert "eagleray resume" in shell("status").stdout
    wait_until_ended(stage)  # its process does not go on without anyone
    gate.touch()
    shell("resume")
    assert shell.json("status")["state"] == "succeeded"
    assert [name for name, _ in shell.attempts()[began:]] == ["first", "second", "second"]
    shell("resume", status["run"])
    assert len(shell.attempts()) == began + 3


@pytest.mark.parametrize("how", ["cancel", "SIGINT", "SIGTERM"])
def test_a_run_that_is_ended_says_so_and_can_be_resumed(shell: Shell, how: str) -> None:
    began = len(shell.attempts())
    run = shell.begin("run", "flow.yaml", "--set", f"first.hold_until={shell.folder / 'never'}", "--set",
                      f"first.times={10 + len(how)}")  # fmt: skip
    stage = shell.wait_for("first", began)
    if how == "cancel":
        assert "cancelled" in shell("cancel").stdout
        assert "does not run" in shell("cancel", code=1).stderr
    else:
        run.send_signal(getattr(signal, how))
    output, _ = run.communicate(timeout=60)
    assert run.returncode == 130, output
    assert "Traceback" not in output
    assert "eagleray resume" in output
    status = shell.json("status")
    assert (status["state"], status["stages"][0]["state"]) == ("cancelled", "cancelled")
    wait_until_ended(stage)
    assert shell.json("plan", "flow.yaml")  # the home is still usable


def test_a_failed_stage_is_told_once_with_its_remedy(shell: Shell) -> None:
    done = shell("run", "flow.yaml", "--set", "first.do=refuse", code=1)
    assert done.stderr.count("the picture is square") == 1
    assert "→ give it corners" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert "trial.py" not in done.stderr
    assert "eagleray resume" in done.stderr
    states = [s["state"] for s in shell.json("status")["stages"]]
    assert states == ["failed", "blocked"]
    assert "trial.py" in shell("--debug", "resume", code=1).stderr  # where in the stage it failed


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "nowhere.yaml"], "there is no such file"),
        (["run", "flw.yaml"], "did you mean flow.yaml?"),
        (["run", "."], "can't be read"),
        (["run", "flow.yaml", "--set", "first.tims=4"], "times"),
        (["run", "flow.yaml", "--set", "frist.times=4"], "first"),
        (["run", "flow.yaml", "--set", "first.times=many"], "--set first.times=many"),
        (["plan", "flow.yaml", "--set", "times"], "STAGE.FIELD=VALUE"),
        (["status", "20000101"], "there is no run '20000101'"),
        (["resume", "xyz"], "there is no run"),
        (["logs", "xyz"], "there is no run"),
        (["cancel", "xyz"], "there is no run"),
        (["serve", "xyz"], "there is no run"),
        (["corpora", "fetch", "tuxpain"], "did you mean tuxpaint?"),
        (["stages", "pretrian"], "pretrain"),
        (["run", "flow.yaml", "--set", "first.times=7", "--address", "127.0.0.1:1"], "no Ray cluster"),
        (["submit", "flow.yaml", "--address", "http://127.0.0.1:1"], "no Jobs API answers"),
        (["submit", "nowhere.yaml", "--address", "http://127.0.0.1:1"], "there is no such file"),
        (["runs", "--database", "postgresql+psycopg://127.0.0.1:1/x"], "the run log can't be used"),
        (["down"], "a command that goes on"),
    ],
)  # fmt: skip
def test_a_mistake_is_explained_once_without_a_traceback(shell: Shell, words: list[str], said: str) -> None:
    done = shell(*words, code=1)
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert "fault of Eagleray" not in done.stderr
    assert done.stderr.startswith("error: ")
    assert "Traceback" in shell("--debug", *words, code=1).stderr


def test_a_run_without_a_bundle_can_not_be_served(shell: Shell, finished: str) -> None:
    assert "has made no bundle" in shell("serve", finished, code=1).stderr


@pytest.mark.parametrize(
    "words",
    [
        ["runs"],
        ["status"],
        ["plan", "flow.yaml"],
        ["stages"],
        ["stages", "trial"],
        ["corpora", "list"],
        ["corpora", "list", "pictures"],
        ["corpora", "operators"],
        ["corpora", "operators", "image-size"],
    ],
)
def test_everything_that_prints_a_table_prints_json(shell: Shell, finished: str, words: list[str]) -> None:
    assert shell.json(*words)
    assert "\x1b" not in shell(*words).stdout  # a pipe gets no colours


TRAINED = """\
version: 1
name: trained
stages:
  corpus: {kind: preprocess, source: {kind: tuxpaint}}
  first:
    kind: pretrain
    inputs: {corpus: corpus}
    objective: {classification: 1.0}
    parallel: {data: 2}
    model: {text: null, audio: null, decoder: null, vision: {depths: [1], num_heads: [2]}}
  second: {kind: finetune, inputs: {corpus: corpus, checkpoint: first}, objective: {classification: 1.0}}
"""


def test_certify_holds_every_training_to_one_process(shell: Shell) -> None:
    (shell.folder / "trained.yaml").write_text(TRAINED)
    rows = shell.json("certify", "trained.yaml")
    assert [(row["stage"], row["mesh"]) for row in rows[::4]] == [
        ("first", "2×1×1"),
        ("second", "1×1×1"),
    ]
    assert all(row["holds"] and float(row["difference"]) <= 1e-12 for row in rows)
    again = shell("certify", "trained.yaml", "--set", "first.steps=7", "--json")
    assert "2×1×1 has the certificate" in again.stderr
    assert json.loads(again.stdout) == rows


def test_a_mesh_is_trained_on_only_with_a_certificate_or_if_that_is_waived(shell: Shell) -> None:
    (shell.folder / "mesh.yaml").write_text(TRAINED.replace("data: 2", "data: 2, microbatches: 2"))

    def decisions(*words: str) -> dict[str, tuple[str, str]]:
        rows = shell.json("plan", "mesh.yaml", *words)
        return {row["stage"]: (row["decision"], row["reason"]) for row in rows}

    before = decisions()
    assert before["first"][0] == before["second"][0] == "BLOCKED"
    assert "nothing proves yet that 2×1×1, 2 microbatches, 1f1b computes" in before["first"][1]
    said = shell("run", "mesh.yaml", code=1).stderr
    assert "`eagleray certify` the same spec" in said
    assert decisions("--set", "first.uncertified=true")["first"][0] == "RUN"
    shell("certify", "mesh.yaml")
    assert decisions()["first"][0] == decisions("--set", "first.steps=7")["first"][0] == "RUN"
    other = decisions("--set", "first.model.vision.num_heads=[1]")
    assert other["first"][0] == "BLOCKED"


def test_certify_asks_for_the_model_that_only_a_run_would_tell(shell: Shell) -> None:
    weights = TRAINED.replace("checkpoint: first", "checkpoint: weights")
    (shell.folder / "weights.yaml").write_text(weights + "  weights: {kind: import-weights, path: nowhere}\n")
    said = shell("certify", "weights.yaml", "--set", "first.parallel.data=1", code=1).stderr
    assert "what second trains is known only once weights has run" in said
    assert "write its sizes down as second.model" in said


def test_the_schema_knows_the_stage_kinds(shell: Shell) -> None:
    text = shell("schema").stdout
    assert json.loads(text)["type"] == "object"
    assert '"trial"' in text


def test_lines_in_a_pipe_are_not_wrapped(shell: Shell, finished: str) -> None:
    lines = shell("plan", "flow.yaml", "--set", "first.times=4", COLUMNS="20").stdout.splitlines()
    assert len(lines) == 3


def test_a_cluster_elsewhere_runs_the_code_that_was_shipped(shell: Shell) -> None:
    cluster = local.running(shell.home)
    assert cluster is not None
    token = local.client_environment(shell.home)
    there = ("--home", str(shell.folder / "there"))
    shell("run", "flow.yaml", "--address", cluster.address, *there, **token)
    file = shell.json("status", *there)["stages"][0]["facts"]["file"]
    assert file.startswith(cluster.folder)
    assert file.endswith("eagleray/__init__.py")
    assert local.running(shell.home) == cluster


def test_plan_says_whether_a_cluster_can_hold_the_workers(shell: Shell, finished: str) -> None:
    cluster = local.running(shell.home)
    assert cluster is not None
    token = local.client_environment(shell.home)
    spec = str(ROOT / "examples" / "pretrain-3d.yaml")
    there = ("--address", cluster.address, "--set", f"pretrain.parallel.cpus_per_worker={cluster.num_cpus}")
    said = shell("plan", spec, *there, **token).stdout
    assert f"can never hold 8 workers of {cluster.num_cpus} CPU beside the stage's own task: 0 fit" in said
    fits = ("--address", cluster.address, "--set", "pretrain.parallel.cpus_per_worker=0.1")
    assert "the cluster can hold its workers (machines: 1)" in shell("plan", spec, *fits, **token).stdout
    rows = json.loads(shell("plan", spec, *fits, "--json", **token).stdout)
    row = next(row for row in rows if row["stage"] == "pretrain")
    assert row["estimate"]["misplaced"] == ""


def test_a_submitted_workflow_runs_as_a_job_with_its_log_here(shell: Shell) -> None:
    cluster = local.running(shell.home)
    assert cluster is not None
    token = local.client_environment(shell.home)
    there = ("--home", str(shell.folder / "job"))
    done = shell(
        "submit", "flow.yaml", "--set", "first.times=6", "--address", cluster.dashboard, *there, **token
    )
    assert "second succeeded" in done.stdout
    status = shell.json("status", *there)
    assert status["state"] == "succeeded"
    assert status["stages"][0]["facts"]["times"] == 6
    assert status["stages"][0]["facts"]["file"].startswith(cluster.folder)


def test_tokens_are_shown_once_listed_and_revoked(shell: Shell) -> None:
    sent = shell("tokens", "create", "ann", "--scope", "search", "--days", "7").stdout.strip()
    assert sent.startswith("eagleray.")
    (row,) = shell.json("tokens", "list")
    assert (row["name"], row["scopes"], row["id"]) == ("ann", "search", sent.split(".")[1])
    assert "there are: embed, search" in shell("tokens", "create", "bob", "--scope", "all", code=1).stderr
    assert "revoked" in shell("tokens", "revoke", row["id"]).stdout
    assert shell.json("tokens", "list") == []
