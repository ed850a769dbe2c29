"""Whole parameters at every data-parallel worker, and an optimizer that each has a part of (ZeRO-1, arXiv
1910.02054, 5.1); gradients whole or compressed on their way to it.

A worker owns some rows of every matrix: it gets the sum of their gradients, steps, and tells the others what
became of the rows. Of Adagrad only what has a gradient moves, so of compressed gradients only that is told.
Vectors are too small to be worth it: every worker keeps all of them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from .compression import Packing, Rows, ring_bytes, rows_of, sizes, take_largest
from .local import local_part, num_holders, split_as
from .optimizer import LocalOptimizer, Part
from .spec import OptimizerSpec


class ZeroOptimizer:
    """An optimizer whose state is divided over the data-parallel workers.

    Args:
        spec: its settings.
        model: this worker's part of it; parameters may be split by tensor parallelism only.
        rates: see `LocalOptimizer`.
        copies: names of parameters that are copies of others, see `LocalOptimizer`.
        mesh: of data × tensor workers.

    Attributes:
        sent_bytes: what this worker has sent, all steps together.
    """

    def __init__(
        self,
        spec: OptimizerSpec,
        model: nn.Module,
        rates: Mapping[str, float],
        copies: Collection[str],
        mesh: DeviceMesh,
    ) -> None:
        self.spec, self._mesh = spec, mesh
        self._group = mesh["data"].get_group()
        self._size, self._rank = mesh["data"].size(), mesh["data"].get_local_rank()
        self._whole = {name: p for name, p in model.named_parameters() if p.requires_grad}
        with torch.no_grad():
            parts = {name: local_part(p) for name, p in self._whole.items()}
        found = {name: rows_of(name, part, self._size) for name, part in parts.items()}
        self._matrices = {name: rows for name, rows in found.items() if rows is not None}
        # an owner's rows, which it steps, and every worker's vectors
        self._own = {
            name: nn.Parameter(self._share(self._matrices[name], part))
            if name in self._matrices
            else nn.Parameter(part)
            for name, part in parts.items()
        }
        holders = {name: self._holders(name) for name in parts}
        self._inner = LocalOptimizer(spec, self._own, rates, copies, holders)
        self.sent_bytes = 0
        compression = spec.compression
        self._passes = 1 if compression is None else compression.sources // self._size
        self._errors: list[dict[str, Tensor]] = []
        self._owner_error: dict[str, Tensor] = {}
        self._rests: list[dict[str, Tensor]] = []
        self._messages: list[Tensor] = []
        self._is_bad = False
        self._sums: dict[str, Tensor] = {}
        dtype = next(iter(parts.values())).dtype
        if compression is not None:
            self._packing = Packing(list(self._matrices.values()), compression, dtype)
            self._errors = [
                {name: torch.zeros_like(rows.of(parts[name])) for name, rows in self._matrices.items()}
                for _ in range(self._passes)
            ]
            self._owner_error = {name: torch.zeros_like(self._own[name]) for name in self._matrices}

    @property
    def passes(self) -> int:
        """Parts of this worker's rows whose gradients are taken one after the other."""
        return self._passes

    @torch.no_grad()
    def take(self, number: int, scale: float) -> None:
        """Take the parameters' gradients of a pass, multiplied by a scale, and forget them there."""
        gradients = {name: self._gradient(name) for name in self._whole}
        for whole in self._whole.values():
            whole.grad = None
        if scale != 1:
            torch._foreach_div_(list(gradients.values()), scale)  # pyright: ignore[reportPrivateUsage]
        for name, gradient in gradients.items():
            if name not in self._matrices or self.spec.compression is None:
                self._sums[name] = gradient if name not in self._sums else self._sums[name] + gradient
        if self.spec.compression is None:
            return
        self._is_bad |= any(not bool(g.isfinite().all()) for g in gradients.values())
        rest = {
            name: self._errors[number][name] + rows.of(gradients[name])
            for name, rows in self._matrices.items()
        }
        entries: list[tuple[Tensor, Tensor]] = []
        for (name, rows), kept in zip(self._matrices.items(), self._packing.kept, strict=True):
            values, places = take_largest(rest[name], kept)
            entries.append((rows.shares(values), rows.shares(places)))
        self._rests.append(rest)
        self._messages.append(self._packing.pack(entries))

    @torch.no_grad()
    def gather(self) -> None:
        """Give each owner the sum of all workers' gradients; what isn't finite makes all of it so."""
        if self.spec.compression is None:
            self._gather_whole()
        else:
            self._gather_entries()
        vectors = [self._sums[name].flatten() for name in self._own if name not in self._matrices]
        if vectors:
            flat = torch.cat(vectors)
            dist.all_reduce(flat, group=self._group)
            self.sent_bytes += round(ring_bytes(flat.nbytes, self._size))
            names = [name for name in self._own if name not in self._matrices]
            for name, part in zip(names, flat.split([v.numel() for v in vectors]), strict=True):
                self._own[name].grad = part.view_as(self._own[name])
        self._sums = {}

    @torch.no_grad()
    def gradients(self) -> dict[str, Tensor]:
        """The gradient of each parameter, of its shape, after `gather`. All workers call it together."""
        found = {name: own.grad for name, own in self._own.items()}
        return {
            name: self._assemble(name, g, self._whole[name]) for name, g in found.items() if g is not None
        }

    def parts(self) -> list[Part]:
        """What this worker owns of each parameter."""
        return self._inner.parts()

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Change the owned rows by their gradients, and have the others know."""
        moved = {name: own.grad for name, own in self._own.items()}
        self._inner.step(learning_rate)
        if self.spec.compression is not None and self.spec.algorithm == "adagrad":
            self._tell_entries(learning_rate, moved)
        else:
            self._tell_rows()

    def zero_grad(self) -> None:
        """Forget all gradients."""
        self._inner.zero_grad()
        for whole in self._whole.values():
            whole.grad = None

    @torch.no_grad()
    def state(self) -> dict[str, Tensor]:
        """What it keeps, by name, of whole parameters; errors also by source.

        All workers call it together.
        """
        found: dict[str, Tensor] = {}
        for name, p in self._whole.items():
            for key, value in self._inner.kept(name).items():
                found[f"{name}.{key}"] = value if key == "step" else self._assemble(name, value, p)
            if name in self._owner_error:
                found[f"{name}.error"] = self._assemble(name, self._owner_error[name], p)
                found[f"{name}.errors"] = self._errors_of(name, p)
        return found

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take what `state` gave, here or elsewhere, and the owned rows of the parameters as they are now."""
        for name, p in self._whole.items():
            rows = self._matrices.get(name)
            if rows is not None:
                self._own[name].copy_(self._share(rows, local_part(p)))
            for key, value in self._inner.kept(name).items():
                loaded = local_part(state[f"{name}.{key}"])
                value.copy_(loaded if key == "step" or rows is None else self._share(rows, loaded))
            if rows is not None and name in self._owner_error:
                self._owner_error[name].copy_(self._share(rows, local_part(state[f"{name}.error"])))
                for error, loaded in zip(self._errors, local_part(state[f"{name}.errors"]), strict=True):
                    error[name].copy_(rows.of(loaded))

    def _gather_whole(self) -> None:
        shares = [rows.shares(rows.of(self._sums[name])).flatten(1) for name, rows in self._matrices.items()]
        sent = torch.cat(shares, dim=1)
        mine = sent.new_empty(sent.shape[1])
        dist.reduce_scatter_single(mine, sent.flatten(), group=self._group)
        self.sent_bytes += (self._size - 1) * mine.nbytes
        for name, part in zip(self._matrices, mine.split([s.shape[1] for s in shares]), strict=True):
            self._own[name].grad = part.view_as(self._own[name])

    def _gather_entries(self) -> None:
        rests, self._rests = self._rests, []
        messages, self._messages = self._messages, []
        bad = torch.tensor(float(self._is_bad))
        dist.all_reduce(bad)
        self._is_bad = False
        if bad:  # the step won't be taken: nothing is sent, and the errors stay as they were
            for name in self._matrices:
                self._own[name].grad = torch.full_like(self._own[name], float("inf"))
            return
        self._errors = rests
        sums = {name: torch.zeros_like(self._own[name]) for name in self._matrices}
        for message in messages:
            received = torch.empty_like(message)
            dist.all_to_all_single(received, message, group=self._group)
            self.sent_bytes += (self._size - 1) * message.shape[1]
            for name, (values, places) in zip(sums, self._packing.unpack(received), strict=True):
                for theirs, where in zip(values, places, strict=True):
                    sums[name].scatter_add_(1, where, theirs)
        for (name, total), kept in zip(sums.items(), self._packing.kept, strict=True):
            error = self._owner_error[name].add_(total)
            values, places = take_largest(error, kept)
            self._own[name].grad = torch.zeros_like(total).scatter_(1, places, values)

    def _tell_rows(self) -> None:
        mine = torch.cat([self._own[name].flatten() for name in self._matrices])
        all_of_them = mine.new_empty(self._size, mine.numel())
        dist.all_gather_single(all_of_them.flatten(), mine, group=self._group)
        self.sent_bytes += (self._size - 1) * mine.nbytes
        sizes = [self._own[name].numel() for name in self._matrices]
        for (name, rows), part in zip(self._matrices.items(), all_of_them.split(sizes, dim=1), strict=True):
            rows.put(part.reshape(-1, rows.length), local_part(self._whole[name]))

    def _tell_entries(self, learning_rate: float, gradients: Mapping[str, Tensor | None]) -> None:
        entries: list[tuple[Tensor, Tensor]] = []
        for name, kept in zip(self._matrices, self._packing.kept, strict=True):
            gradient = gradients[name]
            assert gradient is not None
            places = sizes(gradient).topk(kept, dim=1, sorted=False).indices
            entries.append((self._own[name].gather(1, places)[None], places[None]))
        message = self._packing.pack(entries)[0]
        messages = message.new_empty(self._size, len(message))
        dist.all_gather_single(messages.flatten(), message, group=self._group)
        self.sent_bytes += (self._size - 1) * message.nbytes
        for (name, rows), (values, places) in zip(
            self._matrices.items(), self._packing.unpack(messages), strict=True
        ):
            local = local_part(self._whole[name])
            local.mul_(self._inner.decay(name, learning_rate))
            known = rows.of(local).contiguous()
            count = rows.count
            known.scatter_(1, places.flatten(0, 1)[:count], values.flatten(0, 1)[:count])
            rows.put(known, local)

    def _gradient(self, name: str) -> Tensor:
        gradient = self._whole[name].grad
        if gradient is None:
            return torch.zeros_like(local_part(self._whole[name]))
        return local_part(gradient)

    def _share(self, rows: Rows, part: Tensor) -> Tensor:
        # as it lies in memory, too: fused steps take a gradient's entries in that order
        return rows.shares(rows.of(part))[self._rank].clone(memory_format=torch.contiguous_format)

    def _holders(self, name: str) -> int:
        """Workers that have the same entries as this one's own of a parameter."""
        holders = num_holders(self._whole[name], self._size * self._mesh["tensor"].size())
        return holders // self._size if name in self._matrices else holders

    def _assemble(self, name: str, own: Tensor, parameter: Tensor) -> Tensor:
        """The whole of what each worker has the owned rows of, split as the parameter is."""
        rows = self._matrices.get(name)
        if rows is None:
            return split_as(own, parameter)
        parts = own.new_empty(self._size, own.numel())
        dist.all_gather_single(parts.flatten(), own.flatten(), group=self._group)
        whole = torch.empty_like(local_part(parameter))
        rows.put(parts.view(-1, rows.length), whole)
        return split_as(whole, parameter)

    def _errors_of(self, name: str, parameter: Tensor) -> Tensor:
        """The errors of all sources (sources, *shape), divided over the data-parallel workers."""
        rows = self._matrices[name]
        mine = torch.stack([torch.empty_like(local_part(parameter)) for _ in self._errors])
        for error, into in zip(self._errors, mine, strict=True):
            rows.put(error[name], into)
        split = isinstance(parameter, DTensor) and not parameter.placements[-1].is_replicate()
        where = [Shard(0), Shard(rows.axis + 1) if split else Replicate()]
        return DTensor.from_local(mine, self._mesh, where, run_check=False)
