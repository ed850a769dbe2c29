"""A worker's rows of every step, read ahead in a thread."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...models.checks import check_batch
from ...models.spec import ModelSpec
from ...pipelines.order import Rows, Seeds, rows_at
from ...pipelines.reading import Arrays, CorpusReader
from ...pipelines.sequences import Sequences
from ...pipelines.spec import CorpusInfo
from .batching import Ints, counted_of, divide, fill_of, num_rows, positions_of, sizes_for
from .metrics import Progress
from .spec import TrainingSpec

Batch = dict[str, Tensor]
Passes = Sequence[Sequence[Batch]]
"""A worker's rows of a step: for each pass its groups, of shapes that are the same at all workers."""
CPU = torch.device("cpu")
READ_AHEAD = 64
"""Rows whose lengths are looked up at once."""
ABSENT = {"marks": -1, "label": -1, "group": -1, "position": -1, "question_type": -1}
"""What a row that is none has in these columns; in all others 0."""
INPUTS = {
    **{"image": "vision", "marks": "vision", "reference": "vision"},
    **{"mel": "audio", "mel_mask": "audio"},
}
"""Columns that only one part of a model reads."""


@dataclass(frozen=True)
class Step:
    """A step, and a worker's part of it.

    Attributes:
        stop: position in the order of training at which the next one begins.
        num_rows: of all workers.
        fill: share of the positions of all workers that are no padding; None where steps are of rows.
        positions: of this worker's rows.
        ids: of its records.
        passes: what the model gets.
    """

    stop: int
    num_rows: int
    fill: float | None
    positions: Sequence[int]
    ids: Sequence[str]
    passes: Passes


def make_batch(arrays: Arrays, model: ModelSpec, corpus: CorpusInfo) -> Batch:
    """What a model reads of rows of a corpus, as tensors; a category that is a type of question is that."""
    parts = model.parts
    batch = {
        name: torch.from_numpy(array) for name, array in arrays.items() if INPUTS.get(name) in (None, *parts)
    }
    if model.decoder is not None and "answer" in batch:
        names = [kind.name for kind in model.decoder.question_types]
        kinds = [names.index(name) if name in names else -1 for name in corpus.classes]
        batch["question_type"] = torch.tensor([*kinds, -1])[batch["label"]]
        batch["label"] = batch["label"].masked_fill(batch["question_type"] >= 0, -1)
    return batch


def batches(
    reader: CorpusReader,
    model: ModelSpec,
    batch_rows: int,
    progress: Progress,
    *,
    transcript: bool = False,
) -> Iterator[tuple[Rows, Batch]]:
    """Every record once, in order and without augmentation: rows (B,) and what a model reads of them.

    Args:
        reader: of the split.
        model: what reads it.
        batch_rows: at once.
        progress: told, after each batch, how many records of how many are done.
        transcript: see `CorpusReader.examples`.
    """
    for start in range(0, len(reader), batch_rows):
        rows = np.arange(start, min(start + batch_rows, len(reader)))
        yield rows, make_batch(reader.examples(rows, None, transcript=transcript), model, reader.info)
        progress(start + len(rows), len(reader))


def fill_rows(batch: Batch, num_rows: int) -> Batch:
    """A batch with rows that are none, as many as it lacks."""
    missing = num_rows - len(batch["label"])
    if not missing:
        return batch
    return {
        name: torch.cat((tensor, tensor.new_full((missing, *tensor.shape[1:]), ABSENT.get(name, 0))))
        for name, tensor in batch.items()
    }


