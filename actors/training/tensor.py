"""Tensor and sequence parallelism of encoders and decoder.

Workers split every attention by heads and every MLP by columns (Megatron-LM, arXiv 1909.08053, section 3),
which is read off the module tree by the names that `models` keeps to. What stands between, each computes for
its part of the positions: a branch gathers all of them, and leaves to each worker its part of the sum
(arXiv 2205.05198, section 4.2.2). Outside of a tower all workers have all positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from ...models.heads.vocabulary import Vocabulary
from ...models.layers import BRANCHES, COLUMN, ROW, HeadParameter, RowDropout
from ...models.text import RelativeAttention, TextBlock
from ...models.vision import FeaturePyramid, PatchMerging
from .adapting import LoraLinear
from .local import local_part
from .team import Rows, Shares, Team, copy
from .vocabulary import Divided, ParallelEmbedding, ParallelVocabulary

Divide = Callable[[nn.Parameter, int], nn.Parameter]
"""Make of a parameter a worker's part of it, along an axis."""


class PartLinear(nn.Linear):
    """Some outputs of a linear layer; or of all outputs what some inputs make, to be added up.

    Attributes:
        adds_bias: whether the bias is a part of what it gives; where results are added up, one worker's is.
    """

    adds_bias = True

    def forward(self, input: Tensor) -> Tensor:
        """Transform (..., in) to (..., out)."""
        return F.linear(input, *self.local())

    def local(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias."""
        return local_part(self.weight), _bias(self, self.adds_bias)


PLAIN: tuple[type[nn.Linear], ...] = (nn.Linear, PartLinear)
"""Linear layers that are no more than that; those derived from them are not among them."""


class PartLora(LoraLinear):
    """The same of a low-rank layer beside another; the half of it that isn't split learns from all workers.

    Attributes:
        adds_bias: see `PartLinear`.
        team: the workers.
        whole: name of that half.
    """

    adds_bias = True
    team: Team
    whole: str

    def forward(self, input: Tensor) -> Tensor:
        """Transform (..., in) to (..., out)."""
        down, up = (
            copy(half, self.team) if name == self.whole else local_part(half)
            for name, half in (("lora_down", self.lora_down), ("lora_up", self.lora_up))
        )
        beside = F.linear(F.linear(input, down), up)
        return F.linear(input, local_part(self.weight), _bias(self, self.adds_bias)) + self.scale * beside


class PartHeads(HeadParameter):
    """Some heads."""

    def forward(self) -> Tensor:
        """The weight of the heads that live here."""
        return local_part(self.weight)


@dataclass(frozen=True)
class Layout:
    """How workers share a part of a model.

    Attributes:
        team: the tensor-parallel workers.
        divide: takes this worker's part of a parameter.
        rows: for an encoder with a grid of its own.
    """

    team: Team
    divide: Divide
    rows: Rows | None = None


class Sharing:
    """Parts of a model that are shared in one way.

    Args:
        layout: how.
    """

    def __init__(self, layout: Layout) -> None:
        self._team, self._divide, self._rows = layout.team, layout.divide, layout.rows
        self._shares: dict[str, Shares] = {}
        self._layers: list[nn.Module] = []

    def split(self, name: str, part: nn.Module) -> None:
        """Split a part of the model of that name in place: its vocabularies, and a tower's layers."""
        is_tower = hasattr(part, "blocks")
        if self._team.size > 1:
            for layer in part.modules():
                self._split_vocabulary(layer)
            if is_tower:
                self._shares[name] = Shares(self._team)
                self._split_tower(part, self._shares[name])
        if is_tower and self._rows is not None:
            self._move_rows(part, self._rows)

    def see(self, lengths: Mapping[str, int]) -> None:
        """Tell how many positions the rows have that come next, by tower; pictures have as many as ever."""
        for name, length in lengths.items():
            if name in self._shares:
                self._shares[name].length = length

    @property
    def summed(self) -> list[nn.Parameter]:
        """Parameters that every worker has whole, and of whose gradient it has a part."""
        return [p for layer in self._layers for p in layer.parameters()]

    def sum_gradients(self) -> None:
        """Add up what the workers have of the gradients of `summed`."""
        found = [local_part(p.grad) for p in self.summed if p.grad is not None]
        if not found:
            return
        total = torch.cat([part.flatten() for part in found])
        self._team.all_reduce(total)
        for part, whole in zip(found, total.split([part.numel() for part in found]), strict=True):
            part.copy_(whole.view_as(part))

    def _split_tower(self, tower: nn.Module, shares: Shares) -> None:
        embed, norm = tower.get_submodule("embed"), tower.get_submodule("norm")
        begin = shares.scatter if isinstance(embed, ParallelEmbedding) else shares.take
        _after(embed, begin)
        for block in tower.get_submodule("blocks").children():
            side = getattr(block, "resolution", None)
            self._split_block(block, shares if side is None else Shares(self._team, side**2))
        sides: tuple[int, ...] = getattr(tower, "resolutions", ())
        scales = [Shares(self._team, side**2) for side in sides]
        _after(norm, (scales[-1] if scales else shares).whole)
        self._layers.append(norm)
        pyramid = getattr(tower, "pyramid", None)
        if isinstance(pyramid, FeaturePyramid):

            def gather(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
                return [one.whole(x) for one, x in zip(scales, args[0], strict=True)], *args[1:]

            pyramid.register_forward_pre_hook(gather)

    def _move_rows(self, tower: nn.Module, rows: Rows) -> None:
        def move(x: object) -> object:
            return rows.enter(x) if isinstance(x, Tensor) else x

        def enter(kept: int, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401 - as torch says
            return (*args[:kept], *map(move, args[kept:])), tree_map(move, kwargs)

        layers = {0: [tower.get_submodule("embed")], 1: tower.get_submodule("blocks").children()}
        for kept, some in layers.items():  # a block's first input has come in before
            for layer in some:
                layer.register_forward_pre_hook(partial(enter, kept), with_kwargs=True)
        pyramid = getattr(tower, "pyramid", None)
        _after(tower.get_submodule("norm") if pyramid is None else pyramid, rows.leave)

    def _split_block(self, block: nn.Module, shares: Shares) -> None:
        if isinstance(block, PatchMerging):
            block.register_forward_pre_hook(lambda _, args: (shares.whole(args[0]), *args[1:]))
            _after(block, shares.take)
        if isinstance(block, TextBlock):
            block.parts = self._team.size
        for name, layer in block.named_children():
            if isinstance(layer, RowDropout):
                layer.part = self._team.rank
            elif name in BRANCHES:
                self._split_branch(layer, shares)
            elif not isinstance(block, PatchMerging):
                self._layers.append(layer)

    def _split_branch(self, branch: nn.Module, shares: Shares) -> None:
        streams = 2 if isinstance(branch, RelativeAttention) else 1

        def gather(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            whole = (x if x is None else shares.gather(x) for x in args[:streams])
            return *whole, *tree_map(self._copied, args[streams:])

        branch.register_forward_pre_hook(gather)
        _after(branch, shares.scatter)
        for path, layer in branch.named_modules():
            name = path.rpartition(".")[2]
            if isinstance(layer, HeadParameter):
                self._split_layer(layer, PartHeads, {"weight": 0})
            elif isinstance(layer, nn.Linear) and name in COLUMN:
                self._split_linear(layer, {"weight": 0, "bias": 0, "lora_up": 0})
                if name == "per_head":  # what it is given, all workers have made alike
                    layer.register_forward_pre_hook(lambda _, args: tuple(map(self._copied, args)))
            elif isinstance(layer, nn.Linear) and name in ROW:
                self._split_linear(layer, {"weight": 1, "lora_down": 1})
                assert isinstance(layer, (PartLinear, PartLora))
                layer.adds_bias = self._team.rank == 0

    def _split_linear(self, layer: nn.Linear, axes: Mapping[str, int]) -> None:
        self._split_layer(layer, PartLora if isinstance(layer, LoraLinear) else PartLinear, axes)
        if isinstance(layer, PartLora):
            layer.team, layer.whole = self._team, "lora_down" if "lora_up" in axes else "lora_up"

    def _split_vocabulary(self, layer: nn.Module) -> None:
        kinds: dict[type[nn.Module], type[nn.Module]] = {
            nn.Embedding: ParallelEmbedding,
            Vocabulary: ParallelVocabulary,
        }
        kind = kinds.get(type(layer))
        if kind is not None and layer.get_parameter("weight").shape[0] % self._team.size == 0:
            self._split_layer(layer, kind, {"weight": 0, "bias": 0})
            assert isinstance(layer, Divided)
            layer.team = self._team

    def _split_layer(self, layer: nn.Module, kind: type[nn.Module], axes: Mapping[str, int]) -> None:
        for name, parameter in list(layer.named_parameters(recurse=False)):
            if name in axes:
                layer.register_parameter(name, self._divide(parameter, axes[name]))
        layer.__class__ = kind

    def _copied(self, x: object) -> object:
        return copy(x, self._team) if isinstance(x, Tensor) else x


def divide_over(mesh: DeviceMesh) -> Divide:
    """Take a worker's part of a parameter; what is frozen stays so."""
    from torch.distributed.tensor import Shard, distribute_tensor

    def divide(parameter: nn.Parameter, axis: int) -> nn.Parameter:
        return nn.Parameter(distribute_tensor(parameter, mesh, [Shard(axis)]), parameter.requires_grad)

    return divide


def split_model(model: nn.Module, main: Layout, layouts: Mapping[str, Layout]) -> list[Sharing]:
    """Split a model over workers in place.

    Args:
        model: the whole of it, or a worker's slices.
        main: how workers share it.
        layouts: tower → how workers share that, where it is in another way.
    """
    sharing = Sharing(main)
    found = [sharing]
    for name, part in model.named_children():
        if name in layouts:
            found.append(Sharing(layouts[name]))
            found[-1].split(name, part)
        else:
            sharing.split(name, part)
    return found


def _bias(layer: nn.Linear, adds: bool) -> Tensor | None:
    if layer.bias is None:  # pyright: ignore[reportUnnecessaryComparison]
        return None
    bias = local_part(layer.bias)
    return bias if adds else bias - bias.detach()  # nothing, and the gradient is whole on every worker


def _after(layer: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
    def see(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:  # noqa: ANN401 - a tensor, or several
        return tree_map(change, output)

    layer.register_forward_hook(see)
