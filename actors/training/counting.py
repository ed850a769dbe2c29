"""What is seen of layers while they run: bytes that are alive, operations, what could be put off."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from .tensor import PLAIN


class Live(TorchDispatchMode):
    """Bytes of the tensors made within that are still there, the most there were, and operations done."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.flops = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever it gives
        kwargs = kwargs or {}
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor):
                self._see(tensor, counts=False)  # was there before
        out = func(*args, **kwargs)
        if (count := flop_registry.get(func.overloadpacket)) is not None:
            self.flops += count(*args, **kwargs, out_val=out)
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._see(tensor, counts=True)
        return out

    def _see(self, tensor: Tensor, *, counts: bool) -> None:
        storage, key = tensor.untyped_storage(), storage_of(tensor)
        if key in self._known:
            return
        self._known[key] = storage.nbytes() if counts else 0
        self.now += self._known[key]
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.now -= self._known.pop(key, 0)


class Deferrable:
    """What the linear layers of some modules were given and gave, if their weights' gradients are put off."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._inputs: dict[int, int] = {}  # several read the same
        self._outputs = 0
        self._layers = [layer for module in modules for layer in module.modules() if type(layer) in PLAIN]
        self._handles: list[Any] = []

    @property
    def nbytes(self) -> int:
        """Bytes of what they were given, and of the gradients of what they gave."""
        return sum(self._inputs.values()) + self._outputs

    def __enter__(self) -> Deferrable:
        self._handles = [layer.register_forward_hook(self._see) for layer in self._layers]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _see(self, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if output.requires_grad:
            self._inputs[storage_of(inputs[0])] = inputs[0].nbytes
            self._outputs += output.nbytes


def storage_of(tensor: Tensor) -> int:
    """What tells a tensor's memory from others', as long as it lives."""
    return tensor.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]
