"""What really crosses between workers, and what tensors really take, seen at the dispatcher."""

from __future__ import annotations

import weakref
from collections import Counter
from unittest.mock import patch

import torch
from torch import distributed as dist
from torch.distributed.fsdp._fully_shard import _fsdp_param
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves

FEW = 40  # bytes: counts, terms and norms, which everybody must know
WAITS = {
    "scatter_",
    "broadcast_",
    "wait_tensor",
    "_wrap_tensor_autograd",
    "barrier",
    "recv_",
    "recv_any_source_",
}


class Meter(TorchDispatchMode):
    """Counts from when it is entered on.

    Attributes:
        sent: bytes that this worker has sent by the name of the group, by ring algorithms.
        told: the same of messages of a few numbers to all.
        now: bytes of the tensors that are there.
        peak: the most since it was last set.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sent: Counter[str] = Counter()
        self.told: Counter[str] = Counter()
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __enter__(self):
        self._patches = [
            patch.object(_fsdp_param, name, self._resizing(getattr(_fsdp_param, name)))
            for name in ("alloc_storage", "free_storage")
        ]
        for one in self._patches:
            one.start()
        return super().__enter__()

    def __exit__(self, *exception):
        super().__exit__(*exception)
        for one in self._patches:
            one.stop()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(issubclass(one, DTensor) for one in types):
            return NotImplemented  # what it does with its local parts is seen then
        kwargs = kwargs or {}
        if func.namespace in ("c10d", "_c10d_functional"):
            self._count(func._schema.name.split("::")[1], [*args, *kwargs.values()])
        out = func(*args, **kwargs)
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and not is_traceable_wrapper_subclass(tensor):
                self._see(tensor.untyped_storage())
        return out

    def _see(self, storage) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = 0
            weakref.finalize(storage, self._set, key, None)
        self._set(key, storage.nbytes())

    def _set(self, key: int, size: int | None) -> None:
        self.now += (size or 0) - self._sizes.get(key, 0)
        if size is None:
            self._sizes.pop(key, None)
        else:
            self._sizes[key] = size
        self.peak = max(self.peak, self.now)

    def _resizing(self, function):
        def resize(tensor, *arguments):
            result = function(tensor, *arguments)
            self._see(tensor.untyped_storage())
            return result

        return resize

    def _count(self, name: str, arguments: list) -> None:
        if name in WAITS:
            return
        group = next(filter(None, map(group_of, reversed(arguments))))
        workers = group.size()
        tensors = [sum(t.nbytes for t in tree_leaves(a) if isinstance(t, torch.Tensor)) for a in arguments]
        shares = {
            "allreduce_": lambda: 2 * (workers - 1) / workers * tensors[0],
            "all_reduce": lambda: 2 * (workers - 1) / workers * tensors[0],
            "_allgather_base_": lambda: (workers - 1) * tensors[1],
            "allgather_": lambda: (workers - 1) * tensors[1],
            "_reduce_scatter_base_": lambda: (workers - 1) * tensors[0],
            "alltoall_base_": lambda: (workers - 1) / workers * tensors[1],
            "send": lambda: tensors[0],
        }
        is_told_all = tensors[0] <= FEW and name != "send"
        (self.told if is_told_all else self.sent)[group.group_name] += shares[name]()


def group_of(argument) -> dist.ProcessGroup | None:
    if isinstance(argument, torch.ScriptObject):
        try:
            return dist.ProcessGroup.unbox(argument)
        except RuntimeError:
            return None
    if isinstance(argument, str) and argument != "sum":
        return dist.distributed_c10d._resolve_process_group(argument)
    return None
