"""The encoder replica: encodes what waits together as one batch, and searches the index."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ...pipelines.assessing.spec import Assessment
from ...pipelines.bundle import (
    CLASS_LOGITS,
    EMBEDDING,
    GRAPH_INPUTS,
    STATES,
    TRANSCRIPT,
    Arrays,
    LoadedBundle,
    Modality,
    split,
)
from ...pipelines.index import Hit
from ...pipelines.media.image import Pixels
from ...pipelines.media.prepare import SEEN, SEEN_SIDE
from .assessing import Assessor
from .autoscaling import ARRIVALS, CAPACITY, Arrivals, mixed
from .drift import Drift, DriftResponse
from .inputs import Task, read_text, unwrap
from .measuring import Work
from .messages import AssessRequest, Input, Judgement, Refusal, refusal
from .moderating.models import Scorer, Scores
from .sandbox import Sandbox
from .scaling import Pace
from .spec import LimitsSpec
from .tracing import joins_trace, span

_T = TypeVar("_T")
_logger = logging.getLogger("ray.serve")


SHORT_TEXT = 2000
"""Characters that are tokenised without a thread."""


@dataclass(frozen=True)
class Observed:
    """What is found out about inputs for moderation.

    Attributes:
        said: what the speech says.
        nearest: the indexed pictures that are nearest to the picture.
        scores: of the picture, by category; None if there is none, or scoring it failed.
    """

    said: str = ""
    nearest: tuple[Hit, ...] = ()
    scores: Scores | None = None


@dataclass(frozen=True)
class Encoded:
    """What a decoder needs of some inputs.

    Attributes:
        parts: modality → its hidden states and their mask.
        prepare_s: seconds that decoding the inputs took, waiting included.
        encode_s: seconds that the graphs took, waiting included.
        observed: what moderation wants to know of them, which may be found out while an answer is decoded.
        remarks: what it remarks about them.
    """

    parts: Mapping[Modality, Arrays]
    prepare_s: float
    encode_s: float
    observed: Observed | Awaitable[Observed] = Observed()
    remarks: tuple[Judgement, ...] = ()


@dataclass(frozen=True)
class Segment:
    """What is said from one second of a recording to another."""

    start_s: float
    end_s: float
    text: str


@dataclass(frozen=True)
class Transcript:
    """What a recording says, in order."""

    segments: tuple[Segment, ...]

    @property
    def text(self) -> str:
        """All of it."""
        return " ".join(one.text for one in self.segments if one.text)


class Encoder:
    """One replica: a bundle in memory, one thread to compute, and processes to decode.

    Each modality has a queue. Whenever the thread is free it takes all that waits of the modality whose turn
    it is, up to a full batch: nobody waits for others that may not come, and under load batches fill up
    while the one before runs.

    Args:
        open_bundle: opens the bundle, on the machine where the replica runs.
        max_batch_size: rows that run together at the most.
        limits: of what is decoded.
        processes: that decode pictures and speech.
        pictures: makes what scores pictures for moderation; None is without.

    Attributes:
        modalities: that it encodes.
        computing: the thread that computes.
    """

    def __init__(
        self,
        open_bundle: Callable[[], LoadedBundle],
        max_batch_size: int,
        limits: LimitsSpec,
        processes: int,
        pictures: Callable[[], Scorer[Pixels]] | None = None,
    ) -> None:
        self._bundle = open_bundle()
        self._max_batch_size, self._limits = max_batch_size, limits
        self._files = 0.0  # share of pictures and recordings of what comes
        graphs = self._bundle.info.graphs
        self.modalities: list[Modality] = [modality for modality in GRAPH_INPUTS if modality in graphs]
        self._sandbox = Sandbox(self._bundle.info.preparation, limits, processes)
        self.computing = ThreadPoolExecutor(1, "compute")
        # beside the one that computes: ONNX Runtime lets go of Python's lock
        self._looking = ThreadPoolExecutor(1, "look")
        self._pictures = None if pictures is None else pictures()
        self._queues: dict[Modality, deque[_Row]] = {modality: deque() for modality in self.modalities}
        self._running: dict[Modality, asyncio.Task[None]] = {}
        self._batch_sizes: Counter[tuple[Modality, int]] = Counter()
        self._work, self._drift = Work(), Drift(self._bundle)
        self._pace = Pace(max_batch_size)
        self._arrivals = Arrivals()
        self._done = 0.0  # when the last batch was
        self._assessor = None
        if self._bundle.info.assesses:
            self._assessor = Assessor(self._bundle, self.computing, self._sandbox, limits)
        self._warm_up()

    @joins_trace
    async def embed(self, query: Input) -> NDArray[np.float32] | Refusal:
        """Embed one input (E,), in a batch with whatever else waits."""
        outputs = await self._encode(query)
        return outputs if isinstance(outputs, Refusal) else outputs[EMBEDDING]

    @joins_trace
    async def classify(self, query: Input) -> NDArray[np.float32] | Refusal:
        """Probabilities of a picture's categories (K,)."""
        outputs = await self._encode(query)
        if isinstance(outputs, Refusal):
            return outputs
        likely = np.exp(outputs[CLASS_LOGITS] - outputs[CLASS_LOGITS].max())
        return likely / likely.sum()

    @joins_trace
    async def assess(self, request: AssessRequest) -> Assessment | Refusal:
        """Assess a document, a picture or a volume."""
        assert self._assessor is not None
        return await self._assessor.assess(request)

    async def _encode(self, query: Input) -> Arrays | Refusal:
        """What the graph of one input's modality gives, in a batch with whatever else waits."""
        self._arrivals.add()
        prepared = await self._prepare(query)
        if isinstance(prepared, Refusal):
            return prepared
        return await self._run(query.modality, prepared)

    async def encode(self, queries: Sequence[Input], neighbours: int | None = None) -> Encoded | Refusal:
        """Encode one input of each of some modalities, for the decoder.

        Args:
            queries: the inputs.
            neighbours: of a picture; if that is given, moderation is told what it asks.
        """
        begun = time.monotonic()
        self._arrivals.add(len(queries))
        ready: list[float] = []
        looking: list[asyncio.Task[Scores | None]] = []

        async def one(query: Input) -> tuple[Modality, Arrays] | Refusal:
            prepared = await self._prepare(query, seen=neighbours is not None)
            ready.append(time.monotonic())
            if isinstance(prepared, Refusal):
                return prepared
            if SEEN in prepared:
                looking.append(asyncio.create_task(self._look(prepared)))
            return query.modality, await self._run(query.modality, prepared)

        rows: dict[Modality, Arrays] = {}
        for found in await asyncio.gather(*(one(query) for query in queries)):
            if isinstance(found, Refusal):
                return found
            rows[found[0]] = found[1]
        parts: dict[Modality, Arrays] = {
            modality: {name: row[name] for name in row if name == STATES or name.endswith("_mask")}
            for modality, row in rows.items()
        }
        seconds = time.monotonic() - max(ready)
        if neighbours is None:
            return Encoded(parts, max(ready) - begun, seconds)
        observing = asyncio.create_task(self._observed(rows, neighbours, looking))
        return Encoded(parts, max(ready) - begun, seconds, observing)

    @joins_trace
    async def encode_apart(
        self, queries: Sequence[Input], neighbours: int | None = None
    ) -> Encoded | Refusal:
        """As `encode`, for another process, which can't be told later what moderation asks."""
        found = await self.encode(queries, neighbours)
        if isinstance(found, Refusal) or isinstance(found.observed, Observed):
            return found
        return replace(found, observed=await found.observed)

    async def _observed(
        self, rows: Mapping[Modality, Arrays], neighbours: int, looking: Sequence[asyncio.Task[Scores | None]]
    ) -> Observed:
        """What moderation asks of inputs that are encoded."""
        said, nearest = await self._on_computing(self._compare, rows, neighbours)
        return Observed(said, nearest, await looking[0] if looking else None)

    @joins_trace
    async def observe(self, queries: Sequence[Input], neighbours: int) -> Observed | Refusal:
        """Find out about one input of each of some modalities what moderation asks; of speech, all of it."""
        said, nearest = "", tuple[Hit, ...]()
        scores: Scores | None = None
        for query in queries:
            if query.speech is not None:
                data = unwrap("speech", query.speech.encode())
                told = data if isinstance(data, Refusal) else await self.transcribe(data)
                if isinstance(told, Refusal):
                    return told
                said = told.text
            elif query.image is not None:
                self._arrivals.add()
                prepared = await self._prepare(query, seen=True)
                if isinstance(prepared, Refusal):
                    return prepared
                if not neighbours:
                    scores = await self._look(prepared)
                    continue
                row, scores = await asyncio.gather(self._run("image", prepared), self._look(prepared))
                _, nearest = await self._on_computing(self._compare, {"image": row}, neighbours)
        return Observed(said, nearest, scores)

    async def _look(self, prepared: Arrays) -> Scores | None:
        """Scores of a picture as moderation sees it; none of what isn't seen, nor if that fails."""
        if self._pictures is None or SEEN not in prepared:
            return None
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._looking, self._pictures.score, prepared[SEEN])
        except Exception:
            _logger.exception("a picture could not be scored, and is refused")
            return None

    def _compare(self, rows: Mapping[Modality, Arrays], neighbours: int) -> tuple[str, tuple[Hit, ...]]:
        """What the graphs' outputs say of the speech, and what is near to the picture."""
        said, nearest = "", tuple[Hit, ...]()
        if "speech" in rows and TRANSCRIPT in rows["speech"]:
            said = self._bundle.spell(rows["speech"][TRANSCRIPT]).strip()
        if "image" in rows and neighbours:
            nearest = tuple(self._bundle.search(rows["image"][EMBEDDING], neighbours))
        return said, nearest

    async def _on_computing(self, work: Callable[..., _T], *given: object) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self.computing, work, *given)

    @joins_trace
    async def transcribe(self, data: bytes) -> Transcript | Refusal:
        """Make a text of encoded speech, as long as it may be, stretch after stretch."""
        with self._prepares("speech"):
            found = await self._sandbox.open("stretches", data)
        if isinstance(found, Refusal):
            return found
        stretches = split(found)
        self._arrivals.add(len(stretches))
        rows = await asyncio.gather(*(self._run("speech", one) for one in stretches))
        texts = await self._on_computing(lambda: [self._bundle.spell(row[TRANSCRIPT]) for row in rows])
        said = zip(texts, found["start_s"].tolist(), found["end_s"].tolist(), strict=True)
        return Transcript(tuple(Segment(start, end, text.strip()) for text, start, end in said))

    @joins_trace
    async def search(self, query: Input, top_k: int) -> list[Hit] | Refusal:
        """Embed one input, then rank the indexed pictures."""
        embedding = await self.embed(query)
        if isinstance(embedding, Refusal):
            return embedding
        return await self._on_computing(self._bundle.search, embedding, top_k)

    def close(self) -> None:
        """End the processes that decode, and let the threads end."""
        self._sandbox.close()
        for threads in (self.computing, self._looking):
            threads.shutdown(wait=False)

    async def drift(self) -> DriftResponse | Refusal:
        """How far what this replica was asked lies from what was trained on."""
        return self._drift.told() or refusal(
            404,
            "no-statistics",
            "the bundle tells nothing of its corpus's inputs",
            "export it again, of more rows",
        )

    def batch_sizes(self) -> dict[Modality, dict[int, int]]:
        """Modality → rows in a batch → how many such batches this replica ran."""
        sizes: dict[Modality, dict[int, int]] = {}
        for (modality, rows), count in sorted(self._batch_sizes.items()):
            sizes.setdefault(modality, {})[rows] = count
        return sizes

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Tell Serve's autoscaler what came lately, and what could have."""
        told = [one.record_autoscaling_stats() for one in (self._assessor,) if one is not None]
        if self.modalities:
            told.append(self._record_encoding())
        return mixed(told)

    def _record_encoding(self) -> dict[str, float]:
        # what decodes and what computes share the CPUs that a replica has
        seconds = 1 / self._pace.capacity + self._files * self._sandbox.seconds
        return {ARRIVALS: self._arrivals.per_s, CAPACITY: 1 / seconds}

    async def _prepare(self, query: Input, *, seen: bool = False) -> Arrays | Refusal:
        """Make of an input what its graph takes; of a picture, also what moderation sees of it."""
        with self._prepares(query.modality):
            self._files += 0.02 * ((query.text is None) - self._files)
            if query.text is not None:
                given = query.text, self._bundle.tokenizer, self._bundle.info.preparation, self._limits
                if len(query.text) <= SHORT_TEXT:
                    return read_text(*given)
                return await asyncio.to_thread(read_text, *given)
            is_seen = seen and self._pictures is not None
            task: Task = "speech" if query.image is None else "seen-image" if is_seen else "image"
            return await self._sandbox.open(task, (query.image or query.speech or "").encode())

    @contextmanager
    def _prepares(self, modality: Modality) -> Generator[None]:
        """Tell how long an input's preparation takes."""
        begun = time.monotonic()
        with span("prepare", modality=modality):
            yield
        self._work.took("prepare", modality, time.monotonic() - begun)

    def _warm_up(self) -> None:
        """Do all that a request may ask for, before one does, in small batches and full ones, and see what
        those take.
        """

        def seconds(modality: Modality, rows: int) -> float:
            started = time.monotonic()
            self._bundle.encode(modality, [self._bundle.blank(modality)] * rows)
            return time.monotonic() - started

        for rows in (1, self._max_batch_size):
            for modality in self.modalities:
                seconds(modality, rows)  # the first run of a shape makes room for it
            if self.modalities:
                self._pace.add(rows, fmean(seconds(modality, rows) for modality in self.modalities))
        if self._pictures is not None:
            self._pictures.score(np.zeros((SEEN_SIDE, SEEN_SIDE, 3), np.uint8))
        self._sandbox.wait()
        if self._bundle.info.embeds:  # a search opens the index
            self._bundle.search(np.zeros(self._bundle.info.embed_dim, np.float32), 1)

    async def _run(self, modality: Modality, arrays: Arrays) -> Arrays:
        """Encode a prepared row, in the next batch of its modality."""
        row = _Row(arrays, asyncio.get_running_loop().create_future(), time.monotonic())
        self._queues[modality].append(row)
        running = self._running.get(modality)
        if running is None or running.done():
            self._running[modality] = asyncio.create_task(self._run_all(modality))
        with span("encode", modality=modality) as about:
            outputs = await row.outputs
            about.update(rows=row.together, queue_s=row.queue_s)
        self._drift.add(modality, arrays, outputs)
        return outputs

    async def _run_all(self, modality: Modality) -> None:
        """Encode what waits of a modality, batch after batch, until nothing does."""
        loop, queue = asyncio.get_running_loop(), self._queues[modality]
        while queue:
            # chosen when the thread is free, not before: what comes in the meantime is in
            batch = await loop.run_in_executor(self.computing, self._compute, modality)
            for row, outputs in batch:
                if row.outputs.done():
                    continue
                if isinstance(outputs, Exception):
                    row.outputs.set_exception(outputs)
                else:
                    row.outputs.set_result(outputs)

    def _compute(self, modality: Modality) -> list[tuple[_Row, Arrays | Exception]]:
        """Run a modality's graph on what waits, up to a full batch."""
        rows: list[_Row] = []
        queue = self._queues[modality]
        while queue and len(rows) < self._max_batch_size:
            row = queue.popleft()
            if not row.outputs.done():  # else whoever asked is gone, or out of time
                rows.append(row)
        if not rows:
            return []
        begun = time.monotonic()
        for row in rows:
            row.together, row.queue_s = len(rows), begun - row.since
            self._work.took("queue", modality, row.queue_s)
        try:
            found: list[Arrays] = self._bundle.encode(modality, [row.arrays for row in rows])
        except Exception as error:
            return [(row, error) for row in rows]
        self._batch_sizes[modality, len(rows)] += 1
        self._work.ran(modality, len(rows))
        self._work.took("encode", modality, time.monotonic() - begun)
        # from when it could have begun: what else there is to do for a batch counts as well
        begun, self._done = max(self._done, min(row.since for row in rows)), time.monotonic()
        self._pace.add(len(rows), self._done - begun)
        return list(zip(rows, found, strict=True))


@dataclass
class _Row:
    arrays: Arrays
    outputs: asyncio.Future[Arrays]
    since: float
    together: int = 0  # rows of its batch, itself included
    queue_s: float = 0.0
