"""A worker's rows of every step, read ahead in a thread."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from ...pipelines.order import rows_at, share
from ...pipelines.reading import CorpusReader
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


def worker_shares(
    reader: CorpusReader, spec: TrainingSpec, cursor: int, rank: int, device: torch.device
) -> Iterator[Share]:
    """Yield data-parallel worker `rank`'s part of every step, from position `cursor` on.

    The order is a pure function of seed and position, so a step's rows are the same on every mesh:
    worker r of d takes the r-th of d contiguous parts.
    """

    def read(position: int) -> Share:
        start, stop = share(position, position + spec.batch_size, rank, spec.parallel.data)
        rows, seeds = rows_at(spec.seed, len(reader), start, stop)
        arrays = reader.examples(rows, seeds if spec.augment else None)
        batch = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
        return Share(start, reader.ids_of(rows), batch)

    positions = range(cursor, spec.steps * spec.batch_size, spec.batch_size)
    with ThreadPoolExecutor(1, thread_name_prefix="reader") as pool:
        ahead = pool.submit(read, cursor)
        for position in positions:
            part = ahead.result()
            if position != positions[-1]:
                ahead = pool.submit(read, position + spec.batch_size)
            yield part
