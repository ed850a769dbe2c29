"""Stage `evaluate`: how well a model does what it was trained for, on held-out records."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from ...models.spec import Task
from ...pipelines.spec import Slicing
from ...workflows.artifacts import AnomalyModel, Checkpoint, Corpus, Report
from ...workflows.errors import EaglerayError
from ...workflows.spec import Runtime, StageSpec
from ...workflows.stage import StageContext, stage
from ..serving.spec import TextPolicy

GROUPS = {
    "women": r"\b(wom[ae]n|girls?|ladies|lady|mothers?|queens?|princess(es)?)\b",
    "men": r"\b(m[ae]n|boys?|gentlem[ae]n|fathers?|kings?|princes?)\b",
    "children": r"\b(child(ren)?|bab(y|ies)|kids?|boys?|girls?)\b",
    "older people": r"\b(old (wom[ae]n|m[ae]n|people)|grand(mother|father|ma|pa)s?|elderly)\b",
}
"""Described in English captions; other languages need patterns of their own."""


class EvaluateSpec(StageSpec):
    """Which records are evaluated, how, and how sure the intervals are."""

    kind: Literal["evaluate"] = "evaluate"
    split: Literal["train", "val", "test"] = "test"
    """Which records are evaluated."""
    tasks: tuple[Task, ...] = ()
    """What is measured, of what the model was trained for; all of it by default."""
    ranks: tuple[Annotated[int, Field(ge=1)], ...] = Field((1, 5, 10), min_length=1)
    """The k of recall@k."""
    memory_lengths: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Positions that a text's encoder remembers, each measured; none is the model's own."""
    beams: int = Field(16, ge=1)
    """Texts that are kept at each position of a transcript."""
    resamples: int = Field(2000, ge=100)
    """Bootstrap resamples, by group of records."""
    resampled: Literal["group", "scan"] = "group"
    """What is resampled whole: groups, such as patients; or, of volumes, each scan for itself, which says
    nothing of other patients, and is all that can be said where there is but one."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Of the intervals."""
    seed: int = Field(0, ge=0)
    """Of the resampling."""
    groups: dict[str, str] = Field(GROUPS)
    """Name → regular expression over captions: the metrics are told of these records, too."""
    slicing: Slicing | None = None
    """Evaluate marks on whole volumes, cut into slices like this; without, on pictures."""
    texts: Literal["own", "none", "another's"] = "own"
    """What is read beside volumes by a model that reads texts there: each record's own, none, or that of the
    next record of another category, which contradicts what is seen."""
    moderation: TextPolicy | None = None
    """Tell how many of the split's texts a policy would flag, by language and group. It needs
    `eagleray[moderation]`."""
    batch_rows: int = Runtime(64, ge=1)
    """Records taken together."""

    @model_validator(mode="after")
    def _scans_are_volumes(self) -> EvaluateSpec:
        if self.resampled == "scan" and self.slicing is None:
            raise ValueError("resampled: scan is for volumes, which need slicing")
        if self.texts != "own" and self.slicing is None:
            raise ValueError(f"texts: {self.texts} is for volumes, which need slicing")
        return self

    @field_validator("groups")
    @classmethod
    def _compile(cls, groups: dict[str, str]) -> dict[str, str]:
        for name, pattern in groups.items():
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{name}: {pattern!r} is no regular expression: {error}") from None
        return groups


