"""The proof that a mesh computes what one process does: loss, every gradient, and the weights they lead to.

A training stage's model, at toy width and in double precision, takes a few steps in gloo processes under the
stage's own mesh, sharding, schedule and loss. The same steps are taken in one process by plain PyTorch: no
mesh, no sharding, no schedule, no microbatch. What differs by more than rounding is named.

Both start from weights that are nowhere 0, and of the size at which no layer magnifies rounding: at those
that a training starts from, some gradients are 0 whatever is wrong with them.
"""

from __future__ import annotations

import copy
import logging
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .batching import counted_of, divide
from .certificate import STEPS, Finding, Training
from .group import run_group
from .toy import NUM_CLASSES, VOCAB_SIZE, toy_batch, toy_lengths, toy_rows

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .spec import CompressionSpec

Values = Mapping[str, NDArray[np.float64]]
Evidence = list[Mapping[str, Values]]
"""By step: what was computed → its values by name, of a term or of a parameter."""

LOSS, NORM, GRADIENTS, WEIGHTS = "loss", "gradient norm", "gradients", "weights"


def certify(training: Training) -> list[Finding]:
    """Compare the mesh of a training with one process.

    Raises:
        RuntimeError: when a worker fails.
    """
    toy = training.at_toy_width()
    with tempfile.TemporaryDirectory(prefix="eagleray-certify-") as folder:
        (expected,) = run_group(alone, 1, toy, Path(folder))
        return compare(run_group(together, toy.spec.parallel.num_workers, toy, Path(folder)), expected)


def compare(workers: Iterable[Evidence], expected: Evidence) -> list[Finding]:
    """What the workers of a mesh found, beside what one process did."""
    found = {what: Finding(what=what, difference=0.0, where="") for what in expected[0]}
    seen = {what: set[str]() for what in expected[0]}
    for worker in workers:
        for step, (mine, theirs) in enumerate(zip(worker, expected, strict=True), start=1):
            for what, values in mine.items():
                largest = max(float(np.abs(value).max(initial=0)) for value in theirs[what].values()) or 1.0
                seen[what] |= set(values)
                for name, value in values.items():
                    difference = float(np.abs(value - theirs[what][name]).max(initial=0)) / largest
                    if not difference <= found[what].difference:
                        found[what] = Finding(what=what, difference=difference, where=f"step {step}: {name}")
    for what, names in seen.items():
        for name in sorted({*expected[0][what]} - names):
            found[what] = Finding(what=what, difference=float("inf"), where=f"no worker has {name}")
    return list(found.values())


def together(rank: int, toy: Training, weights: Path) -> Evidence:
    """What one worker of the mesh finds, from those weights on."""
    import torch
    from torch.distributed.tensor import DTensor

    from .learner import Learner

    # it warns of each tensor that two axes split, when it is put together
    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)

    def whole(tensor: Tensor) -> Tensor:
        return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()

    learner = Learner(
        toy.spec,
        toy.model,
        VOCAB_SIZE,
        NUM_CLASSES,
        weights=weights,
        adaptation=toy.adaptation,
        device=torch.device("cpu"),
    )
    passes = toy.spec.passes
    first = passes * learner.mesh["data"].get_local_rank()
    parameters = dict(learner.model.named_parameters())
    evidence: Evidence = []
    for step in range(STEPS):
        batch = toy_batch(toy.model, toy.spec.objective.tasks, toy.spec.batch_size, step)
        groups = divide(toy.spec, toy_lengths(toy.model, batch), counted_of(toy.model))
        terms = learner.backward(
            [
                [toy_rows(toy.model, batch, one, part) for one in groups]
                for part in range(first, first + passes)
            ]
        )
        gradients = {name: whole(gradient) for name, gradient in learner.optimizer.gradients().items()}
        norm = learner.update().norm
        evidence.append(_values(terms, norm, gradients, {name: whole(p) for name, p in parameters.items()}))
    return evidence


