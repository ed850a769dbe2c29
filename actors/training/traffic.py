"""What a worker sends in a step."""

from __future__ import annotations

from ...models.spec import MODALITIES
from .compression import Packing, ring_bytes
from .schedules import order
from .worker import Group, Worker


def sent_by(worker: Worker) -> dict[str, float]:
    """Bytes a step that a worker sends along each axis, by ring algorithms where all sum up."""
    count = worker.parallel.num_microbatches
    times = count * worker.passes
    ahead = 1 if worker.looks_ahead else 0
    tensor, pipeline = 0.0, 0
    for n, layers in worker.slices.items():
        for name in layers:
            forward, backward = worker.traced.layers[name].sent
            tensor += times * ((1 + ahead) * forward + backward)
        pipeline += times * (1 + ahead) * sum(worker.leaving(n).values())
        pipeline += times * sum(
            size for name, size in worker.entering(n).items() if name in worker.traced.learned
        )
    for p in worker.all_parameters:
        if p.name in worker.traced.summed and worker.will_learn(p):
            size = worker.passes * worker.own(p) * worker.dtype.itemsize
            tensor += ring_bytes(size, worker.mesh_of(p.name).tensor)
    return {
        "tensor": tensor,
        "pipeline": pipeline + _tied(worker),
        "data": _sent_for_gradients(worker) + _sent_for_bank(worker),
    }


def _sent_for_gradients(worker: Worker) -> float:
    if worker.parallel.sharding == "optimizer":
        return _sent_by_zero(worker)
    total = 0.0
    for n in worker.slices:
        for group in worker.groups[n]:
            reduced = sum(worker.own(p) for p in group.parameters if worker.will_learn(p))
            gathered = _gathers(worker, n, group) * group.shard * group.computes.itemsize
            total += (group.workers - 1) * (gathered + reduced * worker.dtype.itemsize)
    return total


def _gathers(worker: Worker, n: int, group: Group) -> int:
    """How often in a step a group's shards are gathered."""
    is_whole, found = False, 0
    left = worker.parallel.num_microbatches
    for one in order(worker.parallel, worker.number):
        if one.slice != n or one.kind == "weights":
            continue
        found += not is_whole
        if one.kind == "forward":
            is_whole = group.stays
        else:
            left -= 1
            is_whole = left > 0
    if worker.looks_ahead:
        found += 1 if group.stays else worker.parallel.num_microbatches
    return found


def _sent_by_zero(worker: Worker) -> float:
    data, size = worker.parallel.data, worker.dtype.itemsize
    learning = [p for p in worker.all_parameters if p.learns]
    found = [(p, worker.rows(p)) for p in learning]
    matrices = [rows for _, rows in found if rows is not None]
    vectors = sum(p.numel for p, rows in found if rows is None) * size
    total = ring_bytes(vectors, data)
    whole = (data - 1) * sum(rows.owned * rows.length for rows in matrices) * size
    compression = worker.spec.optimizer.compression
    if compression is None:
        return total + 2 * whole
    message = (data - 1) * Packing(matrices, compression, worker.dtype).message_bytes
    told = message if worker.spec.optimizer.algorithm == "adagrad" else whole
    return total + worker.passes * message + told


def _sent_for_bank(worker: Worker) -> float:
    if not (worker.is_last and worker.spec.objective.uses_bank):
        return 0.0
    data, size = worker.parallel.data, worker.dtype.itemsize
    told = 8 * (len(MODALITIES) + 2)  # which modalities it has, its group, its position
    row = worker.embed_dim * size * sum(1 for _ in worker.embedded()) + told
    return (data - 1) * worker.spec.batch_size / data * row


def _tied(worker: Worker) -> float:
    """Gradients of tied weights, which two workers of the pipeline tell each other."""
    total = 0
    for copy, source in worker.traced.model.tied.items():
        ends = [worker.has(name) for name in (copy, source)]
        parameter = worker.traced.parameters[source]
        if any(ends) and not all(ends) and parameter.learns:
            total += worker.own(parameter) * worker.dtype.itemsize * worker.passes
    return total


def dense_bytes(worker: Worker) -> float:
    """Bytes that it sends when gradients are summed up whole by a ring."""
    entries = sum(p.numel for p in worker.all_parameters if p.learns)
    return ring_bytes(entries * worker.dtype.itemsize, worker.parallel.data)
