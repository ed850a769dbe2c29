"""A worker's rows of every step, read ahead in a thread."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from ...pipelines.order import rows_at
from ...pipelines.reading import CorpusReader
from .spec import TrainingSpec

Batch = dict[str, Tensor]


def worker_batches(
    reader: CorpusReader, spec: TrainingSpec, first_step: int, rank: int, device: torch.device
) -> Iterator[Batch]:
    """Yield data-parallel worker `rank`'s rows of every step from `first_step` on.

    The order is a pure function of seed and step, so a step's rows are the same on every mesh:
    worker r of d takes the r-th of d contiguous parts.
    """
    share = spec.batch_size // spec.parallel.data

    def read(step: int) -> Batch:
        start = step * spec.batch_size
        rows, seeds = rows_at(spec.seed, len(reader), start, start + spec.batch_size)
        part = slice(rank * share, (rank + 1) * share)
        arrays = reader.examples(rows[part], seeds[part] if spec.augment else None)
        return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}

    with ThreadPoolExecutor(1, thread_name_prefix="reader") as pool:
        ahead = pool.submit(read, first_step)
        for step in range(first_step, spec.steps):
            batch = ahead.result()
            if step + 1 < spec.steps:
                ahead = pool.submit(read, step + 1)
            yield batch