def alone(rank: int, toy: Training, weights: Path) -> Evidence:
    """What one process finds, by plain PyTorch; leaves the weights that it started from in a folder."""
    import torch
    import torch.distributed.checkpoint as dcp
    from torch import distributed as dist

    from ...models.multimodal import MultimodalModel
    from .adapting import adapt, layer_rates
    from .objective import Objective
    from .optimizer import LocalOptimizer, learning_rate
    from .rounding import limits_of, move_limits, use_rounding

    spec = toy.spec
    torch.manual_seed(spec.seed)
    whole = MultimodalModel(toy.model, VOCAB_SIZE, NUM_CLASSES, spec.objective.tasks)
    whole.focus(spec.objective.tasks)
    adapt(whole, toy.adaptation)
    whole.double()
    scatter_weights(whole)
    dcp.save(whole.state_dict(), checkpoint_id=weights)
    slow = copy.deepcopy(whole).requires_grad_(False)
    if toy.adaptation.quantise is not None:
        use_rounding(whole)
    assert dist.group.WORLD is not None
    compression = spec.optimizer.compression
    sources = 1 if compression is None else compression.sources
    objective = Objective(
        spec.objective, whole, dist.group.WORLD, sources, torch.device("cpu"), dtype=torch.float64
    )
    optimizer = LocalOptimizer(
        spec.optimizer, dict(whole.named_parameters()), layer_rates(whole, toy.adaptation.layer_decay)
    )
    parameters = dict(whole.named_parameters(remove_duplicate=False))
    optimized = list(whole.parameters())
    errors: dict[tuple[int, str], Tensor] = {}
    evidence: Evidence = []
    for step in range(STEPS):
        batch = toy_batch(toy.model, spec.objective.tasks, spec.batch_size, step)
        objective.start_step([batch])
        if objective.looks_ahead:
            keys, seen = whole, batch
            if spec.objective.is_slow:
                keys, seen = slow, {name: tensor for name, tensor in batch.items() if name != "seed"}
            with torch.no_grad():
                objective.fill_bank(tuple(keys(seen).values()))
        groups = divide(spec, toy_lengths(toy.model, batch), counted_of(toy.model))
        for number in range(sources):
            rows = torch.arange(spec.batch_size)
            if compression is not None:
                rows = torch.from_numpy(np.concatenate([group.rows[number] for group in groups]))
                rows = rows[rows >= 0]
            some = {name: tensor[rows] for name, tensor in batch.items()}
            objective(tuple(whole(some).values()), rows).backward()
            if compression is not None:
                compress(whole, errors, number, compression)
        if compression is not None:
            send_on(whole, errors, compression)
        gradients = {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}
        norm = float(torch.cat([p.grad.flatten() for p in optimized if p.grad is not None]).norm())
        for p in optimized:
            if p.grad is not None:
                p.grad.mul_(spec.optimizer.max_grad_norm / max(norm, spec.optimizer.max_grad_norm))
        optimizer.step(learning_rate(spec.optimizer, step, spec.steps))
        optimizer.zero_grad()
        objective.end_step()
        move_limits(limits_of(whole), step)
        kept = min(spec.objective.momentum, (1 + step) / (10 + step))
        with torch.no_grad():
            for old, new in zip(slow.parameters(), whole.parameters(), strict=True):
                old.copy_(kept * old + (1 - kept) * new)
        stepped = {name: p.detach().clone() for name, p in parameters.items()}
        evidence.append(_values(objective.sum_terms(counts=True), norm, gradients, stepped))
    return evidence


def compress(
    model: nn.Module, errors: dict[tuple[int, str], Tensor], source: int, compression: CompressionSpec
) -> None:
    """Turn what a source has added to each gradient into what it sends; the sum is kept as source -1's."""
    import torch

    for name, p in model.named_parameters():
        gradient = torch.zeros_like(p) if p.grad is None else p.grad
        p.grad = None
        rest = gradient + errors.get((source, name), 0)
        sent = _largest(name, rest, compression)
        errors[source, name] = rest - sent
        errors[-1, name] = errors.get((-1, name), 0) + sent


def send_on(model: nn.Module, errors: dict[tuple[int, str], Tensor], compression: CompressionSpec) -> None:
    """Give each parameter what is sent on of the sources' sum; the rest stays there."""
    for name, p in model.named_parameters():
        total = errors[-1, name]
        p.grad = _largest(name, total, compression)
        errors[-1, name] = total - p.grad


def _largest(name: str, tensor: Tensor, compression: CompressionSpec) -> Tensor:
    """A tensor with all but the largest entries of each row set to zero; whole where it has no rows."""
    import torch

    from .compression import rows_of, sizes

    rows = rows_of(name, tensor, 1)
    if rows is None:
        return tensor.clone()
    matrix = rows.of(tensor)
    order = sizes(matrix).argsort(dim=1, descending=True)
    kept = torch.zeros_like(matrix).scatter(1, order[:, : rows.kept(compression.density)], 1)
    found = torch.empty_like(tensor)
    rows.put(matrix * kept, found)
    return found


def scatter_weights(model: nn.Module) -> None:
    """Move every parameter to where none is 0 and layers keep the size of what goes through them."""
    import torch

    with torch.no_grad():
        for p in model.parameters():
            noise = torch.randn(p.shape, dtype=p.dtype)
            if p.dim() > 1:
                p.copy_(noise / p[0].numel() ** 0.5)
            else:
                p.add_(0.1 * noise)


def _values(
    terms: Mapping[str, float], norm: float, gradients: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> Mapping[str, Values]:
    """A step's, as arrays. A parameter without a gradient has one of 0."""
    return {
        LOSS: {name: np.array(term) for name, term in terms.items()},
        NORM: {"of all parameters": np.array(norm)},
        GRADIENTS: {
            name: gradients[name].numpy() if name in gradients else np.zeros(tuple(weight.shape))
            for name, weight in weights.items()
        },
        WEIGHTS: {name: weight.numpy() for name, weight in weights.items()},
    }
