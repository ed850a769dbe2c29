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
from ...pipelines.order import Rows, rows_at, share
from ...pipelines.reading import Arrays, CorpusReader
from ...pipelines.spec import CorpusInfo
from .metrics import Progress
from .spec import TrainingSpec

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Share:
    """A worker's part of one step's rows.

    Attributes:
        start: position of the first in the order of training.
        ids: of the records.
        batch: what the model gets.
    """

    start: int
    ids: Sequence[str]
    batch: Batch


INPUTS = {"image": "vision", "mel": "audio", "mel_mask": "audio"}
"""Columns that only one part of a model reads."""


def make_batch(arrays: Arrays, model: ModelSpec, corpus: CorpusInfo) -> Batch:
    """What a model reads of rows of a corpus, as tensors; a question's type is its record's category."""
    parts = model.parts
    batch = {
        name: torch.from_numpy(array) for name, array in arrays.items() if INPUTS.get(name) in (None, *parts)
    }
    if model.decoder is not None and "answer" in batch:
        names = [kind.name for kind in model.decoder.question_types]
        kinds = [names.index(name) if name in names else -1 for name in corpus.classes]
        batch["question_type"] = torch.tensor([*kinds, -1])[batch["label"]]
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


def worker_shares(
    reader: CorpusReader,
    model: ModelSpec,
    spec: TrainingSpec,
    cursor: int,
    rank: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Iterator[Share]:
    """Yield data-parallel worker `rank`'s part of every step, from position `cursor` on.

    The order is a pure function of seed and position, so a step's rows are the same on every mesh:
    worker r of d takes the r-th of d contiguous parts.
    """

    def read(position: int) -> Share:
        start, stop = share(position, position + spec.batch_size, rank, spec.parallel.data)
        rows, seeds = rows_at(spec.seed, len(reader), start, stop)
        arrays = reader.examples(
            rows, seeds if spec.augment else None, transcript=spec.objective.transcription > 0
        )
        batch = make_batch(arrays, model, reader.info)
        if model.drops:
            batch["seed"] = torch.from_numpy(seeds.view(np.int64))
        check_batch(model, reader.info.vocab_size, batch)
        placed = {
            name: tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)
            for name, tensor in batch.items()
        }
        return Share(start, reader.ids_of(rows), placed)

    positions = range(cursor, spec.steps * spec.batch_size, spec.batch_size)
    with ThreadPoolExecutor(1, thread_name_prefix="reader") as pool:
        ahead = pool.submit(read, cursor)
        for position in positions:
            part = ahead.result()
            if position != positions[-1]:
                ahead = pool.submit(read, position + spec.batch_size)
            yield part
