"""An optimizer divided over workers, and compressed gradients: what crosses the wire, and what is kept."""

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor

from eagleray.actors.training.compression import Packing, Rows, ring_bytes, take_largest
from eagleray.actors.training.group import run_group
from eagleray.actors.training.mesh import build_mesh
from eagleray.actors.training.optimizer import clip_gradients
from eagleray.actors.training.spec import CompressionSpec, OptimizerSpec, ParallelSpec
from eagleray.actors.training.zero import ZeroOptimizer

TOP_K = CompressionSpec(density=0.05, sources=16)


def optimizer_of(size: int, compression: CompressionSpec | None) -> tuple[nn.Module, ZeroOptimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(50, 256), nn.Linear(256, 300), nn.Linear(300, 64))
    spec = OptimizerSpec(algorithm="adagrad", compression=compression)
    mesh = build_mesh(ParallelSpec(data=size), "cpu")["data", "tensor"]
    return model, ZeroOptimizer(spec, model, {}, (), mesh)


def fill(model: nn.Module, seed: int) -> None:
    torch.manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn_like(p)


def step(rank: int, size: int, sources: int) -> tuple[int, float]:
    model, optimizer = optimizer_of(size, TOP_K.model_copy(update={"sources": sources}))
    for number in range(optimizer.passes):
        fill(model, rank * optimizer.passes + number)
        optimizer.take(number, 1.0)
    optimizer.gather()
    optimizer.step(0.1)
    return optimizer.sent_bytes, ring_bytes(sum(p.nbytes for p in model.parameters()), size)


@pytest.mark.parametrize("size", [2, 4, 8, 16])
def test_at_least_65_percent_less_crosses_the_wire_however_many_workers(size):
    for sent, dense in run_group(step, size, size, size):
        assert 0 < sent <= 0.35 * dense


def skip(rank: int) -> tuple[float, list[bool]]:
    """A step that one worker's gradient is not finite in: its norm, and whether what is kept is the same."""
    model, optimizer = optimizer_of(2, TOP_K.model_copy(update={"sources": 2}))
    fill(model, rank)
    optimizer.take(0, 1.0)
    optimizer.gather()
    optimizer.step(0.1)
    before = errors_of(optimizer)
    fill(model, 2 + rank)
    if rank == 1:
        model[2].bias.grad[3] = torch.nan
    optimizer.take(0, 1.0)
    optimizer.gather()
    norm = clip_gradients(optimizer.parts(), 1.0)
    optimizer.zero_grad()
    after = errors_of(optimizer)
    return norm, [bool(torch.equal(after[name], value)) for name, value in before.items()]


def errors_of(optimizer: ZeroOptimizer) -> dict[str, torch.Tensor]:
    kept = {name: value for name, value in optimizer.state().items() if "error" in name}
    return {
        name: (value.full_tensor() if isinstance(value, DTensor) else value).clone()
        for name, value in kept.items()
    }


def test_a_step_that_is_left_out_leaves_no_trace():
    for norm, same in run_group(skip, 2):
        assert not norm < float("inf")
        assert same
        assert all(same)


def test_what_is_packed_is_unpacked():
    matrices = [Rows("a", (5, 300), 0, 2), Rows("b", (9, 4, 5), 0, 2), Rows("c", (70_000, 3), 1, 2)]
    packing = Packing(matrices, CompressionSpec(density=0.1), torch.float64)
    wholes = [torch.randn(rows.shape, dtype=torch.float64) for rows in matrices]
    entries = []
    for rows, whole, kept in zip(matrices, wholes, packing.kept, strict=True):
        values, places = take_largest(rows.of(whole).clone(), kept)
        entries.append((rows.shares(values), rows.shares(places)))
    messages = packing.pack(entries)
    assert messages.shape == (2, packing.message_bytes)
    for (values, places), (mine, where) in zip(entries, packing.unpack(messages), strict=True):
        assert torch.equal(values, mine)
        assert torch.equal(places, where)


def test_an_error_and_what_is_sent_are_all_of_a_gradient():
    rows = torch.randn(6, 40)
    rest = rows.clone()
    values, places = take_largest(rest, 4)
    assert torch.equal(rest.scatter(1, places, values), rows)
    assert values.abs().amin(dim=1).ge(0.9999 * rest.abs().amax(dim=1)).all()
