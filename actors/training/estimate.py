"""What a training will take on each of its workers: memory, what crosses between them, waiting, time.

Made without data, devices or processes: a trace of the model's layers (`tracing`), the order of passes
(`schedules`), and the rules by which parameters, gradients and the optimizer's state are divided.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import ceil

import torch

from ...models.spec import EMBEDDED, MODALITIES
from .certificate import Training
from .compression import Packing, Rows, rows_of
from .precision import DTYPES, first_state
from .schedules import Pass, order, waiting
from .slicing import place_layers
from .tracing import Parameter, Trace, Traced, trace

MIB = 1 << 20
AHEAD = 2
"""Sharded layers that are whole at once: the one that runs and the one that is fetched meanwhile."""


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
    """What a training will take.

    Args:
        training: of a model on a mesh that can work.
        max_tokens: of a text of its corpus.
        vocab_size: of the corpus's tokenizer.
        num_classes: of its categories.
    """
    traced = trace(training, max_tokens, vocab_size, num_classes)
    parallel = training.spec.parallel
    places = place_layers(traced.model, parallel.num_slices, traced.costs)
    costs = [0] * parallel.num_slices
    for name, one in traced.layers.items():
        costs[places[name]] += one.flops[0]
    waits = waiting(parallel, lambda one: _cost(one) * costs[one.slice])
    workers = [
        _Worker(training, traced, places, number).estimate(waits[number])
        for number in range(parallel.pipeline)
    ]
    formats = first_state(traced.model.layer_names, training.spec.precision, training.spec.precision_control)
    half = sum(f in ("bf16", "fp16") for f in formats.formats.values()) * 2 > len(formats.formats)
    dense = 0.0
    if training.spec.optimizer.compression is not None:
        dense = max(_Worker(training, traced, places, n).dense() for n in range(parallel.pipeline))
    return Estimate(workers, training.spec.steps, dense, half)


def _cost(one: Pass) -> int:
    return {"forward": 1, "backward": 2, "inputs": 1, "weights": 1}[one.kind]


@dataclass(frozen=True)
class _Group:
    """Parameters that are sharded, gathered and reduced together."""

    parameters: Sequence[Parameter]
    computes: torch.dtype
    stays: bool
    """Whether it stays whole after a forward pass."""

    def shard(self, workers: int) -> int:
        """Entries of a worker's shard, filled up."""
        return sum(_shard(p.shape, workers) for p in self.parameters)

    @property
    def whole(self) -> int:
        """Bytes of its parameters in the format that it computes in."""
        return sum(p.numel for p in self.parameters) * self.computes.itemsize


