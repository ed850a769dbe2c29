"""What a training's layers take, found by running each once on tensors that have a shape and no content."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import permutations
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.autograd.function import FunctionCtx
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry

from ...models.alignment import Rows, contrastive_loss, info_nce
from ...models.heads.vocabulary import Vocabulary
from ...models.layers import COLUMN, ROW, HeadParameter
from ...models.losses import promoted
from ...models.multimodal import TOWERS, MultimodalModel
from ...models.spec import EMBEDDED, MODALITIES
from .adapting import adapt
from .certificate import Training
from .precision import DTYPES, first_state

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
        summed: bytes that tensor-parallel workers sum up, forward and backward.
        learning: names of the parameters that get a gradient.
        keeps: what of the state before it the backward pass needs.
        keeps_given: what of the state after it, counted already.
    """

    held: int
    forward: int
    backward: int
    deferred: int = 0
    flops: tuple[int, int] = (0, 0)
    summed: tuple[int, int] = (0, 0)
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
        inputs: bytes of a worker's rows of a step.
    """

    model: MultimodalModel
    layers: Mapping[str, Trace]
    state: Mapping[str, Mapping[str, int]]
    learned: frozenset[str]
    loss: Trace
    parameters: Mapping[str, Parameter]
    inputs: int

    @property
    def costs(self) -> dict[str, float]:
        """Layer → operations of a microbatch's passes."""
        return {name: float(sum(one.flops)) for name, one in self.layers.items()}


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
        storage, key = tensor.untyped_storage(), _storage(tensor)
        if key in self._known:
            return
        self._known[key] = storage.nbytes() if counts else 0
        self.now += self._known[key]
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.now -= self._known.pop(key, 0)


def trace(training: Training, max_tokens: int, vocab_size: int, num_classes: int) -> Traced:
    """Run every kind of layer once, forward and backward, at a worker's share of heads and rows.

    Args:
        training: of whatever model on whatever mesh.
        max_tokens: of a text of the corpus.
        vocab_size: of its tokenizer.
        num_classes: of its categories.
    """
    spec = training.spec
    passes = spec.parallel.passes(spec.optimizer.compression)
    rows = max(1, spec.batch_size // (spec.parallel.data * passes * spec.parallel.num_microbatches))
    tasks = spec.objective.tasks
    with torch.device("meta"):
        model = MultimodalModel(training.model, vocab_size, num_classes, tasks)
        model.focus(tasks)
        adapt(model, training.adaptation)
    dtype = torch.float64 if spec.precision == "fp64" else torch.float32
    formats = first_state(model.layer_names, spec.precision, spec.precision_control).formats
    own = {name: p.requires_grad for name, p in model.named_parameters(remove_duplicate=False)}
    with torch.device("meta"), _StandIns() as attention:
        split = materialise(model, spec.parallel.tensor, dtype)
        parameters = {
            name: Parameter(name, tuple(p.shape), own[name])
            for name, p in model.named_parameters(remove_duplicate=False)
        }
        if (language := model.heads.language) is not None and language.adaptive is not None:
            language.adaptive.forward = partial(  # pyright: ignore[reportAttributeAccessIssue]
                _all_words, language.adaptive
            )
        for name in model.layer_names:
            cast(model.get_submodule(name), DTYPES[formats[name]])
        tracer = _Tracer(model, fake_batch(training, max_tokens, rows, dtype), attention, split)
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
        round(one_row * spec.batch_size / spec.parallel.data),
    )


def materialise(model: nn.Module, tensor: int, dtype: torch.dtype) -> set[nn.Module]:
    """Give a model of meta tensors parameters of a worker's shape, split as `split_tensors` does.

    Returns:
        The modules that were split.
    """
    made: dict[int, nn.Parameter] = {}
    split: set[nn.Module] = set()
    for path, module in model.named_modules():
        kind = path.rpartition(".")[2]
        for name, parameter in list(module.named_parameters(recurse=False)):
            shape = list(parameter.shape)
            axis = _split_axis(module, kind, name, tensor)
            if axis is not None:
                shape[axis] //= tensor
                split.add(module)
            if id(parameter) not in made:
                made[id(parameter)] = nn.Parameter(torch.empty(shape, dtype=dtype), parameter.requires_grad)
            setattr(module, name, made[id(parameter)])
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))
    return split if tensor > 1 else set()


def cast(layer: nn.Module, dtype: torch.dtype) -> None:
    """Compute a layer in a format, as a sharded module of that policy does."""
    for module in layer.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.dtype != dtype:
                setattr(module, name, nn.Parameter(parameter.detach().to(dtype), parameter.requires_grad))

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
        return tree_map(fit, (args, kwargs))

    def fit(x: object) -> object:
        return x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x

    layer.register_forward_pre_hook(enter, with_kwargs=True)


