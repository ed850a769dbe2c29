"""What a training's layers take, found by running each once on tensors that have a shape and no content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import permutations

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from ...models.alignment import Rows, contrastive_loss, info_nce
from ...models.multimodal import TOWERS, MultimodalModel
from ...models.spec import EMBEDDED, MODALITIES
from .adapting import adapt
from .certificate import Training
from .counting import Deferrable, Live, storage_of
from .precision import DTYPES, first_state, weights_dtype
from .standins import StandIns, all_words, cast, split_meta_tensors

Shapes = dict[str, Tensor]


@dataclass(frozen=True)
class Trace:
    """What one microbatch takes in a layer, at one worker.

    Attributes:
        held: bytes that the backward pass needs, as far as no earlier layer's does.
        forward: bytes at the most while it runs forward, those held included.
        backward: bytes at the most while it runs backward, beyond those held.
        deferred: bytes that its linear layers need for the gradients of their weights.
        flops: forward, and backward.
        sent: bytes that a worker sends to those that share the layer, forward and backward.
        learning: names of the parameters that get a gradient.
        keeps: what of the state before it the backward pass needs.
        keeps_given: what of the state after it, counted already.
    """

    held: int
    forward: int
    backward: int
    deferred: int = 0
    flops: tuple[int, int] = (0, 0)
    sent: tuple[float, float] = (0.0, 0.0)
    learning: frozenset[str] = frozenset()
    keeps: frozenset[str] = frozenset()
    keeps_given: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Parameter:
    """A worker's part of a parameter before it is sharded."""

    name: str
    shape: tuple[int, ...]
    learns: bool

    @property
    def numel(self) -> int:
        """Entries."""
        return torch.Size(self.shape).numel()


@dataclass(frozen=True)
class Traced:
    """A training's layers as a tensor-parallel worker has them.

    Attributes:
        model: without content; layers by the paths that `place_layers` takes.
        layers: path → what it takes, in order.
        state: path → bytes of each thing that all layers so far leave to those that follow.
        learned: names in the state whose gradient goes back.
        loss: what the terms that tell rows from each other take, in a microbatch.
        parameters: of the whole model, as one worker of the tensor-parallel ones has them.
        summed: names of those whose gradients these workers add up at a step's end.
        inputs: bytes of a worker's rows of a step.
    """

    model: MultimodalModel
    layers: Mapping[str, Trace]
    state: Mapping[str, Mapping[str, int]]
    learned: frozenset[str]
    loss: Trace
    parameters: Mapping[str, Parameter]
    summed: frozenset[str]
    inputs: int

    @property
    def costs(self) -> dict[str, float]:
        """Layer → operations of a microbatch's passes."""
        return {name: float(sum(one.flops)) for name, one in self.layers.items()}


