from __future__ import annotations

import math
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from workflow_harness import CHAIN, parse

from eagleray.workflows import runs
from eagleray.workflows.errors import EaglerayError
from eagleray.workflows.events import Event, derive_status
from eagleray.workflows.runs import STALE_AFTER_S, RunLog, TakenError
from eagleray.workflows.state import State


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database of its own: a file of SQLite, and one of a real Postgres server where there is one."""
    if request.param == "postgres":
        return request.getfixturevalue("postgres")()
    return f"sqlite:///{tmp_path / 'not' / 'there yet' / 'runs.db'}"


@pytest.fixture
def log(url: str) -> RunLog:
    return RunLog(url)


def state(stage: str | None, value: State, **fields: Any) -> tuple[str | None, str, dict[str, Any]]:
    return stage, "state", {"state": value.value, **fields}


PLAN = (None, "plan", {"stages": {"corpus": "write", "capitals": "upper"}})


# ── the log ────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_is_found_with_all_that_it_was_started_with(log: RunLog) -> None:
    workflow = parse(CHAIN + "# 日本語 é 🦅\n", "corpus.text=ü", "corpus.times=2")
    info = log.find(log.create(workflow))
    assert (info.workflow, info.filename, info.text) == ("chain", "flow.yaml", workflow.text)
    assert info.overrides == ("corpus.text=ü", "corpus.times=2")
    assert parse(info.text, *info.overrides).stages == workflow.stages


def test_events_come_back_in_order_and_as_they_were(log: RunLog) -> None:
    run_id, other = log.create(parse(CHAIN)), log.create(parse(CHAIN))
    fields = {"text": "a\0b 🦅 \ud800", "deep": [{"n": None}], "big": 2**70, "loss": 0.1, "none": {}}
    log.append(run_id, [PLAN, ("corpus", "progress", fields)])
    log.append(other, [PLAN])
    log.append(run_id, [state("corpus", State.RUNNING)])
    log.append(run_id, [])
    events = log.events(run_id)
    assert [(e.stage, e.event) for e in events] == [
        (None, "plan"),
        ("corpus", "progress"),
        ("corpus", "state"),
    ]
    assert events[1].fields == fields
    assert [e.number for e in events] == sorted(e.number for e in events)
    assert log.events(run_id, after=events[1].number) == events[2:]


def test_a_loss_that_is_no_number_is_logged_as_that(log: RunLog) -> None:
    run_id = log.create(parse(CHAIN))
    log.append(run_id, [("corpus", "progress", {"metrics": {"loss": float("nan"), "norm": float("inf")}})])
    metrics = log.events(run_id)[0].fields["metrics"]
    assert math.isnan(metrics["loss"])
    assert metrics["norm"] == math.inf


def test_twenty_thousand_events_go_in_at_once_and_come_out_in_order(log: RunLog) -> None:
    run_id = log.create(parse(CHAIN))
    log.append(
        run_id, [PLAN, *(("corpus", "progress", {"step": step, "total": 20_000}) for step in range(20_000))]
    )
    assert [event.fields["step"] for event in log.events(run_id)[1:]] == list(range(20_000))
    assert log.status(run_id).stages["corpus"].progress["step"] == 19_999


def test_a_run_is_found_by_the_beginning_of_its_id(log: RunLog) -> None:
    first, last = log.create(parse(CHAIN)), log.create(parse(CHAIN))
    assert log.find(first).id == first
    assert log.find("last").id == last
    assert [info.id for info in log.runs()] == [last, first]
    assert [info.id for info in log.runs(limit=1)] == [last]
    with pytest.raises(EaglerayError, match="several runs begin with '20'"):
        log.find("20")
    for name in ("nothing", "%", "_" * len(first)):
        with pytest.raises(EaglerayError, match=f"the newest: {last}, {first}"):
            log.find(name)


def test_where_no_run_was_started_that_is_said(log: RunLog) -> None:
    assert log.runs() == []
    for name in ("last", "2026"):
        with pytest.raises(EaglerayError, match="no run was started with this home yet"):
            log.find(name)


def test_many_processes_may_begin_with_a_database_at_once(url: str) -> None:
    barrier = threading.Barrier(8)
    results: list[Any] = []

    def begin() -> None:
        barrier.wait()
        try:
            log = RunLog(url)
            run_id = log.create(parse(CHAIN))
            for _ in range(5):
                log.append(run_id, [PLAN])
            results.append(len(log.events(run_id)))
        except Exception as error:
            results.append(error)

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [5] * 8


# ── who carries a run out ──────────────────────────────────────────────────────────────────────────

CLAIM = """
import sys, time
from eagleray.workflows.runs import RunLog
log = RunLog(sys.argv[1])
log.claim(sys.argv[2])
log.append(sys.argv[2], [(None, "plan", {"stages": {"corpus": "write", "capitals": "upper"}}),
                         ("corpus", "state", {"state": "succeeded"}),
                         ("capitals", "state", {"state": "running"})])
