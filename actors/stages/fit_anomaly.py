"""Stage `fit-anomaly`: what normal pictures look like, so that what looks otherwise is told."""

from __future__ import annotations

from typing import Any, Literal

from ...workflows.artifacts import AnomalyModel, Checkpoint, Corpus
from ...workflows.errors import EaglerayError
from ...workflows.spec import StageSpec
from ...workflows.stage import StageContext, stage
from ..training.anomaly_spec import AnomalySpec


class FitAnomalySpec(StageSpec, AnomalySpec):
    """An anomaly detector that sees no defect: a mixture of Gaussians over patches of normal pictures."""

    kind: Literal["fit-anomaly"] = "fit-anomaly"


@stage(FitAnomalySpec, takes={"corpus": Corpus, "checkpoint": Checkpoint}, gives=AnomalyModel)
def fit_anomaly(
    ctx: StageContext, spec: FitAnomalySpec, corpus: Corpus, checkpoint: Checkpoint
) -> dict[str, Any]:
    """Fit a density to the train split's normal pictures, and set a threshold on some that were held out."""
    from ...pipelines.reading import CorpusReader
    from ..training.anomaly import fit_detector, write
    from ..training.checkpoint import load_model

    model = load_model(checkpoint.path)
    if spec.encoder and model.vision is None:
        raise EaglerayError(
            "the checkpoint sees no pictures",
            "take one that was trained with model.vision, or set encoder: false",
            ctx.stage,
        )
    reader = CorpusReader(corpus.path, "train")
    detector, info = fit_detector(
        model, reader, spec, ctx.scratch, checkpoint.digest, ctx.progress, ctx.stage
    )
    write(ctx.output, detector, info)
    before, last = info.log_likelihoods[-2:][0], info.log_likelihoods[-1]
    ctx.log(
        f"{info.patches} patches of {info.pictures} normal pictures, {last:.2f} nats each: "
        f"{last - before:.2g} more than a pass before; threshold {info.threshold:.1f} nats, set on "
        f"{info.held_out} others"
    )
    return info.model_dump(mode="json", exclude={"spec"})
