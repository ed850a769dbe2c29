"""Stage `evaluate`: retrieval between every two modalities and classification, on held-out pictures."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field

from ...workflows.artifacts import Checkpoint, Corpus, Report
from ...workflows.errors import EaglerayError
from ...workflows.spec import Runtime, StageSpec
from ...workflows.stage import StageContext, stage


class EvaluateSpec(StageSpec):
    """Which records are evaluated, at which ranks, and how sure the intervals are."""

    kind: Literal["evaluate"] = "evaluate"
    split: Literal["train", "val", "test"] = "test"
    """Which records are evaluated."""
    ranks: tuple[Annotated[int, Field(ge=1)], ...] = Field((1, 5, 10), min_length=1)
    """The k of recall@k."""
    resamples: int = Field(2000, ge=100)
    """Bootstrap resamples, by caption group."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Of the intervals."""
    seed: int = Field(0, ge=0)
    """Of the resampling."""
    batch_rows: int = Runtime(64, ge=1)
    """Pictures embedded together."""


@stage(EvaluateSpec, takes={"corpus": Corpus, "checkpoint": Checkpoint}, gives=Report)
def evaluate(ctx: StageContext, spec: EvaluateSpec, corpus: Corpus, checkpoint: Checkpoint) -> dict[str, Any]:
    """Measure retrieval and classification on held-out pictures, each with interval and chance."""
    from ...pipelines.reading import CorpusReader
    from ..training.checkpoint import check_tokenizer, load_model
    from ..training.evaluation import embed_split, measure

    check_tokenizer(checkpoint.path, corpus.path, ctx.stage)
    reader = CorpusReader(corpus.path, spec.split)
    if not len(reader):
        raise EaglerayError(
            f"the corpus has no picture in its {spec.split} split",
            f"evaluate another (--set {ctx.stage}.split=…), or give it a share in the corpus's `splits`",
            ctx.stage,
        )
    embedded = embed_split(load_model(checkpoint.path), reader, spec.batch_rows, ctx.progress)
    metrics = measure(embedded, spec.ranks, spec.resamples, spec.confidence, spec.seed)
    report = {"split": spec.split, "records": len(reader), "confidence": spec.confidence, "metrics": metrics}
    (ctx.output / "report.json").write_text(json.dumps(report, indent=2))
    for metric in metrics:
        ctx.log(
            f"{metric['name']}: {metric['value']:.1%} "
            f"[{metric['low']:.1%}, {metric['high']:.1%}], chance {metric['chance']:.1%}"
        )
    return report