print("claimed", flush=True)
time.sleep(600)
"""


def test_a_run_is_one_processs_until_that_is_killed(log: RunLog, url: str) -> None:
    run_id = log.create(parse(CHAIN))
    with subprocess.Popen(
        [sys.executable, "-c", CLAIM, url, run_id], stdout=subprocess.PIPE, text=True
    ) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "claimed\n"
            assert log.status(run_id).state is State.RUNNING
            with pytest.raises(TakenError, match=f"by process {other.pid} on {socket.gethostname()}"):
                log.claim(run_id)
            with pytest.raises(TakenError):
                log.beat(run_id)
            log.release(run_id)  # of one who has not got it: nothing happens
            assert log.status(run_id).state is State.RUNNING
        finally:
            other.kill()
    status = log.status(run_id)
    assert (status.state, status.reason) == (State.INTERRUPTED, "its process is gone")
    assert status.stages["corpus"].state is State.SUCCEEDED
    assert status.stages["capitals"].state is State.INTERRUPTED
    log.claim(run_id)
    assert log.status(run_id).state is State.RUNNING


def elsewhere(monkeypatch: pytest.MonkeyPatch, host: str = "elsewhere") -> None:
    monkeypatch.setattr(runs.socket, "gethostname", lambda: host)


def test_a_process_of_another_machine_has_a_run_while_it_gives_signs_of_life(
    log: RunLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id, now = log.create(parse(CHAIN)), time.time()
    with monkeypatch.context() as there:
        elsewhere(there)
        log.claim(run_id)
        log.append(run_id, [PLAN])
    with monkeypatch.context() as later:
        later.setattr(runs.time, "time", lambda: now + STALE_AFTER_S - 1)
        with pytest.raises(TakenError, match="on elsewhere"):
            log.claim(run_id)
    with monkeypatch.context() as there:
        elsewhere(there)
        there.setattr(runs.time, "time", lambda: now + STALE_AFTER_S)
        log.beat(run_id)
    monkeypatch.setattr(runs.time, "time", lambda: now + STALE_AFTER_S * 2 - 1)
    assert log.status(run_id).state is State.RUNNING
    monkeypatch.setattr(runs.time, "time", lambda: now + STALE_AFTER_S * 2 + 1)
    assert log.status(run_id).state is State.INTERRUPTED
    log.claim(run_id)
    elsewhere(monkeypatch)
    with pytest.raises(TakenError):  # it seemed to be gone, wakes up, and finds the run another's
        log.beat(run_id)
    log.release(run_id)
    with pytest.raises(TakenError):
        log.claim(run_id)


def test_of_many_that_claim_a_run_at_once_one_has_it(
    url: str, log: RunLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = log.create(parse(CHAIN))
    barrier = threading.Barrier(8)
    # Each thread stands for a process of a machine of its own.
    monkeypatch.setattr(runs, "_me", lambda: f"{threading.current_thread().name}:1")
    got: list[str] = []
    errors: list[Exception] = []

    def claim() -> None:
        mine = RunLog(url)
        barrier.wait()
        try:
            mine.claim(run_id)
            got.append(threading.current_thread().name)
        except TakenError:
            pass
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=claim, name=f"host{number}") for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(got) == 1


def test_a_released_run_can_be_claimed_and_one_may_claim_twice(log: RunLog) -> None:
    run_id = log.create(parse(CHAIN))
    log.claim(run_id)
    log.claim(run_id)
    log.beat(run_id)
    log.append(run_id, [PLAN, state(None, State.SUCCEEDED)])
    log.release(run_id)
    assert log.status(run_id).state is State.SUCCEEDED
    log.claim(run_id)


def test_a_cancel_counts_until_the_run_is_taken_up_again(log: RunLog) -> None:
    run_id = log.create(parse(CHAIN))
    assert not log.is_cancelled(run_id)
    log.append(run_id, [PLAN, state("corpus", State.RUNNING)])
    assert not log.is_cancelled(run_id)
    log.append(run_id, [(None, "cancel", {}), ("corpus", "log", {"message": "more"})])
    assert log.is_cancelled(run_id)
    log.append(run_id, [PLAN])
    assert not log.is_cancelled(run_id)


# ── databases that can't be used ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:hunter22@127.0.0.1:1/db",
        "postgres://me:hunter22@host/db",
        "mysql://me:hunter22@host/db",
        "me:hunter22@host/db",
        "sqlite:////proc/nothing/runs.db",
        "sqlite:////",
        "",
        "://",
    ],
)
def test_a_database_that_can_not_be_reached_is_one_error_without_its_password(url: str) -> None:
    with pytest.raises(EaglerayError, match="the run log can't be used") as caught:
        RunLog(url)
    assert "hunter22" not in str(caught.value)
    assert "hunter22" not in repr(caught.value)


def test_a_file_that_is_no_database_is_told_by_name(tmp_path: Path) -> None:
    (tmp_path / "runs.db").write_bytes(b"not a database" * 500)
    for path in (tmp_path, tmp_path / "runs.db"):
        with pytest.raises(EaglerayError, match="the run log can't be used") as caught:
            RunLog(f"sqlite:///{path}")
        assert str(path) in caught.value.where


def test_a_full_database_is_told_as_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = RunLog(f"sqlite:///{tmp_path / 'runs.db'}")
    run_id = log.create(parse(CHAIN))
    configure = runs._configure_sqlite

    def small(connection: Any, record: object) -> None:
        configure(connection, record)
        connection.execute("PRAGMA max_page_count=20")

    monkeypatch.setattr(runs, "_configure_sqlite", small)
    log = RunLog(f"sqlite:///{tmp_path / 'runs.db'}")
    with pytest.raises(EaglerayError, match="the disk is full"):
        log.append(run_id, [("corpus", "log", {"message": "x" * 100_000})])
    assert log.events(run_id) == []


def test_a_log_is_read_while_another_writes(tmp_path: Path) -> None:
    log = RunLog(f"sqlite:///{tmp_path / 'runs.db'}")
    run_id = log.create(parse(CHAIN))
    other = sqlite3.connect(tmp_path / "runs.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    other.execute("DELETE FROM runs")
    assert log.status(run_id).state is State.INTERRUPTED
    other.execute("ROLLBACK")
    other.close()


# ── where a run stands ─────────────────────────────────────────────────────────────────────────────

STAGES = ["corpus", "capitals", "unknown", None]
STATES = st.sampled_from(sorted(State))
EVENTS = st.lists(
    st.tuples(st.sampled_from(STAGES), st.just("state"), st.fixed_dictionaries({"state": STATES}))
    | st.tuples(
        st.sampled_from(STAGES), st.just("progress"), st.fixed_dictionaries({"step": st.integers(0, 9)})
    )
    | st.tuples(st.sampled_from(STAGES), st.sampled_from(["log", "cancel", "else"]), st.just({}))
    | st.just(PLAN),
    max_size=25,
)


def numbered(entries: list[Any]) -> list[Event]:
    return [Event(i, float(i), *entry) for i, entry in enumerate(entries, start=1)]


def test_a_run_of_which_nothing_is_logged_waits() -> None:
    assert derive_status([]).state is State.WAITING


@given(EVENTS)
def test_a_run_stands_where_its_last_events_say(entries: list[Any]) -> None:
    status = derive_status(numbered(entries))
    begun = max((i for i, entry in enumerate(entries) if entry == PLAN), default=None)
    later = [] if begun is None else entries[begun + 1 :]
    assert set(status.stages) == (set(PLAN[2]["stages"]) if begun is not None else set())
    for name, stage in status.stages.items():
        states = [fields["state"] for who, event, fields in later if (who, event) == (name, "state")]
        assert stage.state == (states[-1] if states else State.WAITING)
        assert stage.attempt == states.count(State.RUNNING)
        assert (stage.started_s is None) == (State.RUNNING not in states)
        if stage.started_s is not None and stage.ended_s is not None:
            assert stage.started_s < stage.ended_s
    whole = [fields["state"] for who, event, fields in later if (who, event) == (None, "state")]
    if begun is not None:
        assert status.state == (whole[-1] if whole else State.RUNNING)


@given(EVENTS, EVENTS)
def test_taking_a_run_up_forgets_where_it_stood(before: list[Any], after: list[Any]) -> None:
    # What is shown after a resume is the same as if the run had begun then, but for the clock.
    whole, fresh = numbered([*before, PLAN, *after]), numbered([PLAN, *after])
    shift = float(len(before))
    derived, expected = derive_status(whole), derive_status(fresh)
    assert derived.state == expected.state
    for name, stage in derived.stages.items():
        other = expected.stages[name]
        assert (stage.state, stage.attempt, stage.progress) == (other.state, other.attempt, other.progress)
        assert stage.started_s == (other.started_s if other.started_s is None else other.started_s + shift)


@given(EVENTS)
def test_the_status_of_a_run_is_what_all_its_events_tell(entries: list[Any]) -> None:
    log = RunLog("sqlite://")
    run_id = log.create(parse(CHAIN))
    log.claim(run_id)
    log.append(run_id, entries)
    assert log.status(run_id) == derive_status(log.events(run_id))


def test_a_new_attempt_begins_its_progress_anew() -> None:
    status = derive_status(
        numbered(
            [
                PLAN,
                state("corpus", State.RUNNING),
                ("corpus", "progress", {"step": 7}),
                state("corpus", State.RETRYING, reason="it broke", details="a traceback"),
            ]
        )
    )
    assert (status.stages["corpus"].reason, status.stages["corpus"].details) == ("it broke", "a traceback")
    status.stages["corpus"].apply(Event(9, 9.0, "corpus", "state", {"state": "running"}))
    assert status.stages["corpus"].progress == {}
    assert (status.stages["corpus"].attempt, status.stages["corpus"].reason) == (2, "")


@given(st.integers(0, 9))
def test_a_run_that_ends_while_it_is_looked_at_is_never_called_interrupted(moment: int) -> None:
    class Ending(RunLog):
        """The run's process writes its end and lets go between two questions to the database."""

        def __init__(self) -> None:
            super().__init__("sqlite://")
            self.questions = 0
            self.run_id = self.create(parse(CHAIN))
            self.claim(self.run_id)
            self.append(self.run_id, [PLAN])
            self.questions = 1

        def _read(self, query: Any) -> Any:
            if self.questions:
                self.questions += 1
                if self.questions == moment + 2:
                    self.questions = 0
                    self.append(self.run_id, [state(None, State.SUCCEEDED)])
                    self.release(self.run_id)
            return super()._read(query)

    log = Ending()
    assert log.status(log.run_id).state in (State.RUNNING, State.SUCCEEDED)
