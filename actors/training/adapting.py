"""Training on from a checkpoint: what stays as it is, what learns slower, and what is learned beside it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...models.multimodal import TOWERS, MultimodalModel
from ...workflows.errors import EaglerayError
from .checkpoint import is_below
from .spec import AdaptationSpec, LoraSpec


class LoraLinear(nn.Linear):
    """A linear layer that is left as it is, and a low-rank one beside it that learns (arXiv 2106.09685).

    y = W x + b + (alpha / rank) * up(down(x)). `up` starts at zero, so nothing changes before training. It is
    an `nn.Linear` with two parameters more, so it is split and sharded as one.

    Args:
        base: whose parameters it takes.
        spec: rank and weight.
    """

    def __init__(self, base: nn.Linear, spec: LoraSpec) -> None:
        super().__init__(base.in_features, base.out_features, bias=False, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.scale = spec.alpha / spec.rank
        self.lora_down = nn.Parameter(base.weight.new_empty(spec.rank, base.in_features))
        self.lora_up = nn.Parameter(base.weight.new_zeros(base.out_features, spec.rank))
        nn.init.kaiming_uniform_(self.lora_down, a=math.sqrt(5))

    def forward(self, input: Tensor) -> Tensor:
        """Transform (..., in) to (..., out)."""
        beside = F.linear(F.linear(input, self.lora_down), self.lora_up)
        return super().forward(input) + self.scale * beside

    def merged(self) -> nn.Linear:
        """A plain layer that computes the same."""
        plain = nn.Linear(self.in_features, self.out_features, self.bias is not None)  # pyright: ignore[reportUnnecessaryComparison]
        with torch.no_grad():
            plain.weight.copy_(self.weight + self.scale * self.lora_up @ self.lora_down)
            if plain.bias is not None:  # pyright: ignore[reportUnnecessaryComparison]
                plain.bias.copy_(self.bias)
        return plain


def adapt(model: MultimodalModel, spec: AdaptationSpec, where: str = "") -> None:
    """Freeze what a spec names, and put its low-rank layers beside others; the model is whole still.

    With low-rank layers the encoders and the decoder are frozen but for those; the heads learn on.

    Raises:
        EaglerayError: when a name fits nothing, with the names there are.
    """
    if spec.lora is not None:
        found = 0
        for name in sorted(model.spec.parts):  # of a set: each process must draw in one order
            part = model.get_submodule(name)
            part.requires_grad_(False)
            for path, layer in list(part.named_modules()):
                if isinstance(layer, nn.Linear) and path.rpartition(".")[2] in spec.lora.layers:
                    parent, _, last = path.rpartition(".")
                    setattr(part.get_submodule(parent), last, LoraLinear(layer, spec.lora))
                    found += 1
        if not found:
            raise EaglerayError(
                f"lora.layers: no layer is named {' or '.join(spec.lora.layers)}",
                "name some of query, key, value, output, up, down",
                where,
            )
    names = [name for name, _ in model.named_parameters()]
    for path in spec.freeze:
        if not any(is_below(name, path) for name in names):
            known = sorted({".".join(name.split(".")[:2]) for name in names})
            raise EaglerayError(
                f"freeze: the model has no {path!r}", f"name a path such as {', '.join(known[:8])}", where
            )
    for name, parameter in model.named_parameters():
        if any(is_below(name, path) for path in spec.freeze):
            parameter.requires_grad_(False)


def merge(model: nn.Module) -> None:
    """Make every low-rank layer a part of the one it stands beside."""
    for path, layer in list(model.named_modules()):
        if isinstance(layer, LoraLinear):
            parent, _, last = path.rpartition(".")
            setattr(model.get_submodule(parent), last, layer.merged())


def layer_rates(model: MultimodalModel, decay: float) -> dict[str, float]:
    """Parameter → factor of its learning rate: `decay` for each layer between it and its encoder's top.

    What is no part of an encoder learns at the full rate (arXiv 2106.08254, appendix, among others).
    """
    rates: dict[str, float] = {}
    for name, _ in model.named_parameters():
        tower, _, rest = model.tied.get(name, name).partition(".")
        if tower not in TOWERS:
            rates[name] = 1.0
            continue
        blocks = len(list(model.get_submodule(f"{tower}.blocks").children()))
        layer, _, number = rest.partition(".")
        depth = {"embed": 0, "blocks": 1}.get(layer, blocks + 1)
        if layer == "blocks":
            depth += int(number.partition(".")[0])
        rates[name] = decay ** (blocks + 1 - depth)
    return rates