def fake_batch(training: Training, max_tokens: int, rows: int, dtype: torch.dtype) -> Shapes:
    """A microbatch of shapes as the corpus gives them."""
    model, objective = training.model, training.spec.objective
    batch: Shapes = {
        "tokens": torch.zeros(rows, max_tokens, dtype=torch.int64),
        "token_mask": torch.zeros(rows, max_tokens, dtype=torch.bool),
        "present": torch.zeros(rows, len(MODALITIES), dtype=torch.bool),
        "label": torch.zeros(rows, dtype=torch.int64),
        "group": torch.zeros(rows, dtype=torch.int64),
    }
    if model.vision is not None:
        side = model.vision.image_size
        batch["image"] = torch.empty(rows, 3, side, side, dtype=dtype)
    if model.audio is not None:
        batch["mel"] = torch.empty(rows, model.audio.max_frames, model.audio.n_mels, dtype=dtype)
        batch["mel_mask"] = torch.zeros(rows, model.audio.max_frames, dtype=torch.bool)
    if objective.answer:
        batch["answer"], batch["answer_mask"] = batch["tokens"].clone(), batch["token_mask"].clone()
        batch["question_type"] = torch.zeros(rows, dtype=torch.int64)
    if model.drops:
        batch["seed"] = torch.zeros(rows, dtype=torch.int64)
    return batch


class _Fused(torch.autograd.Function):
    """Attention by a fused kernel, as far as memory goes (arXiv 2205.14135): no scores are kept."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: FunctionCtx, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None
    ) -> Tensor:
        mixed = query.new_empty(*query.shape[:-1], value.shape[-1])
        normaliser = query.new_empty(query.shape[:-1])
        ctx.save_for_backward(query, key, value, bias, mixed, normaliser)  # pyright: ignore[reportArgumentType]
        return mixed

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,  # noqa: ANN401 - torch's own type lacks what it has here
        gradient: Tensor,
    ) -> tuple[Tensor | None, ...]:
        given = ctx.saved_tensors[:4]
        wanted = zip(given, ctx.needs_input_grad, strict=True)
        return tuple(torch.empty_like(x) if x is not None and needed else None for x, needed in wanted)


class _Ctc(torch.autograd.Function):
    """CTC as far as memory goes: the likelihoods of all beginnings are kept (ICML 2006, 369, section 4.1)."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: FunctionCtx, log_probs: Tensor, tokens: Tensor
    ) -> Tensor:
        positions, rows = log_probs.shape[:2]
        ctx.save_for_backward(log_probs, log_probs.new_empty(rows, positions, 2 * tokens.shape[1] + 1))
        return log_probs.new_empty(rows)

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,  # noqa: ANN401 - torch's own type lacks what it has here
        gradient: Tensor,
    ) -> tuple[Tensor, None]:
        return torch.empty_like(ctx.saved_tensors[0]), None


