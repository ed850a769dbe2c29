"""What a training stage is told: optimizer, objective, precision, and the mesh it runs on."""

from __future__ import annotations

from math import lcm
from typing import Literal, get_args

from pydantic import Field, model_validator

from ...models.spec import EMBEDDED, Task
from ...workflows.spec import Runtime, Spec, StageSpec


class GridSpec(Spec):
    """How an encoder divides the workers that share a slice of the layers."""

    tensor: int = Field(default=1, ge=1)
    """Workers that share its heads and columns: a divisor of `parallel.tensor`, whose workers then divide
    their rows among them; or a multiple of it, for which data-parallel workers join their rows."""
    data: int | None = Field(default=None, ge=1)
    """Workers that its parameters are sharded over; by default as many as there are for that."""


class ParallelSpec(Spec):
    """The mesh: data × tensor × pipeline workers. It says how to run, never what is made."""

    data: int = Field(default=1, ge=1)
    """Workers that share a batch's rows; parameters, gradients and optimizer state are sharded over them."""
    tensor: int = Field(default=1, ge=1)
    """Workers that share every attention's heads and every MLP's columns."""
    pipeline: int = Field(default=1, ge=1)
    """Workers that share the layers, in order."""
    vision: GridSpec | None = None
    """A grid of its own for the vision encoder; by default it has that of the whole model."""
    text: GridSpec | None = None
    """The same for the text encoder."""
    audio: GridSpec | None = None
    """The same for the audio encoder."""
    microbatches: int | None = Field(default=None, ge=1)
    """Slices of a worker's rows that follow each other through the pipeline; by default twice `pipeline`."""
    schedule: Literal["gpipe", "1f1b", "interleaved", "zero-bubble"] = "1f1b"
    """Order of the microbatches' passes: all forward, then all backward (arXiv 1811.06965); one forward, one
    backward (arXiv 1806.03377); the same with several slices of the layers a worker (arXiv 2104.04473, 2.2);
    and with the weights' gradients where a worker would wait (ZB-H1, arXiv 2401.10241)."""
    slices_per_worker: int | None = Field(default=None, ge=1)
    """Slices of the layers that each pipeline worker has; by default two if they interleave, else one."""
    sharding: Literal["full", "optimizer"] = "full"
    """What data-parallel workers divide among them: parameters, gradients and the optimizer's state (FSDP2,
    arXiv 2304.11277), or the state alone (ZeRO-1, arXiv 1910.02054)."""
    cpus_per_worker: float = Field(default=1.0, gt=0)
    """CPUs each worker reserves in the cluster."""
    timeout_s: float = Field(default=25.0, gt=0)
    """Seconds that a worker waits for another in the midst of a step, before it is held to hang."""

    @property
    def num_workers(self) -> int:
        """Size of the mesh."""
        return self.data * self.tensor * self.pipeline

    @property
    def grids(self) -> dict[str, GridSpec]:
        """Encoder → its own grid, for those that have another than the model."""
        return {name: grid for name, grid in self.given_grids.items() if grid.tensor != self.tensor}

    @property
    def given_grids(self) -> dict[str, GridSpec]:
        """Encoder → the grid that the spec gives it."""
        encoders = (("vision", self.vision), ("text", self.text), ("audio", self.audio))
        return {name: grid for name, grid in encoders if grid is not None}

    def within(self, tower: str) -> ParallelSpec:
        """The mesh as a part of the model sees it."""
        grid = self.grids.get(tower)
        if grid is None:
            return self
        data = self.data * self.tensor // grid.tensor
        return self.model_copy(update={"data": data, "tensor": grid.tensor})

    @property
    def row_unit(self) -> int:
        """Rows that those of a microbatch at a worker are a multiple of: encoders may divide them further."""
        return lcm(*(max(1, self.tensor // grid.tensor) for grid in self.grids.values()))

    @property
    def num_slices(self) -> int:
        """Slices that the layers are cut into; worker r of n has slices r, r + n and so on."""
        if self.pipeline == 1:
            return 1
        return self.pipeline * (self.slices_per_worker or (2 if self.schedule == "interleaved" else 1))

    @property
    def num_microbatches(self) -> int:
        """Microbatches per worker and step: one without a pipeline, else twice its depth."""
        if self.microbatches is not None:
            return self.microbatches
        return 1 if self.pipeline == 1 else 2 * self.pipeline


class CompressionSpec(Spec):
    """Send only the largest entries of a gradient; what isn't sent is added to the next one (arXiv
    1809.07599). What a step does hangs on both numbers, and not on the mesh.
    """

    density: float = Field(gt=0, le=1)
    """Share of each row of a matrix that is sent."""
    sources: int = Field(default=4, ge=1)
    """Equal parts of a batch whose gradients are compressed, each with an error of its own; as many as
    data-parallel workers, or a multiple, which takes a pass for each."""


class OptimizerSpec(Spec):
    """An optimizer, with linear warm-up and cosine decay to a tenth."""

    algorithm: Literal["adamw", "adagrad"] = "adamw"
    """AdamW (arXiv 1711.05101), or Adagrad (JMLR 12, 2121), which keeps half as much."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """At its peak, after the warm-up."""
    weight_decay: float = Field(default=0.05, ge=0)
    """Of matrices; biases, norms and other vectors are not decayed."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Decay of the mean gradient, and of the mean square; of AdamW."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the root of the (mean) square that a step is divided by."""
    compression: CompressionSpec | None = None
    """Compress gradients on their way between workers; with `parallel.sharding: optimizer` only. With
    Adagrad weights come back compressed as well."""
    warmup_steps: int = Field(default=20, ge=0)
    """Steps in which the learning rate rises to its peak."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Norm, over the whole model, that a gradient is scaled down to."""

    @property
    def kept(self) -> tuple[str, ...]:
        """What is kept of each parameter, of its shape."""
        return ("exp_avg", "exp_avg_sq") if self.algorithm == "adamw" else ("sum",)


class ObjectiveSpec(Spec):
    """Weights of the terms of the loss; what is not named is no part of it."""

    contrastive: float = Field(default=0.0, ge=0)
    """InfoNCE between every two modalities that a sample has."""
    negatives: int = Field(default=1024, ge=0, le=32_768)
    """Samples of earlier batches that are negatives of InfoNCE beside the batch's own. With any, samples
    are told from the embeddings of a second model, which follows the trained one: a forward pass more."""
    momentum: float = Field(default=0.99, ge=0, lt=1)
    """What that second model keeps of itself at each step, after the first ones."""
    alignment: float = Field(default=0.0, ge=0)
    """Attention from each modality to each other: InfoNCE between what was found there and what asked."""
    divergence: float = Field(default=0.1, ge=0)
    """With `alignment`: how far that attention is from the other modality's own, as KL divergence."""
    caption: float = Field(default=0.0, ge=0)
    """Next-token loss of the caption, decoded from picture and speech."""
    answer: float = Field(default=0.0, ge=0)
    """Next-token loss of the answer, decoded from picture, question and speech."""
    language: float = Field(default=0.0, ge=0)
    """Next-token loss of the text, from what comes before it."""
    transcription: float = Field(default=0.0, ge=0)
    """CTC loss of the caption, a token, where it is in the language of the speech: half of the time beside
    other terms."""
    classification: float = Field(default=0.0, ge=0)
    """Cross-entropy of the picture's category."""
    document: float = Field(default=0.0, ge=0)
    """Cross-entropy of the text's category, which is read in overlapping segments."""
    segmentation: float = Field(default=0.0, ge=0)
    """Dice and focal loss of what is marked in each pixel of the picture (`model.vision.findings`)."""

    @model_validator(mode="after")
    def _check(self) -> ObjectiveSpec:
        if self.caption and self.answer:
            raise ValueError("a text is decoded as a caption or as an answer: set one of both to 0")
        if self.document and (others := self.tasks - {"document", "classification"}):
            raise ValueError(
                f"document reads texts in segments, {sorted(others)[0]} whole: train one after the other"
            )
        if not self.tasks:
            raise ValueError("nothing to train for: give one of its terms a weight")
        return self

    @property
    def tasks(self) -> frozenset[Task]:
        """The terms with a weight, but for `divergence`."""
        return frozenset(task for task in get_args(Task) if getattr(self, task) > 0)

    @property
    def uses_bank(self) -> bool:
        """Whether a row's loss depends on other rows."""
        return bool(EMBEDDED & self.tasks)

    @property
    def is_slow(self) -> bool:
        """Whether samples are told from embeddings of a model that follows the trained one slowly."""
        return self.uses_bank and self.negatives > 0

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of the loss's terms, in a fixed order."""
        names = (name for name in type(self).model_fields if name in self.tasks or name == "divergence")
        return tuple(name for name in names if name != "divergence" or self.alignment > 0)

    def weight_of(self, term: str) -> float:
        """Weight of a term, by its name."""
        return float(getattr(self, term))


class PrecisionControlSpec(Spec):
    """When `precision: dynamic` moves a layer to another number format; see `precision.decide`."""

    start: Literal["bf16", "fp16", "fp32"] = "bf16"
    """What every layer starts with."""
    every: int = Field(default=20, ge=1)
    """Steps between two decisions."""
    min_update: float = Field(default=0.05, gt=0)
    """Least size of an update over a format's rounding of the weights, at which it serves."""
    max_underflow: float = Field(default=0.05, gt=0, le=1)
    """Largest share of a gradient, scaled up, that fp16 may have too few digits for."""
    margin: float = Field(default=4.0, ge=1)
    """How many times better than just serving a format must be, for a layer to go back to it."""
    patience: int = Field(default=3, ge=1)
    """Decisions in a row at which it must."""
    loss_scale: float = Field(default=65_536.0, ge=1)
    """What the loss is multiplied by at first, where a layer computes in fp16."""


class LoraSpec(Spec):
    """Low-rank layers beside those of encoders and decoder, which stay as they are (arXiv 2106.09685)."""

    rank: int = Field(default=8, ge=1)
    """Width of the low-rank layers."""
    alpha: float = Field(default=16.0, gt=0)
    """Over `rank`, the weight of what they give."""
    layers: tuple[str, ...] = Field(default=("query", "value"), min_length=1)
    """Names of the layers that get one: query, key, value, output, up, down."""


class BatchingSpec(Spec):
    """Fill a step with tokens, not rows, and compute rows of like length together.

    A token is a position of a text, of an answer, or of a recording as attention sees it; pictures have none.
    """

    tokens: int = Field(default=4096, ge=1)
    """Tokens of a step over all workers, at the most; padding isn't counted."""
    max_tokens: int = Field(default=2048, ge=4)
    """Tokens of a sequence: a longer document is cut into several, and none of it is dropped."""
    max_rows: int = Field(default=512, ge=2)
    """Rows of a step over all workers, at the most: what bounds the pictures."""
    fill: float = Runtime(0.92, gt=0, le=1)
    """Share of what is computed that shall be tokens and not padding: more makes more and smaller groups."""

    @model_validator(mode="after")
    def _check(self) -> BatchingSpec:
        if self.max_tokens > self.tokens:
            raise ValueError(f"a sequence of {self.max_tokens} tokens is more than a step's {self.tokens}")
        return self


class AdaptationSpec(Spec):
    """What a training that goes on from a checkpoint changes, and how fast."""

    freeze: tuple[str, ...] = ()
    """Paths in the model of what stays as it is, such as vision, or text.embed."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Factor of the learning rate for each layer further from an encoder's top."""
    lora: LoraSpec | None = None
    """Learn low-rank layers only, and the heads; in the checkpoint they are merged into the others."""
    quantise: Literal["int8"] | None = None
    """Train in sight of eight bits: what `export` rounds in that form is rounded in training, and the
    checkpoint says between which limits, which `export` then doesn't measure."""

    @model_validator(mode="after")
    def _check_rounding(self) -> AdaptationSpec:
        if self.quantise is not None and self.lora is not None:
            raise ValueError(
                "lora and quantise: low-rank layers are merged before they are rounded; merge first"
            )
        return self


class TrainingSpec(StageSpec):
    """What `pretrain` and `finetune` have in common."""

    steps: int = Field(default=300, ge=1)
    """Optimizer steps."""
    batch_size: int = Field(default=64, ge=2)
    """Rows per step over all workers; of no meaning with `batching`."""
    batching: BatchingSpec | None = None
    """Fill steps by tokens instead, with rows of like length side by side."""
    seed: int = Field(default=0, ge=0)
    """Seed of initialisation, order and augmentation."""
    augment: bool = True
    """Vary pictures and speech at each reading; off, every epoch sees the same."""
    precision: Literal["fp32", "bf16", "fp16", "fp8", "dynamic", "fp64"] = "fp32"
    """Number format that layers compute in; weights, sums over workers, attention's scores, the losses and
    the optimizer stay fp32. With fp16 the loss is scaled up as far as it goes; with fp8 linear layers
    multiply in 8 bits, and all else is as with bf16; `dynamic` finds each layer's own format while it trains.
    fp64 proves that two meshes compute the same, where rounding would hide a small difference."""
    precision_control: PrecisionControlSpec = PrecisionControlSpec()
    """Of `precision: dynamic`."""
    not_finite: Literal["stop", "skip"] = "stop"
    """What to do about a step whose loss or gradient is not finite, but for an overflow of fp16: stop, or
    leave its batch out."""
    objective: ObjectiveSpec = ObjectiveSpec(contrastive=1.0, caption=0.25)
    """Terms of the loss."""
    optimizer: OptimizerSpec = OptimizerSpec()
    parallel: ParallelSpec = Runtime(ParallelSpec())
    checkpoint_every: int = Runtime(50, ge=1)
    """Steps between checkpoints that a killed run resumes from."""
    worker_failures: int = Runtime(2, ge=0)
    """How often a lost worker is replaced, from the last checkpoint, before the stage fails."""
    compile_layers: bool = Runtime(False)
    """Compile each layer by `torch.compile`: faster steps after a first one that takes minutes. In the first
    steps gradients are compared with those of the layers as they are."""
    uncertified: bool = Runtime(False)
    """Train on a mesh that has no certificate (`eagleray certify`); the checkpoint will say so."""

    @model_validator(mode="after")
    def _one_size(self) -> TrainingSpec:
        if self.batching is not None and "batch_size" in self.model_fields_set:
            raise ValueError("batch_size and batching: a step has so many rows or so many tokens, name one")
        return self

    @property
    def passes(self) -> int:
        """Parts of a worker's rows, computed one after the other, each in microbatches of its own."""
        compression = self.optimizer.compression
        return 1 if compression is None else max(1, compression.sources // self.parallel.data)

    @property
    def num_parts(self) -> int:
        """Parts that a step's rows are divided into: of each data-parallel worker, its passes."""
        return self.parallel.data * self.passes

    @property
    def row_unit(self) -> int:
        """Rows that a step's are a multiple of, on its mesh."""
        return self.num_parts * self.parallel.num_microbatches * self.parallel.row_unit

    @property
    def is_one_process(self) -> bool:
        """Whether there is nothing to prove: one worker, which takes a batch's rows at once."""
        parallel = self.parallel
        return (
            parallel.num_workers == parallel.num_microbatches == 1
            and parallel.sharding == "full"
            and self.optimizer.compression is None
            and self.batching is None
        )


def reserved_cpus(spec: TrainingSpec) -> float:
    """CPUs that must exist in the cluster: the stage's own task and every worker."""
    return spec.run.num_cpus + spec.parallel.num_workers * spec.parallel.cpus_per_worker
