"""Stage `finetune`: go on from a checkpoint with another objective or corpus."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from ...workflows.artifacts import Checkpoint, Corpus
from ...workflows.stage import StageContext, stage
from ..training.spec import ObjectiveSpec, OptimizerSpec, TrainingSpec, reserved_cpus


class FinetuneSpec(TrainingSpec):
    """Fine-tuning; by default the picture's category joins the objective, at a lower learning rate."""

    kind: Literal["finetune"] = "finetune"
    steps: int = Field(100, ge=1)
    """Optimizer steps."""
    objective: ObjectiveSpec = ObjectiveSpec(contrastive=1.0, caption=0.25, classification=0.5)
    """Terms of the loss."""
    optimizer: OptimizerSpec = OptimizerSpec(learning_rate=3e-4)
    """How weights are changed."""


@stage(FinetuneSpec, takes={"corpus": Corpus, "checkpoint": Checkpoint}, gives=Checkpoint, cpus=reserved_cpus)
def finetune(ctx: StageContext, spec: FinetuneSpec, corpus: Corpus, checkpoint: Checkpoint) -> dict[str, Any]:
    """Train on from a checkpoint, with another objective or another corpus."""
    from ..training.checkpoint import check_tokenizer, read_info
    from ..training.ray_train import train_checkpoint

    check_tokenizer(checkpoint.path, corpus.path, ctx.stage)
    before = read_info(checkpoint.path)
    return train_checkpoint(ctx, spec, before.model, corpus.path, checkpoint.path / "weights", before)
