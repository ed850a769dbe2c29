"""The encoder replica: decodes in threads, embeds what waits together as one batch, searches the index."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray import serve
from ray.util.metrics import Histogram

from ...pipelines.bundle import (
    EMBEDDING,
    GRAPH_INPUTS,
    STATES,
    TRANSCRIPT,
    Arrays,
    Hit,
    LoadedBundle,
    Modality,
)
from .autoscaling import ARRIVALS, CAPACITY
from .inputs import Prepared, prepare, undecodable
from .messages import Input, Refusal
from .scaling import Pace
from .spec import BatchingSpec

COUNTS_S = 2.0
"""Seconds over which a replica counts what comes."""


@dataclass(frozen=True)
class Encoded:
    """What a decoder needs of some inputs.

    Attributes:
        parts: modality → its hidden states and their mask.
        prepare_s: seconds that decoding the inputs took, waiting included.
        encode_s: seconds that the graphs took, waiting included.
    """

    parts: Mapping[Modality, Arrays]
    prepare_s: float
    encode_s: float


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
    """One replica: a bundle in memory, a pool of threads to decode, one thread to compute.

    Args:
        open_bundle: opens the bundle, on the machine where the replica runs.
        batching: when rows run together.
        decoding_threads: size of the pool.
    """

    def __init__(
        self, open_bundle: Callable[[], LoadedBundle], batching: BatchingSpec, decoding_threads: int
    ) -> None:
        self._bundle = open_bundle()
        self._decoding = ThreadPoolExecutor(decoding_threads, "decode")
        self._computing = ThreadPoolExecutor(1, "compute")
        self._batch_sizes: Counter[tuple[Modality, int]] = Counter()
        self._batch_rows = Histogram(
            "eagleray_batch_rows",
            "Rows that one run of a graph embedded together.",
            boundaries=[1, 2, 4, 8, 16, 32, 64, 128],
            tag_keys=("modality",),
        )
        self._pace = Pace(batching.max_batch_size)
        self._arrived: deque[float] = deque()
        self._done = 0.0  # when the last batch was
        queue: Any = self._run
        queue.set_max_batch_size(batching.max_batch_size)
        queue.set_batch_wait_timeout_s(batching.batch_wait_timeout_s)
        self._warm_up(batching.max_batch_size)

    async def embed(self, query: Input) -> NDArray[np.float32] | Refusal:
        """Embed one input (E,), in a batch with whatever else waits."""
        self._arrived.append(time.monotonic())
        loop = asyncio.get_running_loop()
        prepared = await loop.run_in_executor(self._decoding, prepare, self._bundle, query)
        if isinstance(prepared, Refusal):
            return prepared
        return (await self._run((*prepared, time.monotonic())))[EMBEDDING]

    async def encode(self, queries: Sequence[Input]) -> Encoded | Refusal:
        """Encode one input of each of some modalities, for the decoder."""
        begun = time.monotonic()
        self._arrived.extend([begun] * len(queries))
        loop = asyncio.get_running_loop()
        decoding = [loop.run_in_executor(self._decoding, prepare, self._bundle, one) for one in queries]
        prepared: list[Prepared] = []
        for found in await asyncio.gather(*decoding):
            if isinstance(found, Refusal):
                return found
            prepared.append(found)
        ready = time.monotonic()
        rows = await asyncio.gather(*(self._run((*one, ready)) for one in prepared))
        parts: dict[Modality, Arrays] = {
            modality: {name: row[name] for name in row if name == STATES or name.endswith("_mask")}
            for (modality, _), row in zip(prepared, rows, strict=True)
        }
        return Encoded(parts, ready - begun, time.monotonic() - ready)

    async def transcribe(self, data: bytes) -> Transcript | Refusal:
        """Make a text of encoded speech, as long as it may be, stretch after stretch."""
        loop = asyncio.get_running_loop()
        try:
            stretches = await loop.run_in_executor(self._decoding, self._bundle.prepare_stretches, data)
        except ValueError as error:
            return undecodable("speech", error)
        begun = time.monotonic()
        self._arrived.extend([begun] * len(stretches))
        rows = await asyncio.gather(*(self._run(("speech", one.arrays, begun)) for one in stretches))
        texts = await loop.run_in_executor(
            self._decoding, lambda: [self._bundle.spell(row[TRANSCRIPT]) for row in rows]
        )
        said = zip(texts, stretches, strict=True)
        return Transcript(tuple(Segment(one.start_s, one.end_s, text.strip()) for text, one in said))

    async def search(self, query: Input, top_k: int) -> list[Hit] | Refusal:
        """Embed one input, then rank the indexed pictures."""
        embedding = await self.embed(query)
        if isinstance(embedding, Refusal):
            return embedding
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._computing, self._bundle.search, embedding, top_k)

    def batch_sizes(self) -> dict[Modality, dict[int, int]]:
        """Modality → rows in a batch → how many such batches this replica ran."""
        sizes: dict[Modality, dict[int, int]] = {}
        for (modality, rows), count in sorted(self._batch_sizes.items()):
            sizes.setdefault(modality, {})[rows] = count
        return sizes

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Tell Serve's autoscaler what came lately, and what could have."""
        now = time.monotonic()
        while self._arrived and self._arrived[0] < now - COUNTS_S:
            self._arrived.popleft()
        return {ARRIVALS: len(self._arrived) / COUNTS_S, CAPACITY: self._pace.capacity}

    def _warm_up(self, max_batch_size: int) -> None:
        """Run every graph on a small batch and a full one, before a request does, and see what they take."""

        def seconds(modality: Modality, rows: int) -> float:
            started = time.monotonic()
            self._bundle.encode(modality, [self._bundle.blank(modality)] * rows)
            return time.monotonic() - started

        for rows in (1, max_batch_size):
            for modality in GRAPH_INPUTS:
                seconds(modality, rows)  # the first run of a shape makes room for it
            self._pace.add(rows, fmean(seconds(modality, rows) for modality in GRAPH_INPUTS))

    @serve.batch
    async def _run(self, waiting: list[tuple[Modality, Arrays, float]]) -> list[Arrays]:
        """Encode what waits since a moment: one run of each modality's graph, in the one computing thread."""
        loop = asyncio.get_running_loop()
        answers: list[Arrays] = [{}] * len(waiting)
        for modality in GRAPH_INPUTS:
            places = [i for i, (other, _, _) in enumerate(waiting) if other == modality]
            if not places:
                continue
            rows = [waiting[i][1] for i in places]
            found = await loop.run_in_executor(self._computing, partial(self._bundle.encode, modality, rows))
            self._batch_sizes[modality, len(rows)] += 1
            self._batch_rows.observe(len(rows), {"modality": modality})
            for place, outputs in zip(places, found, strict=True):
                answers[place] = outputs
        # from when it could have begun: what else there is to do for a batch counts as well
        begun, self._done = max(self._done, min(since for *_, since in waiting)), time.monotonic()
        self._pace.add(len(waiting), self._done - begun)
        return answers
