"""Which tensors a worker holds in the course of a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

from ...models.spec import MODALITIES
from .schedules import order
from .tracing import Trace
from .worker import Worker

AHEAD = 2
"""Sharded layers that are whole at once: the one that runs and the one that is fetched meanwhile."""


def memory_of(worker: Worker) -> dict[str, int]:
    """Bytes of its tensors by category, at the moment of a step when there are most."""
    always = _resident(worker)
    count = worker.parallel.num_microbatches
    moments: list[dict[str, int]] = []
    active, put_off = 0, 0
    left = dict.fromkeys(worker.slices, count)
    whole = {n: _stays(worker, n) for n in worker.slices}
    summing = dict.fromkeys(worker.slices, 0)
    last = max(worker.slices) == worker.parallel.num_slices - 1
    for one in order(worker.parallel, worker.number):
        n = one.slice
        layers = [worker.traced.layers[name] for name in worker.slices[n]]
        held = sum(layer.held for layer in layers) + _given(worker, n)
        if one.kind == "forward":
            moments.append(
                always
                | _gathered(worker, whole, n)
                | {
                    "activations": active + put_off + _most_forward(layers),
                    "gradients": sum(summing.values()),
                }
            )
            active += held
            whole[n] = _stays(worker, n)
            continue
        if one.kind == "weights":
            put_off -= sum(layer.deferred for layer in layers)
            continue
        loss = worker.traced.loss if last and n == max(worker.slices) else Trace(0, 0, 0)
        moments.append(
            always
            | _gathered(worker, whole, n)
            | {
                "activations": active
                + put_off
                - held
                + _most_backward(layers, divides=one.kind == "inputs")
                + _given(worker, n),
                "contrastive logits": loss.held + loss.backward,
                "gradients": sum(summing.values()),
            }
        )
        active -= held
        if one.kind == "inputs":
            put_off += sum(layer.deferred for layer in layers)
        left[n] -= 1
        summing[n] = _summed(worker, n, is_last=left[n] == 0)
        whole[n] = _stays(worker, n) if left[n] == 0 else sum(group.whole for group in worker.groups[n])
    moments.append(always | {"gradients": sum(summing.values()), "activations": _update(worker)})
    most = max(moments, key=lambda moment: sum(moment.values()))
    return {name: size for name, size in most.items() if size}


def _resident(worker: Worker) -> dict[str, int]:
    """What is there all the time."""
    size, spec = worker.dtype.itemsize, worker.spec
    own = sum(worker.own(p) for p in worker.all_parameters)
    learning = [p for p in worker.all_parameters if p.learns]
    found = {"weights": own * size}
    state = sum(worker.state_of(p) for p in learning)
    found["optimizer"] = state * len(spec.optimizer.kept) * size
    if worker.parallel.sharding == "optimizer":  # the rows that it owns, to be stepped
        found["optimizer"] += sum(worker.state_of(p) * size for p in learning if worker.rows(p) is not None)
    if spec.optimizer.compression is not None:
        matrices = [(p, worker.state_of(p)) for p in learning if worker.rows(p) is not None]
        # the last pass's gradients come while what is left of the others' waits to be an error
        kept = 2 * worker.passes - 1
        found["compression errors"] = sum(kept * p.numel + owned for p, owned in matrices) * size
    if spec.objective.is_slow:
        found["follower"] = own * size
        if worker.is_last:
            width = worker.embed_dim * size * sum(1 for _ in worker.embedded(MODALITIES))
            found["past"] = spec.objective.negatives * (width + len(MODALITIES) + 8)
    found["inputs"] = 2 * worker.traced.inputs  # this step's, and the next one's
    found["buffers"] = sum(_buffers(worker, n) for n in worker.slices) * worker.parallel.num_microbatches
    return found


def _buffers(worker: Worker, n: int) -> int:
    """For what other workers send of a microbatch: states, gradients, and states once more ahead."""
    entering, leaving = worker.entering(n), worker.leaving(n)
    gradients = sum(size for name, size in leaving.items() if name in worker.traced.learned)
    times = 2 if worker.looks_ahead else 1
    return times * sum(entering.values()) + gradients


def _given(worker: Worker, n: int) -> int:
    """What a slice hands on, which is a copy."""
    return sum(worker.leaving(n).values())


def _gathered(worker: Worker, whole: Mapping[int, int], n: int) -> dict[str, int]:
    """Whole copies of sharded parameters while a slice runs."""
    largest = sorted((group.whole for group in worker.groups[n] if not group.stays), reverse=True)[:AHEAD]
    running = max(whole[n], _stays(worker, n) + sum(largest))
    return {"whole layers": sum(whole.values()) - whole[n] + running}


def _stays(worker: Worker, n: int) -> int:
    return sum(group.whole for group in worker.groups[n] if group.stays)


def _summed(worker: Worker, n: int, *, is_last: bool) -> int:
    """Bytes of a slice's gradients after a backward pass."""
    size = worker.dtype.itemsize
    learning = [p for p in worker.parameters[n] if worker.will_learn(p)]
    if is_last:
        return sum(worker.own(p) for p in learning) * size
    return sum(p.numel for p in learning) * size


def _update(worker: Worker) -> int:
    """Bytes that the update takes beside gradients, once activations are gone."""
    size = worker.dtype.itemsize
    learning = [p for p in worker.all_parameters if worker.will_learn(p)]
    if worker.parallel.sharding == "optimizer":
        matrices = sum(p.numel for p in learning if worker.rows(p) is not None)
        return matrices * size * (1 + worker.passes if worker.spec.optimizer.compression else 2)
    largest = max((worker.own(p) for p in learning), default=0)
    return 2 * largest * size if worker.spec.optimizer.algorithm == "adagrad" else 0


def _most_forward(layers: Sequence[Trace]) -> int:
    before = accumulate((layer.held for layer in layers), initial=0)
    return max(held + layer.forward for held, layer in zip(before, layers, strict=False))


def _most_backward(layers: Sequence[Trace], *, divides: bool) -> int:
    """Bytes at the most in a backward pass, at whichever layer it is; see `schedules.Kind`."""
    held, put_off, most = sum(layer.held for layer in layers), 0, 0
    for layer in reversed(layers):
        most = max(most, held + layer.backward + put_off)
        held -= layer.held
        put_off += layer.deferred if divides else 0
    return most
