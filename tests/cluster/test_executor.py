"""RayExecutor on a real Ray: each attempt is a task in a process of its own."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import ray

from eagleray.cluster.executor import RayExecutor
from eagleray.workflows.engine import Update
from eagleray.workflows.task import StageTask

DEADLINE_S = 60.0


@pytest.fixture(scope="module")
def executor(ray_cluster: None) -> Iterator[RayExecutor]:
    with closing(RayExecutor()) as executor:
        yield executor


@pytest.fixture
def make_task(tmp_path: Path) -> Callable[..., StageTask]:
    from trial_stages.trial import TrialSpec

    def make(name: str, **fields: object) -> StageTask:
        return StageTask(
            run_id="r1",
            stage=name,
            spec=TrialSpec.model_validate(fields),
            fingerprint=f"f-{name}",
            inputs={},
            packages=("trial_stages",),
            store=str(tmp_path / "store"),
            home=tmp_path,
            secrets={},
        )

    return make


def until_ended(executor: RayExecutor, *stages: str) -> list[Update]:
    """Every update until each of the stages has ended."""
    waiting, updates = set(stages), list[Update]()
    deadline = time.monotonic() + DEADLINE_S
    while waiting:
        assert time.monotonic() < deadline, f"{waiting} did not end"
        for update in executor.poll(0.2):
            updates.append(update)
            if update.record or update.failure:
                waiting.remove(update.stage)
    return updates


def pid_of(home: Path) -> int:
    """The process of the latest attempt, once it has begun."""
    attempts = home / "downloads" / "attempts"
    deadline = time.monotonic() + DEADLINE_S
    while not attempts.exists() or not attempts.read_text():
        assert time.monotonic() < deadline, "it did not begin"
        time.sleep(0.05)
    return int(attempts.read_text().split()[-1])


def has_ended(pid: int) -> bool:
    deadline = time.monotonic() + 20.0
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


def test_every_event_arrives_in_order_and_before_the_end(
    executor: RayExecutor, make_task: Callable[..., StageTask]
) -> None:
    executor.submit(make_task("one", times=300))
    executor.submit(make_task("two", times=200))
    updates = until_ended(executor, "one", "two")
    for stage, times in (("one", 300), ("two", 200)):
        own = [update for update in updates if update.stage == stage]
        assert own[-1].failure is None
        assert [update.fields["step"] for update in own[:-1]] == list(range(1, times + 1))
        assert own[-1].record is not None
        assert own[-1].record.facts["times"] == times


def test_each_attempt_has_a_process_of_its_own(
    executor: RayExecutor, make_task: Callable[..., StageTask]
) -> None:
    pids: set[int] = set()
    for name in ("one", "two"):
        executor.submit(make_task(name))
        record = until_ended(executor, name)[-1].record
        assert record is not None
        pids.add(record.facts["pid"])
    assert len(pids) == 2
    assert os.getpid() not in pids


@pytest.mark.parametrize(
    ("do", "retryable", "words"),
    [
        ("die", True, ["killed"]),
        ("refuse", False, ["stages.first", "the picture is square", "→ give it corners"]),
        ("pass", True, ["the line is busy", "→ try later"]),
        ("break", True, ["ValueError: a number was odd"]),
        ("unpicklable", True, ["UnpicklableError", "it holds a lock"]),
        ("nested", False, ["the picture is round\n  → cut it"]),
        ("exit", True, []),
    ],
)
def test_a_failure_says_what_happened_and_whether_to_try_again(
    executor: RayExecutor, make_task: Callable[..., StageTask], do: str, retryable: bool, words: list[str]
) -> None:
    executor.submit(make_task(do, do=do))
    failure = until_ended(executor, do)[-1].failure
    assert failure is not None
    assert failure.retryable is retryable
    assert failure.details
    assert failure.message
    assert [word for word in words if word not in failure.message] == [], (failure.message, failure.details)


def test_events_of_a_killed_process_are_kept(
    executor: RayExecutor, make_task: Callable[..., StageTask]
) -> None:
    executor.submit(make_task("die", do="die", times=5))
    updates = until_ended(executor, "die")
    assert [update.fields["step"] for update in updates[:-1]] == [1, 2, 3, 4, 5]


def test_cancelling_ends_the_process_and_nothing_more_is_heard_of_it(
    executor: RayExecutor, make_task: Callable[..., StageTask], tmp_path: Path
) -> None:
    executor.submit(make_task("held", hold_until=str(tmp_path / "never")))
    pid = pid_of(tmp_path)
    executor.cancel("held")
    assert has_ended(pid)
    executor.submit(make_task("other"))
    assert {update.stage for update in until_ended(executor, "other")} == {"other"}


def test_closing_ends_what_still_runs(
    ray_cluster: None, make_task: Callable[..., StageTask], tmp_path: Path
) -> None:
    executor = RayExecutor()
    executor.submit(make_task("held", hold_until=str(tmp_path / "never")))
    pid = pid_of(tmp_path)
    executor.close()
    assert has_ended(pid)


def test_a_run_goes_on_without_the_process_that_carried_its_events(
    ray_cluster: None, make_task: Callable[..., StageTask], tmp_path: Path
) -> None:
    with closing(RayExecutor()) as executor:
        executor.submit(make_task("held", hold_until=str(tmp_path / "go")))
        pid_of(tmp_path)
        queue = executor._queue.actor
        os.kill(ray.get(queue.__ray_call__.remote(lambda actor: os.getpid())), signal.SIGKILL)
        (tmp_path / "go").touch()
        assert until_ended(executor, "held")[-1].record is not None
