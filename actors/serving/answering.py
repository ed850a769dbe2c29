"""The decoder replica: answers join a running batch as they come, and are told token by token."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field

from ...pipelines.bundle import GRAPH_INPUTS, Arrays, LoadedBundle, Modality
from .autoscaling import ARRIVALS, CAPACITY, Arrivals
from .decoding import Answer, AnswerBatch, Floats, Piece, Sampling
from .measuring import Work
from .scaling import Pace
from .tracing import current, joins_trace, start

Parts = Mapping[Modality, Arrays]
"""Modality → what the encoder made of it: hidden states and their mask."""


@dataclass(frozen=True)
class Answered:
    """A whole answer.

    Attributes:
        pieces: its tokens.
        weights: modality → weight of what was found there.
        maps: modality → how much was found at each position (N,).
        seconds: it took, waiting included.
    """

    pieces: tuple[Piece, ...]
    weights: Mapping[str, float]
    maps: Mapping[str, Floats]
    seconds: float

    @property
    def text(self) -> str:
        """What it says."""
        return "".join(piece.text for piece in self.pieces).strip()


@dataclass(eq=False)  # who waits is told from others, not compared
class _Waiting:
    parts: Parts
    kind: int
    sampling: Sampling
    pieces: asyncio.Queue[Piece | Exception] = field(default_factory=asyncio.Queue[Piece | Exception])
    answer: Answer | None = None


class Decoder:
    """One replica: a batch that goes on token by token in one thread for as long as somebody waits.

    Args:
        open_bundle: opens the bundle, on the machine where the replica runs.
        max_batch_size: answers that are decoded side by side.
        computing: the thread to compute in; one of its own by default.
    """

    def __init__(
        self,
        open_bundle: Callable[[], LoadedBundle],
        max_batch_size: int,
        computing: ThreadPoolExecutor | None = None,
    ) -> None:
        self._bundle = open_bundle()
        self._decoding = self._bundle.decoding
        self._batch = AnswerBatch(self._bundle)
        self._size = max_batch_size
        self._computing = computing or ThreadPoolExecutor(1, "compute")
        self._waiting: deque[_Waiting] = deque()
        self._going: dict[Answer, _Waiting] = {}
        self._gone: deque[Answer] = deque()
        self._running: asyncio.Task[None] | None = None
        self._arrivals = Arrivals()
        self._pace = Pace(max_batch_size)
        self._work = Work()
        self._tokens = float(self._batch.max_tokens) / 2  # of an answer, on average
        self._warm_up()

    @joins_trace
    async def answer(self, parts: Parts, question: str, sampling: Sampling) -> Answered:
        """Answer, all at once."""
        async with aclosing(self.stream(parts, question, sampling)) as stream:
            async for told in stream:
                if isinstance(told, Answered):
                    return told
        raise AssertionError("a stream ends with the whole answer")

    @joins_trace
    async def stream(
        self, parts: Parts, question: str, sampling: Sampling
    ) -> AsyncGenerator[Piece | Answered]:
        """Tell the answer's tokens as they are found, and then the whole.

        Args:
            parts: what it is to be found in.
            question: what is asked, for its type.
            sampling: how tokens are chosen.
        """
        begun, first = time.monotonic(), 0.0
        self._arrivals.add()
        kind = self._decoding.question_type(question)
        waiting = _Waiting(parts, kind, sampling)
        trace = current()
        span = start(trace, "decode") if trace else None  # a generator goes on in many contexts
        self._waiting.append(waiting)
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())
        try:
            while True:
                piece = await waiting.pieces.get()
                if isinstance(piece, Exception):
                    raise piece
                first = first or time.monotonic()
                yield piece
                if piece.end is not None:
                    break
            answer = waiting.answer
            assert answer is not None
            self._tokens += 0.1 * (len(answer.pieces) - self._tokens)
            weights: dict[str, float] = dict(zip(GRAPH_INPUTS, answer.weights.tolist(), strict=True))
            seconds = time.monotonic() - begun
            self._work.answered(len(answer.pieces))
            self._work.took("first-token", "answer", first - begun)
            self._work.took("decode", "answer", seconds)
            yield Answered(tuple(answer.pieces), weights, answer.maps, seconds)
        finally:  # whoever asked may be gone
            if span is not None:
                span.set_attribute("tokens", len(waiting.answer.pieces) if waiting.answer else 0)
                span.end()
            if waiting in self._waiting:
                self._waiting.remove(waiting)
            elif waiting.answer is not None:
                self._gone.append(waiting.answer)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Tell Serve's autoscaler what came lately, and what could have."""
        return {ARRIVALS: self._arrivals.per_s, CAPACITY: self._pace.capacity}

    async def _run(self) -> None:
        """Go on until nobody waits any more."""
        loop = asyncio.get_running_loop()
        while self._waiting or self._batch.answers:
            room = self._size - len(self._batch.answers)
            new = [self._waiting.popleft() for _ in range(min(room, len(self._waiting)))]
            try:
                for answer, piece in await loop.run_in_executor(self._computing, self._advance, new):
                    self._going[answer].pieces.put_nowait(piece)
                    if piece.end is not None:
                        del self._going[answer]
            except Exception as error:
                for waiting in (*self._going.values(), *(one for one in new if one.answer is None)):
                    waiting.pieces.put_nowait(error)
                self._going.clear()
                self._batch = AnswerBatch(self._bundle)

    def _advance(self, new: list[_Waiting]) -> list[tuple[Answer, Piece]]:
        """Take new ones in, and go on by a token."""
        begun = time.monotonic()
        while self._gone:
            answer = self._gone.popleft()
            self._batch.leave(answer)
            self._going.pop(answer, None)
        if new:
            evidence = self._bundle.gather([one.parts for one in new], [one.kind for one in new])
            answers = self._batch.join(evidence, [one.sampling for one in new])
            for waiting, answer in zip(new, answers, strict=True):
                waiting.answer = answer
                self._going[answer] = waiting
            self._work.ran("answer", len(self._batch.answers))
        if not self._batch.answers:
            return []
        rows = len(self._batch.answers)
        told = self._batch.step()
        self._pace.add(rows, (time.monotonic() - begun) * self._tokens)
        return told

    def _warm_up(self) -> None:
        """Decode a small batch and a full one, before a request does, and see what they take."""
        nothing: Parts = {}
        for rows in (1, self._size):
            batch = AnswerBatch(self._bundle)
            batch.join(self._bundle.gather([nothing] * rows, [-1] * rows), [Sampling(3)] * rows)
            batch.step()  # the first run of a shape makes room for it
            begun = time.monotonic()
            batch.step()
            self._pace.add(rows, (time.monotonic() - begun) * self._tokens)