class _Worker:
    """One worker of the pipeline."""

    def __init__(self, training: Training, traced: Traced, places: Mapping[str, int], number: int) -> None:
        self.spec, self.traced, self.number = training.spec, traced, number
        self.parallel = training.spec.parallel
        self.embed_dim = training.model.embed_dim
        self.dtype = torch.float64 if self.spec.precision == "fp64" else torch.float32
        state = first_state(traced.model.layer_names, self.spec.precision, self.spec.precision_control)
        self.formats = {name: DTYPES[found] for name, found in state.formats.items()}
        mine = range(number, self.parallel.num_slices, self.parallel.pipeline)
        names = traced.model.layer_names
        self.slices = {n: [name for name in names if places[name] == n] for n in mine}
        placed = {name: _place(name, places) for name in traced.parameters}
        # tied weights lie twice
        self.parameters = {
            n: [p for name, p in traced.parameters.items() if placed[name] == n] for n in self.slices
        }
        self.learning = frozenset[str]().union(*(one.learning for one in traced.layers.values()))
        halves = any(dtype.itemsize < 4 for dtype in self.formats.values())
        self.shards = self.parallel.sharding == "full" and (self.parallel.data > 1 or halves)
        self.passes = self.parallel.passes(self.spec.optimizer.compression)
        self.groups = {n: list(self._groups(n)) for n in self.slices}

    @property
    def all_parameters(self) -> list[Parameter]:
        """Of all its slices."""
        return [p for found in self.parameters.values() for p in found]

    def estimate(self, waits: float) -> WorkerEstimate:
        """All of it."""
        return WorkerEstimate(self._memory(), self._sent(), self._flops(), waits)

    def dense(self) -> float:
        """Bytes that it sends when gradients are summed up whole by a ring."""
        data = self.parallel.data
        return (
            2
            * (data - 1)
            / data
            * sum(p.numel * self.dtype.itemsize for p in self.all_parameters if p.learns)
        )

    # memory

    def _memory(self) -> dict[str, int]:
        always = self._resident()
        count = self.parallel.num_microbatches
        moments: list[dict[str, int]] = []
        active, put_off = 0, 0
        left = dict.fromkeys(self.slices, count)
        whole = {n: self._stays(n) for n in self.slices}
        summing = dict.fromkeys(self.slices, 0)
        last = max(self.slices) == self.parallel.num_slices - 1
        for one in order(self.parallel, self.number):
            n = one.slice
            layers = [self.traced.layers[name] for name in self.slices[n]]
            held = sum(layer.held for layer in layers) + self._given(n)
            if one.kind == "forward":
                moments.append(
                    always
                    | self._gathered(whole, n, AHEAD)
                    | {
                        "activations": active + put_off + _most_forward(layers),
                        "gradients": sum(summing.values()),
                    }
                )
                active += held
                whole[n] = self._stays(n)
                continue
            if one.kind == "weights":
                put_off -= sum(layer.deferred for layer in layers)
                continue
            loss = self.traced.loss if last and n == max(self.slices) else Trace(0, 0, 0)
            moments.append(
                always
                | self._gathered(whole, n, AHEAD)
                | {
                    "activations": active
                    + put_off
                    - held
                    + _most_backward(layers, divides=one.kind == "inputs")
                    + self._given(n),
                    "contrastive logits": loss.held + loss.backward,
                    "gradients": sum(summing.values()),
                }
            )
            active -= held
            if one.kind == "inputs":
                put_off += sum(layer.deferred for layer in layers)
            left[n] -= 1
            summing[n] = self._summed(n, is_last=left[n] == 0)
            whole[n] = self._stays(n) if left[n] == 0 else sum(group.whole for group in self.groups[n])
        moments.append(always | {"gradients": sum(summing.values()), "activations": self._update()})
        most = max(moments, key=lambda moment: sum(moment.values()))
        return {name: size for name, size in most.items() if size}

    def _resident(self) -> dict[str, int]:
        """What is there all the time."""
        size, spec = self.dtype.itemsize, self.spec
        own = sum(self._own(p) for p in self.all_parameters)
        learning = [p for p in self.all_parameters if p.learns]
        found = {"weights": own * size}
        state = sum(self._state_of(p) for p in learning)
        found["optimizer"] = state * len(spec.optimizer.kept) * size
        if self.parallel.sharding == "optimizer":  # the rows that it owns, to be stepped
            found["optimizer"] += sum(self._state_of(p) * size for p in learning if self._rows(p) is not None)
        if spec.optimizer.compression is not None:
            matrices = [(p, self._state_of(p)) for p in learning if self._rows(p) is not None]
            # the last pass's gradients come while what is left of the others' waits to be an error
            kept = 2 * self.passes - 1
            found["compression errors"] = sum(kept * p.numel + owned for p, owned in matrices) * size
        if spec.objective.is_slow:
            found["follower"] = own * size
            if self._is_last:
                width = self.embed_dim * size * sum(1 for _ in self._embedded(MODALITIES))
                found["past"] = spec.objective.negatives * (width + len(MODALITIES) + 8)
        found["inputs"] = 2 * self.traced.inputs  # this step's, and the next one's
        found["buffers"] = sum(self._buffers(n) for n in self.slices) * self.parallel.num_microbatches
        return found

    def _buffers(self, n: int) -> int:
        """For what other workers send of a microbatch: states, gradients, and states once more ahead."""
        entering, leaving = self._entering(n), self._leaving(n)
        gradients = sum(size for name, size in leaving.items() if name in self.traced.learned)
        times = 2 if self._looks_ahead else 1
        return times * sum(entering.values()) + gradients

    def _given(self, n: int) -> int:
        """What a slice hands on, which is a copy."""
        return sum(self._leaving(n).values())

    def _gathered(self, whole: Mapping[int, int], n: int, ahead: int) -> dict[str, int]:
        """Whole copies of sharded parameters while a slice runs."""
        if not self.shards:
            return {}
        largest = sorted((group.whole for group in self.groups[n] if not group.stays), reverse=True)[:ahead]
        running = max(whole[n], self._stays(n) + sum(largest))
        return {"whole layers": sum(whole.values()) - whole[n] + running}

    def _stays(self, n: int) -> int:
        return sum(group.whole for group in self.groups[n] if group.stays) if self.shards else 0

    def _summed(self, n: int, *, is_last: bool) -> int:
        """Bytes of a slice's gradients after a backward pass."""
        size = self.dtype.itemsize
        learning = [p for p in self.parameters[n] if self._learns(p)]
        if self.shards and is_last:
            return sum(self._own(p) for p in learning) * size
        return sum(p.numel for p in learning) * size

    def _update(self) -> int:
        """Bytes that the update takes beside gradients, once activations are gone."""
        size = self.dtype.itemsize
        learning = [p for p in self.all_parameters if self._learns(p)]
        if self.parallel.sharding == "optimizer":
            matrices = sum(p.numel for p in learning if self._rows(p) is not None)
            return matrices * size * (1 + self.passes if self.spec.optimizer.compression else 2)
        largest = max((self._own(p) for p in learning), default=0)
        return 2 * largest * size if self.spec.optimizer.algorithm == "adagrad" else 0

    # what crosses

    def _sent(self) -> dict[str, float]:
        count = self.parallel.num_microbatches
        times = count * self.passes
        tensor, pipeline = self.parallel.tensor, 0.0
        ahead = 1 if self._looks_ahead else 0
        summed = 0
        for n, layers in self.slices.items():
            for name in layers:
                forward, backward = self.traced.layers[name].summed
                summed += times * ((1 + ahead) * forward + backward)
            pipeline += times * (1 + ahead) * sum(self._leaving(n).values())
            pipeline += times * sum(
                size for name, size in self._entering(n).items() if name in self.traced.learned
            )
        return {
            "tensor": 2 * (tensor - 1) / tensor * summed,
            "pipeline": pipeline + self._tied(),
            "data": self._sent_for_gradients() + self._sent_for_bank(),
        }

    def _sent_for_gradients(self) -> float:
        data, size = self.parallel.data, self.dtype.itemsize
        if self.parallel.sharding == "optimizer":
            return self._sent_by_zero()
        if not self.shards:
            return 0.0
        total = 0.0
        for n in self.slices:
            for group in self.groups[n]:
                reduced = [p for p in group.parameters if self._learns(p)]
                total += self._gathers(n, group) * group.shard(data) * group.computes.itemsize
                total += sum(_shard(p.shape, data) for p in reduced) * size
        return (data - 1) * total

    def _gathers(self, n: int, group: _Group) -> int:
        """How often in a step a group's shards are gathered."""
        is_whole, found = False, 0
        left = self.parallel.num_microbatches
        for one in order(self.parallel, self.number):
            if one.slice != n or one.kind == "weights":
                continue
            found += not is_whole
            if one.kind == "forward":
                is_whole = group.stays
            else:
                left -= 1
                is_whole = left > 0
        if self._looks_ahead:
            found += 1 if group.stays else self.parallel.num_microbatches
        return found

    def _sent_by_zero(self) -> float:
        data, size = self.parallel.data, self.dtype.itemsize
        learning = [p for p in self.all_parameters if p.learns]
        found = [(p, self._rows(p)) for p in learning]
        matrices = [rows for _, rows in found if rows is not None]
        vectors = sum(p.numel for p, rows in found if rows is None) * size
        total = 2 * (data - 1) / data * vectors
        whole = (data - 1) * sum(rows.owned * rows.length for rows in matrices) * size
        compression = self.spec.optimizer.compression
        if compression is None:
            return total + 2 * whole
        message = (data - 1) * Packing(matrices, compression, self.dtype).message_bytes
        told = message if self.spec.optimizer.algorithm == "adagrad" else whole
        return total + self.passes * message + told

    def _sent_for_bank(self) -> float:
        if not (self._is_last and self.spec.objective.uses_bank):
            return 0.0
        data, size = self.parallel.data, self.dtype.itemsize
        row = self.embed_dim * size * sum(1 for _ in self._embedded()) + 8 * len(MODALITIES) + 8
        return (data - 1) * self.spec.batch_size / data * row

    def _tied(self) -> float:
        """Gradients of tied weights, which two workers of the pipeline tell each other."""
        total = 0
        for copy, source in self.traced.model.tied.items():
            ends = [self._has(name) for name in (copy, source)]
            parameter = self.traced.parameters[source]
            if any(ends) and not all(ends) and parameter.learns:
                total += self._own(parameter) * self.dtype.itemsize * self.passes
        return total

    def _flops(self) -> int:
        times = self.parallel.num_microbatches * self.passes
        ahead = 2 if self._looks_ahead else 1
        found = [self.traced.layers[name].flops for layers in self.slices.values() for name in layers]
        return times * sum(ahead * forward + backward for forward, backward in found)

    # what it has

    @property
    def _is_last(self) -> bool:
        return self.number == self.parallel.pipeline - 1

    @property
    def _looks_ahead(self) -> bool:
        objective = self.spec.objective
        return objective.uses_bank and (objective.is_slow or self.parallel.num_microbatches * self.passes > 1)

    def _embedded(self, among: Sequence[str] | None = None) -> Iterator[str]:
        """Names of the outputs that stand in the bank."""
        if EMBEDDED & self.spec.objective.tasks:
            for name in self.traced.model.output_names:
                if name in MODALITIES or (among is None and name.startswith("found.")):
                    yield name

    def _groups(self, n: int) -> Iterator[_Group]:
        layers, parameters = self.slices[n], self.parameters[n]
        for layer in layers:
            inside = [p for p in parameters if p.name.startswith(f"{layer}.")]
            if inside:
                yield _Group(inside, self.formats[layer], stays=False)
        rest = [p for p in parameters if not any(p.name.startswith(f"{layer}.") for layer in layers)]
        if rest:
            yield _Group(rest, self.formats["heads"], stays=True)

    def _learns(self, parameter: Parameter) -> bool:
        return parameter.learns and parameter.name in self.learning

    def _has(self, name: str) -> bool:
        return any(p.name == name for p in self.all_parameters)

    def _rows(self, parameter: Parameter) -> Rows | None:
        shape = torch.empty(parameter.shape, device="meta")
        return rows_of(parameter.name, shape, self.parallel.data)

    def _own(self, parameter: Parameter) -> int:
        """Entries of a parameter that it keeps."""
        return _shard(parameter.shape, self.parallel.data) if self.shards else parameter.numel

    def _state_of(self, parameter: Parameter) -> int:
        """Entries of a parameter whose optimizer's state it keeps."""
        if self.parallel.sharding == "full":
            return self._own(parameter)
        rows = self._rows(parameter)
        return parameter.numel if rows is None else rows.owned * rows.length

    def _leaving(self, n: int) -> Mapping[str, int]:
        """Bytes of what a slice leaves to the next."""
        if n == self.parallel.num_slices - 1:
            return {}
        return self.traced.state[self.slices[n][-1]]

    def _entering(self, n: int) -> Mapping[str, int]:
        names = self.traced.model.layer_names
        first = names.index(self.slices[n][0])
        return self.traced.state[names[first - 1]] if first else {}


def _most_forward(layers: Sequence[Trace]) -> int:
    before = accumulate((layer.held for layer in layers), initial=0)
    return max(held + layer.forward for held, layer in zip(before, layers, strict=False))


def _most_backward(layers: Sequence[Trace], *, divides: bool) -> int:
    """Bytes at the most in a backward pass, at whichever layer it is; see `schedules.Kind`."""
    held, put_off, most = sum(layer.held for layer in layers), 0, 0
    for layer in reversed(layers):
        most = max(most, held + layer.backward + put_off)
        held -= layer.held
        put_off += layer.deferred if divides else 0
    return most


def _shard(shape: Iterable[int], workers: int) -> int:
    """Entries of a parameter's largest shard along its first axis."""
    first, *rest = shape
    return ceil(first / workers) * torch.Size(rest).numel()


def _place(parameter: str, places: Mapping[str, int]) -> int:
    """The slice that a parameter is in."""
    return next(number for path, number in places.items() if parameter.startswith(f"{path}."))