class _StandIns(TorchFunctionMode):
    """Two functions that tensors without a place have not: fused attention and CTC.

    Attributes:
        flops: of attention's forward passes so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever it gives
        kwargs = kwargs or {}
        if func is F.ctc_loss:
            return _Ctc.apply(*args[:2])  # pyright: ignore[reportUnknownMemberType]
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        query, key, value = args
        self.flops += 2 * query.numel() * key.shape[-2] + 2 * query[..., 0].numel() * value[0, 0].numel()
        return _Fused.apply(query, key, value, kwargs.get("attn_mask"))  # pyright: ignore[reportUnknownMemberType]


class _Tracer:
    """Runs layer after layer; a layer like an earlier one isn't run again."""

    def __init__(
        self, model: MultimodalModel, batch: Shapes, attention: _StandIns, split: set[nn.Module]
    ) -> None:
        self.model, self.batch, self._attention, self._split = model, batch, attention, split
        self.traces: dict[str, Trace] = {}
        self.sizes: dict[str, Mapping[str, int]] = {}
        self.learned: set[str] = set()
        self._state: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}
        self._seen: dict[object, tuple[Trace, dict[str, Tensor]]] = {}
        self._like: dict[object, str] = {}
        self._kept: frozenset[str] = frozenset()

    def run(self, name: str) -> None:
        """Run a layer on what those before it left."""
        key = self._key(name)
        if key is not None and key in self._seen:
            (found, state), like = self._seen[key], self._like[key]
            found = replace(
                found, learning=frozenset(name + one.removeprefix(like) for one in found.learning)
            )
        else:
            found, state = self._run(name)
            if key is not None:
                self._seen[key], self._like[key] = (found, state), name
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
        attended = self._attention.flops

        def see(tensor: Tensor) -> Tensor:
            saved.add(_storage(tensor))
            return tensor.detach()  # the tensor itself may be what its own node gave

        with Live() as live, _Linears(modules, self._split) as seen:
            with saved_tensors_hooks(see, lambda tensor: tensor):
                if name == "heads":
                    state = self.model.outputs(state, self.batch)
                else:
                    self.model.run_layers([name], state, self.batch)
            made = {key: t for key, t in state.items() if t is not entering.get(key)}
            dropped = {_storage(t): t.nbytes for t in made.values() if _storage(t) not in saved}
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
                torch.autograd.backward(given, [torch.empty_like(t) for t in given])
            backward = live.peak - held
        attended = self._attention.flops - attended
        learning = frozenset(key for key, p in parameters.items() if p.grad is not None)
        left = {key: torch.empty_like(t).requires_grad_(t.requires_grad) for key, t in state.items()}
        found = Trace(
            held,
            forward,
            backward,
            seen.deferred,
            # its backward pass has five products to forward's two (arXiv 2307.08691, 2.3.2)
            (flops_forward + attended, live.flops - flops_forward + attended * 5 // 2),
            (seen.summed_forward, seen.summed_backward),
            learning,
            frozenset(key for key, t in entering.items() if _storage(t) in saved),
            frozenset(key for key, t in made.items() if _storage(t) in saved),
        )
        return found, left

    def trace_loss(self, training: Training, rows: int) -> Trace:
        """What the terms take that tell rows from each other, in a microbatch."""
        spec, objective = training.spec, training.spec.objective
        if not EMBEDDED & objective.tasks:
            return Trace(0, 0, 0)
        own = rows if objective.is_slow else spec.batch_size
        widths = {name: t.shape[1] for name, t in self.outputs.items() if _is_embedding(name)}
        dtype = torch.float64 if spec.precision == "fp64" else torch.float32

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


class _Answer(NamedTuple):
    """What an adaptive softmax gives, as far as it is read."""

    output: Tensor


class _Linears:
    """What the layers that have weights were given and gave, of some modules."""

    def __init__(self, modules: Sequence[nn.Module], split: set[nn.Module]) -> None:
        self.summed_forward = self.summed_backward = self._outputs = 0
        self._inputs: dict[int, int] = {}  # several read the same
        self._split = split
        self._layers = [
            (name.rpartition(".")[2], layer)
            for module in modules
            for name, layer in module.named_modules()
            if isinstance(layer, (nn.Linear, nn.Embedding))
        ]
        self._handles: list[Any] = []

    @property
    def deferred(self) -> int:
        """Bytes of what linear layers were given, and of the gradients of what they gave."""
        return sum(self._inputs.values()) + self._outputs

    def __enter__(self) -> _Linears:
        for name, layer in self._layers:
            self._handles.append(layer.register_forward_hook(self._hook(name)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def see(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if output.requires_grad and type(layer) is nn.Linear:
                self._inputs[_storage(inputs[0])] = inputs[0].nbytes
                self._outputs += output.nbytes
            if layer not in self._split:
                return
            if isinstance(layer, nn.Embedding) or name in ROW:
                self.summed_forward += output.nbytes
            elif inputs[0].requires_grad:
                self.summed_backward += inputs[0].nbytes
            if isinstance(layer, Vocabulary):  # the largest logit, and two sums
                self.summed_forward += 3 * output[..., 0].numel() * promoted(output).element_size()

        return see


def _all_words(head: nn.AdaptiveLogSoftmaxWithLoss, hidden: Tensor, target: Tensor) -> _Answer:
    """As if every token could be any word: which are rare, only content would tell."""
    output = head.log_prob(hidden).gather(1, target[:, None]).squeeze(1)
    return _Answer(output)


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


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]


def _is_embedding(name: str) -> bool:
    return name in MODALITIES or name.startswith("found.")


def _split_axis(module: nn.Module, kind: str, name: str, tensor: int) -> int | None:
    """Axis that tensor parallelism splits a parameter along; None for what every worker has whole."""
    if name == "lora_down" and kind in COLUMN:
        return None  # it is, by its rank, but what it gives is put together
    if isinstance(module, HeadParameter) or (isinstance(module, nn.Linear) and kind in COLUMN):
        return 0
    if isinstance(module, (nn.Embedding, Vocabulary)) and module.weight.shape[0] % tensor == 0:
        return 0
    if isinstance(module, nn.Linear) and kind in ROW and name in ("weight", "lora_down"):
        return 1
    return None
