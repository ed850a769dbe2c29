"""Stage `finetune`: go on from a checkpoint with another objective or corpus."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from ...models.spec import ModelSpec
from ...workflows.artifacts import Checkpoint, Corpus
from ...workflows.stage import StageContext, stage
from ..training.certificate import check_certificate
from ..training.spec import AdaptationSpec, ObjectiveSpec, OptimizerSpec, TrainingSpec, reserved_cpus


class FinetuneSpec(TrainingSpec, AdaptationSpec):
    """Fine-tuning; by default the picture's category joins the objective, at a lower learning rate."""

    kind: Literal["finetune"] = "finetune"
    steps: int = Field(100, ge=1)
    """Optimizer steps."""
    objective: ObjectiveSpec = ObjectiveSpec(contrastive=1.0, caption=0.25, classification=0.5)
    """Terms of the loss."""
    optimizer: OptimizerSpec = OptimizerSpec(learning_rate=3e-4)
    """How weights are changed."""
    model: ModelSpec | None = None
    """Parts and sizes; by default the checkpoint's. What both have must have the same sizes; what the
    checkpoint lacks starts at random."""

    @model_validator(mode="after")
    def _check_padding(self) -> FinetuneSpec:
        if self.quantise is not None and self.batching is not None:
            raise ValueError(
                "quantise and batching: padding would move the limits; give a batch_size instead"
            )
        return self


@stage(
    FinetuneSpec,
    takes={"corpus": Corpus, "checkpoint": Checkpoint},
    gives=Checkpoint,
    needs=check_certificate,
    cpus=reserved_cpus,
)
def finetune(ctx: StageContext, spec: FinetuneSpec, corpus: Corpus, checkpoint: Checkpoint) -> dict[str, Any]:
    """Train on from a checkpoint, with another objective or another corpus."""
    from ..training.checkpoint import check_tokenizer, read_info
    from ..training.extending import extend_weights, pieces_between
    from ..training.ray_train import train_checkpoint

    before, weights = read_info(checkpoint.path), checkpoint.path / "weights"
    if pieces := pieces_between(checkpoint.path, corpus.path):
        weights = ctx.scratch / "extended"
        extend_weights(checkpoint.path, weights, before, pieces)
        ctx.log(
            f"the corpus has {len(pieces)} tokens more than the checkpoint: each begins as its pieces' mean"
        )
    else:
        check_tokenizer(checkpoint.path, corpus.path, ctx.stage)
    model = spec.model or before.model
    return train_checkpoint(ctx, spec, model, corpus.path, weights, before, spec)