def trace(training: Training, max_tokens: int, vocab_size: int, num_classes: int) -> Traced:
    """Run every kind of layer once, forward and backward, at a worker's share of heads and rows.

    Args:
        training: of whatever model on whatever mesh.
        max_tokens: of a text of the corpus.
        vocab_size: of its tokenizer.
        num_classes: of its categories.
    """
    spec = training.spec
    rows = max(1, spec.batch_size // (spec.num_parts * spec.parallel.num_microbatches))
    tasks = spec.objective.tasks
    with torch.device("meta"):
        model = MultimodalModel(training.model, vocab_size, num_classes, tasks)
        model.focus(tasks)
        adapt(model, training.adaptation)
    dtype = weights_dtype(spec.precision)
    formats = first_state(model.layer_names, spec.precision, spec.precision_control).formats
    own = {name: p.requires_grad for name, p in model.named_parameters(remove_duplicate=False)}
    model.to(dtype)
    sent = _Sent()
    with torch.device("meta"), StandIns() as attention:
        batch = fake_batch(training, max_tokens, rows, dtype)
        summed: set[str] = set()
        for sharing in split_meta_tensors(model, spec.parallel, sent.add):
            sharing.see(model.lengths(batch))
            alike = {id(p) for p in sharing.summed}
            summed |= {name for name, p in model.named_parameters() if id(p) in alike}
        parameters = {
            name: Parameter(name, tuple(p.shape), own[name])
            for name, p in model.named_parameters(remove_duplicate=False)
        }
        if (language := model.heads.language) is not None and language.adaptive is not None:
            language.adaptive.forward = partial(  # pyright: ignore[reportAttributeAccessIssue]
                all_words, language.adaptive
            )
        for name in model.layer_names:
            cast(model.get_submodule(name), DTYPES[formats[name]])
        if model.decoder is not None and model.gate is not None:  # what is in no layer is as the heads
            for module in (model.gate, model.decoder.head):
                cast(module, DTYPES[formats["heads"]])
        tracer = _Tracer(model, batch, attention, sent)
        for name in model.layer_names:
            tracer.run(name)
        loss = tracer.trace_loss(training, rows)
    one_row = sum(t.nbytes for t in tracer.batch.values()) / rows
    return Traced(
        model,
        tracer.traces,
        tracer.sizes,
        frozenset(tracer.learned),
        loss,
        parameters,
        frozenset(summed),
        round(one_row * spec.batch_size / spec.parallel.data),
    )


def _backward(outputs: Sequence[Tensor]) -> None:
    """Gradients, by the engine itself: `torch.autograd.backward` would take the stand-ins away meanwhile, and
    a block that is computed again would keep other tensors than before.
    """
    gradients = tuple(torch.empty_like(t) for t in outputs)
    engine = torch.autograd.Variable._execution_engine  # pyright: ignore[reportAttributeAccessIssue, reportPrivateUsage]
    engine.run_backward(
        tuple(outputs), gradients, False, False, (), allow_unreachable=True, accumulate_grad=True
    )


def fake_batch(training: Training, max_tokens: int, rows: int, dtype: torch.dtype) -> Shapes:
    """A microbatch of shapes as the corpus gives them."""
    model, objective = training.model, training.spec.objective
    batch: Shapes = {
        "tokens": torch.zeros(rows, max_tokens, dtype=torch.int64),
        "token_mask": torch.zeros(rows, max_tokens, dtype=torch.bool),
        "present": torch.zeros(rows, len(MODALITIES), dtype=torch.bool),
        "label": torch.zeros(rows, dtype=torch.int64),
        "is_transcript": torch.zeros(rows, dtype=torch.bool),
        "group": torch.zeros(rows, dtype=torch.int64),
    }
    if model.vision is not None:
        side = model.vision.image_size
        batch["image"] = torch.empty(rows, 3, side, side, dtype=dtype)
        if objective.segmentation:
            batch["marks"] = torch.zeros(rows, side, side, dtype=torch.int64)
        if model.compares:
            batch["reference"] = torch.empty_like(batch["image"])
    if model.audio is not None:
        batch["mel"] = torch.empty(rows, model.audio.max_frames, model.audio.n_mels, dtype=dtype)
        batch["mel_mask"] = torch.zeros(rows, model.audio.max_frames, dtype=torch.bool)
    if objective.answer:
        batch["answer"], batch["answer_mask"] = batch["tokens"].clone(), batch["token_mask"].clone()
        batch["question_type"] = torch.zeros(rows, dtype=torch.int64)
    if model.drops:
        batch["seed"] = torch.zeros(rows, dtype=torch.int64)
    return batch


class _Sent:
    """Bytes sent so far."""

    def __init__(self) -> None:
        self.total = 0.0

    def add(self, nbytes: float) -> None:
        self.total += nbytes


class _Tracer:
    """Runs layer after layer; a layer like an earlier one isn't run again."""

    def __init__(self, model: MultimodalModel, batch: Shapes, attention: StandIns, sent: _Sent) -> None:
        self.model, self.batch, self._attention, self._sent = model, batch, attention, sent
        self.traces: dict[str, Trace] = {}
        self.sizes: dict[str, Mapping[str, int]] = {}
        self.learned: set[str] = set()
        self._state: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}
        self._seen: dict[object, tuple[str, Trace, dict[str, Tensor]]] = {}
        self._kept: frozenset[str] = frozenset()

    def run(self, name: str) -> None:
        """Run a layer on what those before it left."""
        key = self._key(name)
        if key is not None and key in self._seen:
            like, found, state = self._seen[key]
            found = replace(
                found, learning=frozenset(name + one.removeprefix(like) for one in found.learning)
            )
        else:
            found, state = self._run(name)
            if key is not None:
                self._seen[key] = name, found, state
        kept = found.keeps - self._kept
        self.traces[name] = replace(found, held=found.held + sum(self._state[key].nbytes for key in kept))
        if name == "heads":
            self.outputs = state
        else:
            made = {key for key in state if key not in self._state} | _made(name)
            self._kept = ((self._kept | kept) - made) | found.keeps_given
            self._state = state
            self.learned |= {key for key, tensor in state.items() if tensor.requires_grad}
            self.sizes[name] = {key: tensor.nbytes for key, tensor in state.items()}

    def _run(self, name: str) -> tuple[Trace, dict[str, Tensor]]:
        entering = {
            key: torch.empty_like(t).requires_grad_(t.requires_grad) for key, t in self._state.items()
        }
        state = dict(entering)
        modules = [self.model] if name == "heads" else [self.model.get_submodule(name)]
        saved: set[int] = set()
        attended, before = self._attention.flops, self._sent.total

        def see(tensor: Tensor) -> Tensor:
            saved.add(storage_of(tensor))
            return tensor.detach()  # the tensor itself may be what its own node gave

        with Live() as live, Deferrable(modules) as deferrable:
            with saved_tensors_hooks(see, lambda tensor: tensor):
                if name == "heads":
                    state = self.model.outputs(state, self.batch)
                else:
                    self.model.run_layers([name], state, self.batch)
            between = self._sent.total
            made = {key: t for key, t in state.items() if t is not entering.get(key)}
            dropped = {storage_of(t): t.nbytes for t in made.values() if storage_of(t) not in saved}
            held, forward, flops_forward = (
                live.now - sum(dropped.values()),
                live.peak,
                live.flops,
            )
            parameters = dict(self.model.named_parameters(remove_duplicate=False))
            for parameter in parameters.values():
                parameter.grad = None
            live.peak = live.now
            if given := [t for t in made.values() if t.requires_grad]:
                _backward(given)
            backward = live.peak - held
        attended = self._attention.flops - attended
        learning = frozenset(key for key, p in parameters.items() if p.grad is not None)
        left = {key: torch.empty_like(t).requires_grad_(t.requires_grad) for key, t in state.items()}
        found = Trace(
            held,
            forward,
            backward,
            deferrable.nbytes,
            # its backward pass has five products to forward's two (arXiv 2307.08691, 2.3.2)
            (flops_forward + attended, live.flops - flops_forward + attended * 5 // 2),
            (between - before, self._sent.total - between),
            learning,
            frozenset(key for key, t in entering.items() if storage_of(t) in saved),
            frozenset(key for key, t in made.items() if storage_of(t) in saved),
        )
        return found, left

    def trace_loss(self, training: Training, rows: int) -> Trace:
        """What the terms take that tell rows from each other, in a microbatch."""
        spec, objective = training.spec, training.spec.objective
        if not EMBEDDED & objective.tasks:
            return Trace(0, 0, 0)
        own = rows if objective.is_slow else spec.batch_size
        widths = {name: t.shape[1] for name, t in self.outputs.items() if _is_embedding(name)}
        dtype = weights_dtype(spec.precision)

        def draw(count: int, learns: bool) -> Rows:
            return Rows(
                {
                    n: torch.empty(count, width, dtype=dtype, requires_grad=learns)
                    for n, width in widths.items()
                },
                torch.ones(count, len(MODALITIES), dtype=torch.bool),
                torch.zeros(count, dtype=torch.int64),
            )

        queries = draw(own, True)
        batch = draw(spec.batch_size, False) if objective.is_slow else queries
        past = Rows.empty(
            objective.negatives if objective.is_slow else 0,
            {n: w for n, w in widths.items() if n in MODALITIES},
            torch.device("meta"),
            dtype,
        )
        scale = torch.ones((), dtype=dtype, requires_grad=True)
        places = torch.zeros(own, dtype=torch.int64)
        with Live() as live:
            total = torch.zeros((), dtype=dtype)
            if objective.contrastive:
                total = total + contrastive_loss(queries, batch, scale, places, past)
            if objective.alignment:
                total = total + _alignment(queries, batch, scale, places)
            held, forward = live.now, live.peak
            live.peak = live.now
            total.backward()
            return Trace(held, forward, live.peak - held)

    def _key(self, name: str) -> object:
        """What two layers that take the same have in common; None for one that is like no other."""
        tower, _, layer = name.partition(".")
        if not layer.startswith("blocks."):
            return None
        module = self.model.get_submodule(name)
        plain = (bool, int, float, tuple)
        fields = tuple(
            (
                path,
                type(part),
                tuple((k, v) for k, v in vars(part).items() if isinstance(v, plain) and k != "salt"),
            )
            for path, part in module.named_modules()
        )
        shapes = tuple((path, p.shape, p.dtype, p.requires_grad) for path, p in module.named_parameters())
        reads = self._state if tower == "decoder" else {TOWERS[tower]: self._state[TOWERS[tower]]}
        state = tuple((key, t.shape, t.dtype, t.requires_grad) for key, t in reads.items())
        # a scale of pictures that a pyramid reads later stays in the state
        return tower, fields, shapes, state, tuple(self._state)


def _alignment(queries: Rows, batch: Rows, scale: Tensor, own: Tensor) -> Tensor:
    total = scale.new_zeros(())
    valid = torch.ones(len(queries.groups), dtype=torch.bool)
    others = queries.groups[:, None] != batch.groups[None, :]
    names = [name for name in queries.embeddings if name in MODALITIES]
    for a, b in permutations(names, 2):
        found = f"found.{a}-{b}"
        for ours, theirs in ((found, a), (a, found)):
            total = (
                total
                + info_nce(
                    queries.embeddings[ours], batch.embeddings[theirs], own, scale, valid, others
                ).sum()
            )
    return total


def _made(layer: str) -> set[str]:
    """What of the state a layer replaces."""
    tower = layer.partition(".")[0]
    return {TOWERS.get(tower, tower)}


def _is_embedding(name: str) -> bool:
    return name in MODALITIES or name.startswith("found.")