@stage(
    EvaluateSpec,
    takes={"corpus": Corpus, "checkpoint": Checkpoint},
    may_take={"anomaly": AnomalyModel},
    gives=Report,
)
def evaluate(
    ctx: StageContext,
    spec: EvaluateSpec,
    corpus: Corpus,
    checkpoint: Checkpoint,
    anomaly: AnomalyModel | None = None,
) -> dict[str, Any]:
    """Measure what a model is for on held-out records, each with interval and chance."""
    from ...pipelines.reading import CorpusReader
    from ..training.anomalies import anomalies
    from ..training.anomaly import read
    from ..training.bias import flagged_texts, read_parts
    from ..training.checkpoint import check_tokenizer, load_model, read_info
    from ..training.marking import marked
    from ..training.marking_volumes import marked_volumes, texts_beside
    from ..training.metrics import Bootstrap, shown
    from ..training.retrieval import accuracy, embed_split, recalls
    from ..training.texts import answer_accuracies, bits_per_byte, document_accuracies, word_error_rates

    check_tokenizer(checkpoint.path, corpus.path, ctx.stage)
    model = read_info(checkpoint.path).model
    reader = CorpusReader(corpus.path, spec.split, model.findings, model.compares)
    if not len(reader):
        raise EaglerayError(
            f"the corpus has no record in its {spec.split} split",
            f"evaluate another (--set {ctx.stage}.split=…), or give it a share in the corpus's `splits`",
            ctx.stage,
        )
    model = load_model(checkpoint.path)
    if missing := sorted(set(spec.tasks) - model.tasks):
        raise EaglerayError(
            f"the checkpoint was not trained for {' and '.join(missing)}",
            f"evaluate some of {', '.join(sorted(model.tasks))} (--set {ctx.stage}.tasks=…)",
            ctx.stage,
        )
    tasks = set(spec.tasks) or model.tasks
    if tasks & {"classification", "document"} and read_info(checkpoint.path).classes != reader.info.classes:
        raise EaglerayError(
            "the corpus has other categories than the checkpoint: its labels are other numbers",
            "evaluate on the corpus it was trained on, or finetune it on this one first, or name the other "
            f"tasks (--set {ctx.stage}.tasks=…)",
            ctx.stage,
        )
    how = Bootstrap(spec.resamples, spec.confidence, spec.seed)
    tokenizer = corpus.path / "tokenizer.json"
    parts = read_parts(reader, spec.groups)
    metrics: list[dict[str, Any]] = []
    if "contrastive" in tasks:
        metrics += recalls(embed_split(model, reader, spec.batch_rows, ctx.progress), spec.ranks, how, parts)
    if "classification" in tasks:
        metrics += accuracy(model, reader, spec.batch_rows, how, ctx.progress, parts)
    if "document" in tasks:
        metrics += document_accuracies(model, reader, spec.batch_rows, how, ctx.progress, parts)
    if "segmentation" in tasks and spec.slicing is None:
        metrics += marked(model, reader, spec.batch_rows, how, ctx.progress)
    elif "segmentation" in tasks and spec.slicing is not None:
        metrics += marked_volumes(
            model,
            reader,
            spec.slicing,
            how,
            ctx.progress,
            texts=texts_beside(reader, spec.texts) if model.spec.marks_by_text else (),
            by_scan=spec.resampled == "scan",
        )
    if anomaly is not None:
        detector, _ = read(anomaly.path, model, checkpoint.digest, ctx.stage)
        metrics += anomalies(detector, reader, spec.batch_rows, how, ctx.progress)
    if "language" in tasks:
        metrics += bits_per_byte(model, reader, spec.memory_lengths, how, ctx.progress, parts)
    if "transcription" in tasks:
        metrics += word_error_rates(
            model, reader, tokenizer, spec.beams, spec.batch_rows, how, ctx.progress, parts
        )
    if "answer" in tasks and ("answer" in reader.info.columns or spec.tasks):
        metrics += answer_accuracies(model, reader, tokenizer, spec.batch_rows, how, ctx.progress, parts)
    if spec.moderation is not None:
        from ..serving.moderating.models import Texts
        from ..serving.moderating.policy import judge_all, remarks

        policy, texts = spec.moderation, Texts()
        metrics += flagged_texts(
            reader, lambda text: bool(remarks(judge_all("text", texts.score(text), policy))), parts, how
        )
    report = {
        "split": spec.split,
        "records": len(reader),
        "confidence": spec.confidence,
        "resampled": spec.resampled,
        "texts": spec.texts,
        "metrics": metrics,
    }
    (ctx.output / "report.json").write_text(json.dumps(report, indent=2))
    if spec.resampled == "scan":
        ctx.log("intervals are over scans, not over patients: they say nothing of other patients")
    for metric in metrics:
        ctx.log(shown(metric))
        for part in metric.get("parts", ()):
            ctx.log(f"  {shown(part)}")
    return report
