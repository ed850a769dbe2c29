"""Stages as Ray tasks; their events come back through a queue, in order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError, WorkerCrashedError
from ray.util.queue import Queue

from ..workflows.engine import Failure, Update
from ..workflows.errors import EaglerayError
from ..workflows.store import Record
from ..workflows.task import StageTask, run_task


@dataclass(frozen=True)
class QueueEmit:
    """Puts a stage's events into a queue, from any process of the cluster. Picklable."""

    queue: Queue
    stage: str
    attempt: int

    def __call__(self, event: str, /, **fields: Any) -> None:  # noqa: ANN401
        """Emit one event."""
        self.queue.put((self.stage, self.attempt, event, fields))


class RayExecutor:
    """Runs each attempt as a Ray task of the connected cluster, in a process of its own."""

    def __init__(self) -> None:
        self.num_cpus = float(ray.cluster_resources().get("CPU", 0))
        # it may lie on any node, which a run must survive
        self._queue = Queue(actor_options={"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1})
        self._running: dict[ray.ObjectRef[Any], tuple[str, int]] = {}
        self._attempts = 0

    def submit(self, task: StageTask) -> None:
        """Start an attempt."""
        self._attempts += 1
        attempt = ray.remote(max_calls=1, max_retries=0)(run_task)  # the engine retries, in a new process
        name = f"{task.stage} of run {task.run_id}"
        reference = attempt.options(num_cpus=task.spec.run.num_cpus, name=name).remote(
            task, QueueEmit(self._queue, task.stage, self._attempts)
        )
        self._running[reference] = task.stage, self._attempts

    def poll(self, timeout_s: float) -> list[Update]:
        """Wait for updates, at most so long; a stage's end comes after all of its events."""
        done: list[ray.ObjectRef[Any]] = []
        if self._running:
            done, _ = ray.wait(list(self._running), timeout=timeout_s)
        live = {attempt for _, attempt in self._running.values()}
        waiting = self._queue.qsize()
        events = self._queue.get_nowait_batch(waiting) if waiting else []
        updates = [
            Update(stage, event, fields) for stage, attempt, event, fields in events if attempt in live
        ]
        return updates + [self._ended(reference) for reference in done]

    def cancel(self, stage: str) -> None:
        """End a running attempt with its workers; nothing is heard of it afterwards."""
        for reference, (name, _) in list(self._running.items()):
            if name == stage:
                del self._running[reference]
                ray.cancel(reference, force=True)  # what it owns (training workers, readers) ends with it

    def close(self) -> None:
        """End what still runs, and the queue."""
        for stage, _ in list(self._running.values()):
            self.cancel(stage)
        self._queue.shutdown(force=True)

    def _ended(self, reference: ray.ObjectRef[Any]) -> Update:
        stage, _ = self._running.pop(reference)
        try:
            record: Record = ray.get(reference)
        except RayTaskError as error:
            return Update(stage, failure=_failure(error))
        except WorkerCrashedError as error:
            message = "its process was killed, perhaps for lack of memory"
            return Update(stage, failure=Failure(message, retryable=True, details=str(error)))
        except RayError as error:
            message = str(error).strip().splitlines()[0]
            return Update(stage, failure=Failure(message, retryable=True, details=str(error)))
        return Update(stage, record=record)


def _failure(error: RayTaskError) -> Failure:
    cause: BaseException = error
    while isinstance(cause, RayTaskError):  # one for each task that the error passed through
        cause = cause.cause
    if isinstance(cause, EaglerayError):
        return Failure(str(cause), retryable=cause.retryable, details=str(error))
    if isinstance(cause, RayError):  # of Ray itself: it could not import the code, or not send the error
        return Failure(str(error).strip().splitlines()[-1].strip(), retryable=True, details=str(error))
    return Failure(f"{type(cause).__name__}: {cause}", retryable=True, details=str(error))
