"""Workers that die, hang, fail or disagree: the others say who, where and when, instead of waiting.

Each worker writes down for the others what it does, and a beat, so that one that is stopped is told from one
that waits. Who waits longer than `parallel.timeout_s`, or loses the connection, reads what the others wrote.
"""

from __future__ import annotations

import json
import threading
import time
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from ...workflows.errors import EaglerayError

BEAT_S = 0.5
LISTEN_S = 4 * BEAT_S
"""How long a beat is listened for; who has none in that time is stopped or dead."""
AXES = ("data", "tensor", "pipeline")


class Fault(EaglerayError):
    """Something that another worker did or didn't do.

    Attributes:
        tells: whether this worker is the one to tell people, of all that found it.
    """

    tells = False


@dataclass(frozen=True)
class Doing:
    """What a worker does.

    Attributes:
        place: of it in the mesh, for people.
        step: that it is at.
        what: of a step, for people.
        sums: axis → sums, gathers and messages over it that it has begun so far.
        beat: counts up as long as it runs.
        error: what it failed with.
        waits: whether that was only that another didn't answer.
    """

    place: str
    step: int = 0
    what: str = "starting"
    sums: Mapping[str, int] = field(default_factory=dict[str, int])
    beat: int = 0
    error: str = ""
    waits: bool = False

    def __str__(self) -> str:
        found = [f"{count} over {axis}" for axis, count in self.sums.items() if count]
        last = f", its last collectives: number {', '.join(found)}" if found else ""
        return f"{self.place} in step {self.step}, {self.what}{last}"


class Board:
    """Where the workers of a mesh write down what they do.

    Args:
        mesh: see `build_mesh`.
    """

    def __init__(self, mesh: DeviceMesh) -> None:
        # the store that the group met at
        self._store = dist.distributed_c10d._get_default_store()  # pyright: ignore[reportPrivateUsage]
        self._rank, self._size = dist.get_rank(), dist.get_world_size()
        self._groups = {axis: mesh[axis].get_group() for axis in AXES if mesh[axis].size() > 1}
        where = ", ".join(f"{axis} {mesh[axis].get_local_rank()}" for axis in self._groups)
        self._doing = Doing(f"rank {self._rank} of {self._size}" + (f" ({where})" if where else ""))
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._beat, name="beat", daemon=True)
        if self._size > 1:
            self._write()
            self._thread.start()

    def note(self, step: int, what: str) -> None:
        """Write down what this worker does from now on."""
        with self._lock:
            self._doing = replace(self._doing, step=step, what=what)
        if self._size > 1:
            self._write()

    def close(self) -> None:
        """Beat no more."""
        self._ended.set()

    def explain(self, error: Exception) -> Exception:
        """What was wrong, as far as the others know, of an error that ended this worker's step."""
        if isinstance(error, EaglerayError) or self._size == 1:
            return error
        waits = _is_of_others(error)
        with self._lock:
            text = str(error).strip().splitlines()
            self._doing = replace(self._doing, error=text[-1] if text else type(error).__name__, waits=waits)
        with suppress(RuntimeError):  # the store is gone, and so is rank 0
            self._write()
        if not waits:
            return error
        before = self._read()
        time.sleep(LISTEN_S)
        after = self._read()
        return self._fault(before, after)

    def _fault(self, before: Mapping[int, Doing], after: Mapping[int, Doing]) -> Fault:
        failed = [one for one in after.values() if one.error and not one.waits]
        silent = [
            after.get(rank)
            for rank in range(self._size)
            if rank not in after or (rank in before and after[rank].beat == before[rank].beat)
        ]
        waiting = {rank: one for rank, one in after.items() if one.waits}
        if failed:
            cause = f"{failed[0]}: {failed[0].error}"
        elif not after:
            cause = "rank 0, where all workers meet, does not answer"
        elif silent:
            cause = f"a worker does not answer any more: last seen was {silent[0] or 'nothing of it'}"
        else:
            others = [one for one in after.values() if not one.waits] or list(waiting.values())
            behind = min(others, key=lambda one: (one.step, sum(one.sums.values())))
            cause = f"the others wait for {behind}"
        fault = Fault(
            cause,
            "training goes on from the last checkpoint as often as `worker_failures` says; if it only was "
            "slow, raise parallel.timeout_s",
        )
        fault.tells = self._rank == min(waiting, default=1)
        return fault

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_S):
            with self._lock:
                self._doing = replace(self._doing, beat=self._doing.beat + 1)
            with suppress(RuntimeError):
                self._write()

    def _write(self) -> None:
        sums = {
            axis: group._get_sequence_number_for_group()  # pyright: ignore[reportAttributeAccessIssue]
            for axis, group in self._groups.items()
        }
        with self._lock:
            self._doing = replace(self._doing, sums=sums)
            written = json.dumps(asdict(self._doing))
        self._store.set(self._key(self._rank), written)

    def _read(self) -> dict[int, Doing]:
        """What all have written; nothing if the store does not answer."""
        found: dict[int, Doing] = {}

        def read() -> None:
            with suppress(RuntimeError):
                for rank in range(self._size):
                    if self._store.check([self._key(rank)]):
                        found[rank] = Doing(**json.loads(self._store.get(self._key(rank))))

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        reader.join(LISTEN_S)
        return dict(found)

    def _key(self, rank: int) -> str:
        return f"eagleray/doing/{rank}"


def agree(passes: Sequence[Sequence[Mapping[str, Tensor]]]) -> None:
    """Refuse rows whose shapes are not the same on all workers, which call this together.

    Raises:
        EaglerayError: naming a worker and what it has.
    """
    shapes: dict[str, Any] = {
        name if number == 0 else f"{name} of group {number}": (tuple(tensor.shape), str(tensor.dtype))
        for number, batch in enumerate(batch for groups in passes for batch in groups)
        for name, tensor in sorted(batch.items())
    }
    digest = zlib.crc32(json.dumps(shapes).encode())
    ends = torch.tensor([digest, -digest])
    dist.all_reduce(ends, dist.ReduceOp.MAX)
    if ends[0] == -ends[1]:
        return
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, shapes)
    rank = next(rank for rank, theirs in enumerate(every) if theirs != every[0])
    ours, theirs = every[0], every[rank]
    name = next(name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name))
    raise EaglerayError(
        f"workers disagree on their rows: {name} is {theirs.get(name)} at rank {rank}, {ours.get(name)} at "
        "rank 0",
        "give all nodes the same corpus and the same version of Eagleray",
    )


def _is_of_others(error: Exception) -> bool:
    """Whether an error says no more than that another worker did not answer."""
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower()
