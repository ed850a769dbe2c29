"""Stage `pretrain`: train the multimodal model on a corpus from random weights."""

from __future__ import annotations

from typing import Any, Literal

from ...models.spec import ModelSpec
from ...workflows.artifacts import Checkpoint, Corpus
from ...workflows.stage import StageContext, stage
from ..training.certificate import check_certificate
from ..training.mesh import check_objective, check_topology
from ..training.spec import TrainingSpec, reserved_cpus


class PretrainSpec(TrainingSpec):
    """Contrastive and captioning pretraining on image–text–speech triples."""

    kind: Literal["pretrain"] = "pretrain"
    model: ModelSpec = ModelSpec()


def check(name: str, spec: PretrainSpec) -> None:
    """Refuse an objective or a mesh that the model or the batch is not made for, before anything runs."""
    check_objective(spec.objective, spec.model, name)
    check_topology(spec, spec.model, name)


@stage(
    PretrainSpec,
    takes={"corpus": Corpus},
    gives=Checkpoint,
    check=check,
    needs=check_certificate,
    cpus=reserved_cpus,
)
def pretrain(ctx: StageContext, spec: PretrainSpec, corpus: Corpus) -> dict[str, Any]:
    """Train the model from random weights on any mesh of workers."""
    from ..training.ray_train import train_checkpoint

    return train_checkpoint(ctx, spec, spec.model, corpus.path, weights=None)
