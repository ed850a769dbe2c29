"""Contiguous slices of the model's layers, for the workers of a pipeline."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from itertools import accumulate, pairwise

from torch import Tensor, nn

from ...models.multimodal import MultimodalModel


def cut_layers(costs: Sequence[float], num_slices: int) -> list[range]:
    """Cut layers into contiguous slices whose costliest is as cheap as can be.

    Args:
        costs: cost of each layer, in order, any unit.
        num_slices: how many slices; at most one per layer, none empty.
    """
    sums = [0.0, *accumulate(costs)]
    best: dict[tuple[int, int], tuple[float, list[int]]] = {(0, 0): (0.0, [0])}
    for slices in range(1, num_slices + 1):
        for end in range(slices, len(costs) - (num_slices - slices) + 1):
            best[slices, end] = min(
                (max(best[slices - 1, start][0], sums[end] - sums[start]), [*best[slices - 1, start][1], end])
                for start in range(slices - 1, end)
                if (slices - 1, start) in best
            )
    cuts = best[num_slices, len(costs)][1]
    return [range(start, end) for start, end in pairwise(cuts)]


class ModelSlice(nn.Module):
    """A contiguous part of a model's layers; its first inputs are what the slice before it left.

    Modules keep their paths, so a slice's parameters are named as in the whole model.

    Args:
        model: that has those layers, and none of others.
        layers: which of `model.layer_names` this slice runs.
        takes: names of what enters it; see `MultimodalModel.state_after`.
        gives: names of what leaves it; empty for the last slice, which gives the model's outputs.
    """

    def __init__(
        self, model: MultimodalModel, layers: Sequence[str], takes: Sequence[str], gives: Sequence[str]
    ) -> None:
        super().__init__()
        self.model = model
        self.layers = tuple(layers)
        self.takes = tuple(takes)
        self.gives = tuple(gives)

    def forward(self, *entering: Tensor, **batch: Tensor) -> tuple[Tensor, ...]:
        """Run the slice on a microbatch."""
        state = dict(zip(self.takes, entering, strict=True))
        self.model.run_layers(self.layers, state, batch)
        if not self.gives:
            return tuple(self.model.outputs(state, batch).values())
        # a copy, since a stage may not hand on the very tensor that it was given, nor a view of it
        return tuple(state[key].clone() for key in self.gives)


def slice_model(
    model: MultimodalModel, places: Mapping[str, int], mine: Collection[int]
) -> dict[int, ModelSlice]:
    """Cut a model into slices, and keep some.

    Args:
        model: whole; it keeps only the layers of those slices.
        places: see `place_layers`.
        mine: which of the slices.

    Returns:
        Number → slice, whose modules are those of `model`.
    """
    names, last = model.layer_names, max(places.values())
    modules = {id(module): module for module in map(model.get_submodule, places)}
    slices: dict[int, ModelSlice] = {}
    for number in sorted(mine):
        layers = [name for name in names if places[name] == number]
        first = names.index(layers[0])
        gives = model.state_after(first + len(layers)) if number < last else ()
        kept = deepcopy(model, dict(modules))  # of the same layers
        for path in places:
            if places[path] != number:
                _drop(kept, path)
        slices[number] = ModelSlice(kept, layers, model.state_after(first), gives)
    for path in places:
        if places[path] not in mine:
            _drop(model, path)
    return slices


def place_layers(model: MultimodalModel, num_slices: int, costs: Mapping[str, float]) -> dict[str, int]:
    """Path of every layer, and of what goes with one or isn't run at all → the slice that it is in.

    Args:
        model: the whole one.
        num_slices: that its layers are cut into.
        costs: layer → cost of a pass through it, any unit.
    """
    names = model.layer_names
    cut = cut_layers([costs[name] for name in names], num_slices)
    places = {names[i]: number for number, part in enumerate(cut) for i in part}
    if "decoder.embed" in places:
        places |= {"gate": places["decoder.embed"], "decoder.head": num_slices - 1}
    used = {path.partition(".")[0] for path in places}
    return places | {name: num_slices - 1 for name, _ in model.named_children() if name not in used}


def _drop(model: nn.Module, path: str) -> None:
    parent, _, name = path.rpartition(".")
    owner = model.get_submodule(parent)
    if isinstance(owner, nn.ModuleList):
        owner[int(name)] = nn.Identity()
    else:
        setattr(owner, name, nn.Identity())
