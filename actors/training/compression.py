"""Top-k gradients with error feedback, packed for the wire (arXiv 1809.07599; both ways: arXiv 1905.05957).

A matrix is taken by rows, along the axis that tensor parallelism splits, so that no mesh cuts a row: of
each, the entries of largest magnitude are sent, and what is not is added to the next step's. A batch is
divided into a fixed number of *sources*, each with an error of its own, whoever computes it. So what is sent
is the same on every mesh, and training goes on on another one as if nothing had happened.

Each worker sends an entry to the worker that owns its row, which sums them up and chooses anew: a message's
size hangs on neither the number of workers nor on how far their choices agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod

import torch
from torch import Tensor

from ...models.layers import ROW
from .spec import CompressionSpec

SMALLEST_ROW = 8
"""Entries; what has shorter rows is sent whole."""


@dataclass(frozen=True)
class Rows:
    """A parameter as rows (R, C), as far as a worker of the tensor-parallel ones has it.

    Attributes:
        name: of the parameter.
        shape: of this worker's part of it.
        axis: that rows lie along.
        owners: data-parallel workers, each of which owns as many rows, but for the last ones.
    """

    name: str
    shape: tuple[int, ...]
    axis: int
    owners: int

    @property
    def count(self) -> int:
        """Rows."""
        return self.shape[self.axis]

    @property
    def length(self) -> int:
        """Entries of a row."""
        return prod(self.shape) // self.count

    @property
    def owned(self) -> int:
        """Rows of each owner, those included that fill up the last ones' share."""
        return -(-self.count // self.owners)

    def kept(self, density: float) -> int:
        """Entries of a row that are sent."""
        return min(self.length, ceil(density * self.length))

    def of(self, tensor: Tensor) -> Tensor:
        """A tensor of the parameter's shape as rows (R, C)."""
        return tensor.movedim(self.axis, 0).flatten(1)

    def put(self, rows: Tensor, into: Tensor) -> None:
        """Write rows (R or more, C) into a tensor of the parameter's shape."""
        moved = into.movedim(self.axis, 0)
        moved.copy_(rows[: self.count].view(moved.shape))

    def shares(self, rows: Tensor) -> Tensor:
        """Rows (R, …) by owner (owners, owned, …), filled up with zeros."""
        missing = self.owners * self.owned - self.count
        filled = torch.cat((rows, rows.new_zeros(missing, *rows.shape[1:]))) if missing else rows
        return filled.unflatten(0, (self.owners, self.owned))


def split_axis(name: str) -> int:
    """Axis that tensor parallelism splits a matrix along, of that name; see `Sharing`."""
    layer, _, kind = name.rpartition(".")
    return 1 if layer.rpartition(".")[2] in ROW and kind in ("weight", "lora_down") else 0


def rows_of(name: str, part: Tensor, owners: int) -> Rows | None:
    """How a parameter is taken by rows; None where it is sent whole.

    Args:
        name: its path.
        part: this worker's part of it.
        owners: data-parallel workers.
    """
    if part.dim() < 2:
        return None
    rows = Rows(name, tuple(part.shape), split_axis(name), owners)
    return rows if rows.length >= SMALLEST_ROW else None


def sizes(rows: Tensor) -> Tensor:
    """What entries of rows (R, C) are chosen by: their magnitude, a trace less the further back they are.

    Where inputs are equal, as in a picture of one color, so are gradients: which of them is sent must hang on
    more than rounding, which differs from mesh to mesh.
    """
    return rows.abs() * torch.linspace(1, 1 - 1e-6, rows.shape[1], dtype=rows.dtype, device=rows.device)


def take_largest(rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Take the largest entries out of rows (R, C), in place: their values and places (R, count)."""
    places = sizes(rows).topk(count, dim=1, sorted=False).indices
    values = rows.gather(1, places)
    rows.scatter_(1, places, 0)
    return values, places


class Packing:
    """Entries of many matrices as one message to each owner: values, then places in few bytes.

    Args:
        matrices: in order.
        compression: how much is sent.
        dtype: of the values.
    """

    def __init__(self, matrices: Sequence[Rows], compression: CompressionSpec, dtype: torch.dtype) -> None:
        self._matrices, self._dtype = matrices, dtype
        self.kept = [rows.kept(compression.density) for rows in matrices]
        self._widths = [_place_type(rows.length) for rows in matrices]

    @property
    def message_bytes(self) -> int:
        """Of a message to one owner."""
        return sum(
            rows.owned * kept * (self._dtype.itemsize + width.itemsize)
            for rows, kept, width in zip(self._matrices, self.kept, self._widths, strict=True)
        )

    def pack(self, entries: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Messages (owners, bytes) of each matrix's values and places (owners, owned, kept)."""
        parts = [values.to(self._dtype).flatten(1).contiguous().view(torch.uint8) for values, _ in entries]
        for (_, places), width in zip(entries, self._widths, strict=True):
            parts.append(places.flatten(1).to(width).contiguous().view(torch.uint8))
        return torch.cat(parts, dim=1)

    def unpack(self, messages: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Each matrix's values and places (messages, owned, kept) of messages (messages, bytes)."""
        found: list[Tensor] = []
        start = 0
        for types in ([self._dtype] * len(self._matrices), self._widths):
            for rows, kept, dtype in zip(self._matrices, self.kept, types, strict=True):
                stop = start + rows.owned * kept * dtype.itemsize
                part = messages[:, start:stop].flatten().clone().view(dtype)
                found.append(part.view(len(messages), rows.owned, kept))
                start = stop
        half = len(self._matrices)
        return [(found[i], found[half + i].to(torch.int64)) for i in range(half)]


def ring_bytes(size_bytes: float, workers: int) -> float:
    """What each of some workers sends when so many bytes are summed up by a ring."""
    return 2 * (workers - 1) / workers * size_bytes


def _place_type(length: int) -> torch.dtype:
    if length <= 2**8:
        return torch.uint8
    return torch.uint16 if length <= 2**16 else torch.int32
