"""Gloo process groups to train in."""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp


def spawn(function: Callable[..., Any], world_size: int, *arguments: Any) -> list[Any]:
    """Call `function(rank, *arguments)` in gloo processes, and return what each returned."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = mp.get_context("spawn")
    results = context.SimpleQueue()
    processes = [
        context.Process(target=_enter, args=(results, rank, world_size, port, function, arguments))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    answers: dict[int, Any] = {}
    for _ in processes:
        rank, answer, error = results.get()
        if error:
            for process in processes:
                process.kill()
            raise AssertionError(f"rank {rank}:\n{error}")
        answers[rank] = answer
    for process in processes:
        process.join()
    return [answers[rank] for rank in range(world_size)]


def _enter(results: Any, rank: int, world_size: int, port: int, function: Any, arguments: Any) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world_size)
    try:
        results.put((rank, function(rank, *arguments), None))
    except BaseException:
        results.put((rank, None, traceback.format_exc()))
    torch.distributed.destroy_process_group()


def losses(
    rank: int, job: Any, restore: Path | None = None, save: Path | None = None
) -> list[dict[str, float]]:
    """Train, and return every step's terms and gradient norm; checkpoints go to `save`/STEP."""
    from eagleray.actors.training.loop import Trainer
    from eagleray.pipelines.ledger import verify

    trainer = Trainer(job)
    if restore is not None:
        trainer.restore(restore)
    reports: list[dict[str, float]] = []
    trainer.run(
        lambda report: reports.append({**report.terms, "grad_norm": report.grad_norm}),
        lambda trainer, report: trainer.save(save / str(trainer.step)) if save is not None else None,
    )
    verify(trainer.ledger, trainer.reader.ids_of)
    assert trainer.ledger.stop == job.spec.steps * job.spec.batch_size
    return reports
