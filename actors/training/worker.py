"""What one worker of a pipeline has of a training, before any is started."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil

import torch

from ...models.layers import HALF
from ...models.spec import EMBEDDED, MODALITIES
from .certificate import Training
from .compression import Rows, rows_of
from .precision import DTYPES, first_state, weights_dtype
from .spec import ParallelSpec
from .tracing import Parameter, Traced


@dataclass(frozen=True)
class Group:
    """Parameters that are sharded, gathered and reduced together."""

    parameters: Sequence[Parameter]
    computes: torch.dtype
    workers: int
    stays: bool
    """Whether it stays whole after a forward pass."""

    @property
    def shard(self) -> int:
        """Entries of a worker's shard, filled up."""
        return sum(shard_size(p.shape, self.workers) for p in self.parameters)

    @property
    def whole(self) -> int:
        """Bytes of its parameters in the format that it computes in."""
        return sum(p.numel for p in self.parameters) * self.computes.itemsize


class Worker:
    """One worker of the pipeline; those beside it along other axes are alike.

    Args:
        training: what it is a worker of.
        traced: what the training's layers take.
        places: see `place_layers`.
        number: of the worker in the pipeline.

    Attributes:
        slices: number of each of its slices → its layers.
        parameters: number of each → its parameters, before they are sharded.
        groups: number of each → what is sharded together, or cast as if it were.
        passes: see `TrainingSpec.passes`.
        dtype: of weights, gradients and the optimizer's state.
    """

    def __init__(self, training: Training, traced: Traced, places: Mapping[str, int], number: int) -> None:
        self.spec, self.traced, self.number = training.spec, traced, number
        self.parallel = training.spec.parallel
        self.embed_dim = training.model.embed_dim
        self.dtype = weights_dtype(self.spec.precision)
        state = first_state(traced.model.layer_names, self.spec.precision, self.spec.precision_control)
        self.formats = {name: DTYPES[found] for name, found in state.formats.items()}
        mine = range(number, self.parallel.num_slices, self.parallel.pipeline)
        names = traced.model.layer_names
        self.slices = {n: [name for name in names if places[name] == n] for n in mine}
        placed = {name: place_of(name, places) for name in traced.parameters}
        # tied weights lie twice
        self.parameters = {
            n: [p for name, p in traced.parameters.items() if placed[name] == n] for n in self.slices
        }
        self.learning = frozenset[str]().union(*(one.learning for one in traced.layers.values()))
        self.passes = self.spec.passes
        self.groups = {n: list(self._groups(n)) for n in self.slices}

    @property
    def all_parameters(self) -> list[Parameter]:
        """Of all its slices."""
        return [p for found in self.parameters.values() for p in found]

    @property
    def is_last(self) -> bool:
        """Whether it is the pipeline's last."""
        return self.number == self.parallel.pipeline - 1

    @property
    def looks_ahead(self) -> bool:
        """Whether a step begins with a forward pass of all rows; see `Objective`."""
        objective = self.spec.objective
        return objective.uses_bank and (objective.is_slow or self.parallel.num_microbatches * self.passes > 1)

    def embedded(self, among: Sequence[str] | None = None) -> Iterator[str]:
        """Names of the outputs that stand in the bank."""
        if EMBEDDED & self.spec.objective.tasks:
            for name in self.traced.model.output_names:
                if name in MODALITIES or (among is None and name.startswith("found.")):
                    yield name

    def mesh_of(self, name: str) -> ParallelSpec:
        """The mesh that a layer, or a parameter, lies on."""
        return self.parallel.within(name.partition(".")[0])

    def _groups(self, n: int) -> Iterator[Group]:
        halves = not HALF.isdisjoint(self.formats.values())
        shards = any(self.mesh_of(name).data > 1 for name in ("", *self.slices[n]))
        if self.parallel.sharding != "full" or not (halves or shards):
            return
        layers, parameters = self.slices[n], self.parameters[n]
        for layer in layers:
            inside = [p for p in parameters if p.name.startswith(f"{layer}.")]
            if inside:
                yield Group(inside, self.formats[layer], self.mesh_of(layer).data, stays=False)
        rest = [p for p in parameters if not any(p.name.startswith(f"{layer}.") for layer in layers)]
        if rest:
            yield Group(rest, self.formats["heads"], self.parallel.data, stays=True)

    def will_learn(self, parameter: Parameter) -> bool:
        """Whether a parameter gets a gradient."""
        return parameter.learns and parameter.name in self.learning

    def has(self, name: str) -> bool:
        """Whether a parameter is in one of its slices."""
        return any(p.name == name for p in self.all_parameters)

    def rows(self, parameter: Parameter) -> Rows | None:
        """How ZeRO-1 divides a parameter; see `rows_of`."""
        shape = torch.empty(parameter.shape, device="meta")
        return rows_of(parameter.name, shape, self.parallel.data)

    def own(self, parameter: Parameter) -> int:
        """Entries of a parameter that it keeps."""
        if self.parallel.sharding != "full":
            return parameter.numel
        return shard_size(parameter.shape, self.mesh_of(parameter.name).data)

    def state_of(self, parameter: Parameter) -> int:
        """Entries of a parameter whose optimizer's state it keeps."""
        if self.parallel.sharding == "full":
            return self.own(parameter)
        rows = self.rows(parameter)
        return parameter.numel if rows is None else rows.owned * rows.length

    def leaving(self, n: int) -> Mapping[str, int]:
        """Bytes of what a slice leaves to the next."""
        if n == self.parallel.num_slices - 1:
            return {}
        return self.traced.state[self.slices[n][-1]]

    def entering(self, n: int) -> Mapping[str, int]:
        """Bytes of what a slice gets from the one before."""
        names = self.traced.model.layer_names
        first = names.index(self.slices[n][0])
        return self.traced.state[names[first - 1]] if first else {}


def shard_size(shape: Iterable[int], workers: int) -> int:
    """Entries of a parameter's largest shard along its first axis."""
    first, *rest = shape
    return ceil(first / workers) * torch.Size(rest).numel()


def place_of(parameter: str, places: Mapping[str, int]) -> int:
    """The slice that a parameter is in."""
    return next(number for path, number in places.items() if parameter.startswith(f"{path}."))
