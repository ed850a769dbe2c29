"""What a training will take on each of its workers: memory, what crosses between them, waiting, time.

Made without data, devices or processes: a trace of the model's layers (`tracing`), the order of passes
(`schedules`), and the rules by which parameters, gradients and the optimizer's state are divided.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...models.layers import HALF
from ...pipelines.spec import Sizes
from .batching import counted_of, positions_of, sizes_for
from .certificate import Training
from .memory import memory_of
from .schedules import Pass, waiting
from .slicing import place_layers
from .tracing import trace
from .traffic import dense_bytes, sent_by
from .worker import Worker


@dataclass(frozen=True)
class WorkerEstimate:
    """Of one worker of the pipeline; those beside it along other axes are alike.

    Attributes:
        memory: bytes of tensors by category, at the moment when there are most.
        sent: bytes a step that it sends along each axis of the mesh, by ring algorithms where all sum up.
        flops: floating-point operations of a step.
        waits: share of a step in which it waits for other workers of the pipeline.
    """

    memory: Mapping[str, int]
    sent: Mapping[str, float]
    flops: int
    waits: float

    @property
    def total(self) -> int:
        """Bytes of all tensors."""
        return sum(self.memory.values())


@dataclass(frozen=True)
class Estimate:
    """Of a training.

    Attributes:
        workers: of the pipeline.
        steps: of the training.
        dense: bytes a step that a worker would send along `data` if gradients were summed up whole; 0 if they
            are anyway.
        half: whether most of it computes in half precision.
    """

    workers: Sequence[WorkerEstimate]
    steps: int
    dense: float
    half: bool

    @property
    def sends_more_than_dense(self) -> bool:
        """Whether compression makes more traffic than it saves."""
        return max(worker.sent["data"] for worker in self.workers) > self.dense > 0


def estimate(training: Training, max_tokens: int, vocab_size: int, num_classes: int) -> Estimate:
    """What a training will take; where its steps are of tokens, what the one that needs most memory takes.

    Args:
        training: of a model on a mesh that can work.
        max_tokens: of a text of its corpus.
        vocab_size: of the corpus's tokenizer.
        num_classes: of its categories.
    """
    shapes = _extremes(training, max_tokens)
    found = [_of_shapes(one, length, vocab_size, num_classes) for one, length in shapes]
    return max(found, key=lambda one: max(worker.total for worker in one.workers))


def _extremes(training: Training, max_tokens: int) -> list[tuple[Training, int]]:
    """Steps of as many rows as the spec says; where they are of tokens, one of the longest sequences, and one
    of as many rows as may be.
    """
    spec, model, batching = training.spec, training.model, training.spec.batching
    if batching is None:
        return [(training, max_tokens)]
    unit = spec.row_unit
    longest = Sizes(
        min(max_tokens, batching.max_tokens),
        max_tokens if spec.objective.answer else 0,
        model.audio.max_frames if model.audio is not None else 0,
    )
    (positions,) = positions_of([longest], model)
    each = max(1, int(positions @ counted_of(model)))
    found: list[tuple[Training, int]] = []
    for rows in (max(1, batching.tokens // each), batching.max_rows):
        shorter = np.ceil(positions * min(1.0, batching.tokens / (rows * each))).astype(np.int64)
        sizes = sizes_for(shorter, model, longest.frames)
        audio = model.audio and model.audio.model_copy(update={"max_frames": sizes.frames})
        changed = spec.model_copy(update={"batch_size": -(-rows // unit) * unit, "batching": None})
        shaped = replace(training, spec=changed, model=model.model_copy(update={"audio": audio}))
        found.append((shaped, sizes.tokens))
    return found


def _of_shapes(training: Training, max_tokens: int, vocab_size: int, num_classes: int) -> Estimate:
    traced = trace(training, max_tokens, vocab_size, num_classes)
    parallel = training.spec.parallel
    places = place_layers(traced.model, parallel.num_slices, traced.costs)
    costs = [0] * parallel.num_slices
    for name, one in traced.layers.items():
        costs[places[name]] += one.flops[0]
    waits = waiting(parallel, lambda one: _cost(one) * costs[one.slice])
    workers = [Worker(training, traced, places, number) for number in range(parallel.pipeline)]
    formats = workers[0].formats.values()
    half = 2 * sum(dtype in HALF for dtype in formats) > len(formats)
    dense = 0.0
    if training.spec.optimizer.compression is not None:
        dense = max(map(dense_bytes, workers))
    found = [
        WorkerEstimate(memory_of(worker), sent_by(worker), _flops(worker), waits[worker.number])
        for worker in workers
    ]
    return Estimate(found, training.spec.steps, dense, half)


def _cost(one: Pass) -> int:
    return {"forward": 1, "backward": 2, "inputs": 1, "weights": 1}[one.kind]


def _flops(worker: Worker) -> int:
    times = worker.parallel.num_microbatches * worker.passes
    ahead = 2 if worker.looks_ahead else 1
    found = [worker.traced.layers[name].flops for layers in worker.slices.values() for name in layers]
    return times * sum(ahead * forward + backward for forward, backward in found)
