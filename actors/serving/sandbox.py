"""Processes that decode what strangers send, with nothing but some memory and some time (see `sandboxed`)."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Sequence

from safetensors import SafetensorError
from safetensors.numpy import load

from ...pipelines.media.prepare import Arrays
from ...pipelines.spec import Preparation
from .inputs import TASKS, Task, modality_of
from .messages import Problem, Refusal, refusal
from .sandboxed import ANSWERED, ARRAYS, ASKED, READY, too_much
from .spec import LimitsSpec

START_TIMEOUT_S = 60.0
MAX_ANSWER_BYTES = 1 << 28
_KEPT = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR")
"""What of the environment they have; secrets stand in others."""


class Sandbox:
    """Opens pictures and speech in processes of its own; one that fails or takes too long is replaced.

    Args:
        preparation: of the corpus.
        limits: memory and time for each file, and what a file may be.
        processes: that open files side by side.

    Attributes:
        seconds: of a CPU that a file takes, on average.
    """

    def __init__(self, preparation: Preparation, limits: LimitsSpec, processes: int) -> None:
        self._limits = limits
        self._command = (
            *(sys.executable, "-P", "-m", f"{__package__}.sandboxed"),
            *(preparation.model_dump_json(), limits.model_dump_json()),
        )
        self.seconds, self._is_closed = 0.0, False
        self._all = {_Cell(self._command) for _ in range(processes)}
        self._idle: asyncio.Queue[_Cell] = asyncio.Queue()
        for cell in self._all:
            self._idle.put_nowait(cell)
        self._going: set[asyncio.Task[Arrays | Refusal]] = set()

    async def open(self, task: Task, sent: bytes) -> Arrays | Refusal:
        """See `inputs.open_media`."""
        cell = await self._idle.get()
        try:
            if cell.has_ended:  # while it had nothing to do, so not by this file
                cell = self._replace(cell)
        except OSError:  # no process can be started
            self._idle.put_nowait(cell)
            raise
        going = asyncio.create_task(self._open_in(cell, task, sent))
        self._going.add(going)
        going.add_done_callback(self._going.discard)
        return await asyncio.shield(going)  # whoever asked may be gone, and the process answers all the same

    def wait(self) -> None:
        """Wait until all are ready.

        Raises:
            RuntimeError: when one does not start.
        """
        for cell in self._all:
            cell.wait()

    def close(self) -> None:
        """End the processes."""
        self._is_closed = True
        for cell in self._all:
            cell.end()

    async def _open_in(self, cell: _Cell, task: Task, sent: bytes) -> Arrays | Refusal:
        try:
            await cell.ready()
            async with asyncio.timeout(self._limits.decode_timeout_s):
                seconds, found = await cell.ask(task, sent)
        except _NotReadyError:
            cell = self._replace(cell)
            return refusal(503, "not-ready", "nothing can be decoded yet", "try again", retry_after_s=1)
        except TimeoutError:
            cell = self._replace(cell)
            return too_much(task, f"{self._limits.decode_timeout_s:g} s")
        except (OSError, SafetensorError, ValueError):  # it ended, or what it sent can't be read
            cell = self._replace(cell)
            return refusal(422, f"undecodable-{modality_of(task)}", "decoding it failed", "encode it again")
        except BaseException:
            cell = self._replace(cell)
            raise
        finally:
            self._idle.put_nowait(cell)
        self.seconds += 0.02 * (seconds - self.seconds)
        return found

    def _replace(self, cell: _Cell) -> _Cell:
        cell.end()
        if self._is_closed:
            return cell
        fresh = _Cell(self._command)
        self._all = {*self._all - {cell}, fresh}
        return fresh


class _NotReadyError(RuntimeError):
    """A process does not start."""


class _Cell:
    """One process."""

    def __init__(self, command: Sequence[str]) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
            path = os.pathsep.join(one for one in sys.path if one)
            self._process = subprocess.Popen(
                command,
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env={**environment, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            )
        self._is_ready = False

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def wait(self) -> None:
        self._socket.settimeout(START_TIMEOUT_S)
        try:
            said = READY if self._is_ready else self._socket.recv(1)
        except OSError:
            said = b""
        if said != READY:
            raise _NotReadyError("a process that decodes pictures and speech did not start")
        self._is_ready = True
        self._socket.setblocking(False)

    async def ready(self) -> None:
        if not self._is_ready:
            await asyncio.to_thread(self.wait)

    async def ask(self, task: Task, sent: bytes) -> tuple[float, Arrays | Refusal]:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(self._socket, ASKED.pack(TASKS.index(task), len(sent)))
        await loop.sock_sendall(self._socket, sent)
        kind, seconds, length = ANSWERED.unpack(await self._receive(ANSWERED.size))
        if length > MAX_ANSWER_BYTES:
            raise ValueError("it sends more than an answer can be")
        body = await self._receive(length)
        if kind == ARRAYS:
            return seconds, load(body)
        status, _, problem = body.partition(b" ")
        return seconds, Refusal(int(status), Problem.model_validate_json(problem))

    async def _receive(self, length: int) -> bytes:
        loop, data = asyncio.get_running_loop(), bytearray(length)
        view, done = memoryview(data), 0
        while done < length:
            count = await loop.sock_recv_into(self._socket, view[done:])
            if not count:
                raise ConnectionResetError("the process ended")
            done += count
        return bytes(data)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._socket.close()
