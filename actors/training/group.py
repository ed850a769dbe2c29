"""A process group of this machine's processes, over gloo: for proofs, not for training."""

from __future__ import annotations

import os
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

PRELOADED = [f"{__package__}.{module}" for module in ("loop", "certifying")]


def run_group(function: Callable[..., Any], size: int, *arguments: Any) -> list[Any]:  # noqa: ANN401 - whatever it is
    """Call `function(rank, *arguments)` in `size` processes that form a group; returns what each returned.

    Args:
        function: of a module; called with a process group initialised.
        size: processes.
        arguments: picklable, as is what the function returns; tensors are better handed back as arrays.

    Raises:
        RuntimeError: with the first worker that failed, and its traceback; all others are ended.
    """
    import torch.multiprocessing as mp

    # forked from a process that has imported what takes long, and has done nothing else
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    answers: dict[int, Any] = {}
    with tempfile.TemporaryDirectory(prefix="eagleray-group-") as folder:
        meeting = str(Path(folder, "meeting"))
        workers: dict[Connection, tuple[int, Any]] = {}
        for rank in range(size):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(
                target=_enter, args=(theirs, rank, size, meeting, function, arguments), daemon=True
            )
            process.start()
            theirs.close()  # so that its end is seen when the process has died
            workers[ours] = rank, process
        try:
            waiting = set(workers)
            while waiting:
                for ready in wait(list(waiting)):
                    assert isinstance(ready, Connection)
                    rank, process = workers[ready]
                    try:
                        answer, error = ready.recv()
                    except EOFError:
                        process.join()
                        answer, error = None, f"its process ended with exit status {process.exitcode}"
                    if error is not None:
                        raise RuntimeError(f"worker {rank} of {size}: {error}")
                    answers[rank] = answer
                    waiting.remove(ready)
            for _, process in workers.values():
                process.join()
        finally:
            for connection, (_, process) in workers.items():
                process.kill()
                process.join()
                connection.close()
    return [answers[rank] for rank in range(size)]


def _enter(
    results: Connection,
    rank: int,
    size: int,
    meeting: str,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    import torch
    from torch import distributed as dist

    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # the group never leaves this machine
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
        results.send((function(rank, *arguments), None))
        dist.destroy_process_group()
    except BaseException:  # whatever it is, whoever waits must hear of it
        results.send((None, traceback.format_exc()))
