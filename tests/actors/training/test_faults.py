"""A worker that dies, hangs, fails or has other rows is found by the others, who say which and where."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch.multiprocessing as mp
from torch import distributed as dist

from eagleray.actors.training import loop
from eagleray.actors.training.loop import Trainer, TrainingJob

from .conftest import job_of

TIMEOUT_S = 6
FOUND_WITHIN_S = 30
BAD = 1


def dies() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def is_stopped() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def sleeps() -> None:
    time.sleep(10 * FOUND_WITHIN_S)


def fails() -> None:
    raise ValueError("it is broken")


def work(rank: int, size: int, folder: Path, job: TrainingJob, fault: Callable[[], None]) -> None:
    """Train until the fault happens to the bad worker after its second step; note what is said of it."""
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=TIMEOUT_S),
    )
    torch.set_num_threads(1)
    trainer = Trainer(job)

    def on_step(report):
        if rank == BAD and report.step == 2:
            (folder / "happened").touch()
            fault()

    try:
        trainer.run(on_step, lambda trainer, report: None)
    except Exception as error:
        (folder / f"rank-{rank}").write_text(str(error))


def train(folder: Path, job: TrainingJob, fault: Callable[[], None]) -> tuple[list[str], float]:
    """What each worker but the bad one says, and how long after the fault the last one did."""
    size = job.spec.parallel.num_workers
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["eagleray.actors.training.loop"])
    processes = [
        context.Process(target=work, args=(rank, size, folder, job, fault), daemon=True)
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    others = [process for rank, process in enumerate(processes) if rank != BAD]
    for process in others:
        process.join(60)
    processes[BAD].kill()
    processes[BAD].join()
    assert not any(process.is_alive() for process in others)
    happened = (folder / "happened").stat().st_mtime
    said = [folder / f"rank-{rank}" for rank in range(size) if rank != BAD]
    return [path.read_text() for path in said], max(path.stat().st_mtime for path in said) - happened


SILENT = "a worker does not answer any more: last seen was {worker}"


@pytest.mark.parametrize(
    "parallel", [{"data": 2}, {"pipeline": 2, "microbatches": 2}], ids=["data", "pipeline"]
)
@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (dies, SILENT),
        (is_stopped, SILENT),
        (sleeps, "the others wait for {worker}"),
        (fails, "{worker}"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_fault_is_found_and_told(corpus_folder, tmp_path, fault, expected, parallel):
    job = job_of(corpus_folder, timeout_s=TIMEOUT_S, **parallel)
    (said,), took_s = train(tmp_path, job, fault)
    worker = f"rank 1 of 2 ({next(iter(parallel))} 1) in step 2, telling of it, its last collectives: number "
    assert said.startswith(expected.format(worker=worker))
    assert "raise parallel.timeout_s" in said
    if fault is fails:
        assert ": it is broken" in said
    assert took_s < FOUND_WITHIN_S


def other_rows(rank: int, size: int, folder: Path, job: TrainingJob) -> None:
    steps = loop.worker_steps

    def cut(*arguments):
        for step in steps(*arguments):
            if rank == BAD:
                batch = step.passes[0][0]
                batch["tokens"] = batch["tokens"][:, :-1]
            yield step

    with patch.object(loop, "worker_steps", cut):
        work(rank, size, folder, job, fails)


def test_workers_with_other_rows_are_named(corpus_folder, tmp_path):
    job = job_of(corpus_folder, timeout_s=TIMEOUT_S, data=2)
    context = mp.get_context("forkserver")
    processes = [
        context.Process(target=other_rows, args=(rank, 2, tmp_path, job), daemon=True) for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    for rank in range(2):
        said = (tmp_path / f"rank-{rank}").read_text()
        assert said.startswith("workers disagree on their rows: tokens is ((4, ")
        assert "at rank 1, ((4, " in said
        assert "give all nodes the same corpus" in said