class StepReader:
    """Reads a worker's part of steps. What a step is made of is the same on every mesh.

    Args:
        sequences: of the split.
        model: what reads them.
        spec: how to train.
        rank: of the data-parallel worker.
        device: that rows are put on.
        dtype: of what isn't whole numbers.
    """

    def __init__(
        self,
        sequences: Sequences,
        model: ModelSpec,
        spec: TrainingSpec,
        rank: int,
        device: torch.device = CPU,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._sequences, self._model, self._spec = sequences, model, spec
        self._device, self._dtype = device, dtype
        self._mine = range(rank * spec.passes, (rank + 1) * spec.passes)
        self._counted = counted_of(model)
        # where nothing else is read of texts, all of them are transcripts; see `Objective`
        self._transcribes = list(spec.objective.tasks) == ["transcription"]

    def read(self, start: int) -> Step:
        """The step that begins at a position."""
        numbers, seeds, lengths = self._next(start)
        groups = divide(self._spec, lengths, self._counted)
        used = np.concatenate([group.rows[self._mine].ravel() for group in groups])
        used = used[used >= 0]
        return Step(
            stop=start + len(numbers),
            num_rows=len(numbers),
            fill=None if self._spec.batching is None else fill_of(groups, lengths, self._counted),
            positions=(start + used).tolist(),
            ids=self._sequences.ids_of(numbers[used]),
            passes=[
                [self._batch(start, numbers, seeds, group.rows[part], group.lengths) for group in groups]
                for part in self._mine
            ],
        )

    def _batch(self, start: int, numbers: Rows, seeds: Seeds, rows: Ints, lengths: Ints | None) -> Batch:
        real = rows[rows >= 0]
        reader = self._sequences.reader
        sizes = None
        if lengths is not None:
            sizes = sizes_for(lengths, self._model, reader.info.preparation.max_frames)
        arrays = self._sequences.examples(
            numbers[real], self._seeds(seeds[real]), sizes, transcript=self._transcribes
        )
        batch = make_batch(arrays, self._model, reader.info)
        batch["position"] = torch.from_numpy(start + real)
        if self._model.drops:
            batch["seed"] = torch.from_numpy(seeds[real].view(np.int64))
        check_batch(self._model, reader.info.vocab_size, batch)
        return {
            name: tensor.to(self._device, self._dtype if tensor.is_floating_point() else tensor.dtype)
            for name, tensor in fill_rows(batch, len(rows)).items()
        }

    def _next(self, start: int) -> tuple[Rows, Seeds, Ints]:
        """Sequences of the step that begins at a position, their seeds and, if they count, lengths (N, S)."""
        batching = self._spec.batching
        if batching is None:
            numbers, seeds = self._order(start, start + self._spec.batch_size)
            return numbers, seeds, np.zeros((len(numbers), 3), np.int64)
        numbers, seeds = self._order(start, start + batching.max_rows)
        lengths: list[Ints] = []

        def totals() -> Iterator[int]:
            for first in range(0, batching.max_rows, READ_AHEAD):
                some = slice(first, first + READ_AHEAD)
                found = self._sequences.lengths(
                    numbers[some], self._seeds(seeds[some]), transcript=self._transcribes
                )
                lengths.append(positions_of(found, self._model))
                yield from (lengths[-1] @ self._counted).tolist()

        count = num_rows(totals(), batching.tokens, batching.max_rows)
        return numbers[:count], seeds[:count], np.concatenate(lengths)[:count]

    def _order(self, start: int, stop: int) -> tuple[Rows, Seeds]:
        return rows_at(self._spec.seed, len(self._sequences), start, stop)

    def _seeds(self, seeds: Seeds) -> Seeds | None:
        return seeds if self._spec.augment else None


def worker_steps(
    sequences: Sequences,
    model: ModelSpec,
    spec: TrainingSpec,
    cursor: int,
    step: int,
    rank: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Iterator[Step]:
    """Yield data-parallel worker `rank`'s part of every step after `step`, from position `cursor` on."""
    reader = StepReader(sequences, model, spec, rank, device, dtype)
    with ThreadPoolExecutor(1, thread_name_prefix="reader") as pool:
        ahead = pool.submit(reader.read, cursor)
        for number in range(step, spec.steps):
            found = ahead.result()
            if number + 1 < spec.steps:
                ahead = pool.submit(reader.read, found.stop)
            yield found
