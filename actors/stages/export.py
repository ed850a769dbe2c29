"""Stage `export`: a checkpoint becomes a bundle of ONNX graphs with an index of the corpus."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from ...pipelines.spec import Form, Slicing
from ...workflows.artifacts import AnomalyModel, Bundle, Checkpoint, Corpus
from ...workflows.spec import Runtime, StageSpec
from ...workflows.stage import StageContext, stage


class ExportSpec(StageSpec):
    """How exactly the graphs must agree with torch, and on how many rows that is checked."""

    kind: Literal["export"] = "export"
    tolerance: float = Field(1e-4, gt=0)
    """Largest |onnx - torch| of an embedding or a logit that is accepted."""
    check_rows: int = Field(32, ge=2)
    """Pictures of the corpus, with caption and speech, on which both are compared."""
    described_rows: int = Field(1000, ge=0)
    """Rows of a training split that say what inputs are like, so that what is asked later can be held
    against them (drift); 0 for none. They are of the corpus `asked`, if there is one, and of `corpus` for
    modalities of which that has fewer than 100."""
    forms: tuple[Form, ...] = ()
    """Write the graphs in these forms, too: `int8` (ranges measured on the corpus), `int8-dynamic` (measured
    in each run), `float16`. `serve` takes one by its field `form`."""
    keep: tuple[str, ...] = ()
    """Modules that stay in single precision in all forms, by path, such as vision.blocks.0."""
    calibration_rows: int = Field(64, ge=2)
    """Rows that ranges are measured on, and as many others on which decisions are compared."""
    max_flips: float = Field(0.0, ge=0, le=1)
    """Share of rows of which another form may decide otherwise; beyond, there is no bundle."""
    threshold: float = Field(0.5, gt=0, lt=1)
    """Probability from which on a pixel is told to be marked, by a model that marks pictures."""
    pixels_per_mm: float | None = Field(None, gt=0)
    """Scale of the pictures that it marks: what is found is told in millimetres, too."""
    slicing: Slicing | None = None
    """How volumes are cut into the slices that it marks, as its corpus was; without, it marks pictures."""
    batch_rows: int = Runtime(32, ge=1)
    """Pictures embedded together for the index."""


@stage(
    ExportSpec,
    takes={"checkpoint": Checkpoint, "corpus": Corpus},
    may_take={"asked": Corpus, "anomaly": AnomalyModel},
    gives=Bundle,
)
def export(
    ctx: StageContext,
    spec: ExportSpec,
    checkpoint: Checkpoint,
    corpus: Corpus,
    asked: Corpus | None = None,
    anomaly: AnomalyModel | None = None,
) -> dict[str, Any]:
    """Export a checkpoint as ONNX graphs, check them against torch, and index the corpus's pictures.

    Where what is asked is to be like another corpus than that which is indexed, that is `asked`. What
    `anomaly` knows is told of pictures besides what the checkpoint marks, if it does.
    """
    from ...pipelines.bundle import Lineage
    from ..serving.exporting import Anomalies, ExportOptions, export_bundle
    from ..serving.quantising import Forms
    from ..training.anomaly import read
    from ..training.checkpoint import check_tokenizer, load_limits, load_model

    for one in (corpus, asked):
        if one is not None:
            check_tokenizer(checkpoint.path, one.path, ctx.stage)
    model = load_model(checkpoint.path)
    anomalies = None
    if anomaly is not None:
        detector, fitted = read(anomaly.path, model, checkpoint.digest, ctx.stage)
        anomalies = Anomalies(detector, fitted.spec.false_alarms)
    if ranges := load_limits(checkpoint.path):
        ctx.log(f"int8: {len(ranges)} ranges are those that it was trained with")
    info = export_bundle(
        model,
        corpus.path,
        ctx.output,
        Lineage(run_id=ctx.run_id, checkpoint=checkpoint.digest, corpus=corpus.digest),
        ExportOptions(
            spec.tolerance,
            spec.check_rows,
            spec.batch_rows,
            spec.described_rows,
            spec.calibration_rows,
            spec.threshold,
            spec.pixels_per_mm,
            spec.slicing,
            Forms(spec.forms, spec.keep, spec.max_flips, ranges),
        ),
        ctx.progress,
        asked.path if asked else None,
        anomalies,
    )
    differences = {modality: graph.max_difference for modality, graph in info.graphs.items()}
    for modality, difference in differences.items():
        ctx.log(f"{modality}.onnx: at most {difference:.2g} away from torch")
    for form, found in info.forms.items():
        flips, decided = sum(found.flips.values()), sum(found.decided.values())
        ctx.log(f"{form}: {found.size_share:.0%} of the size, {flips} of {decided} decisions are others")
    sizes = {name: (ctx.output / name).stat().st_size for name in info.files}
    return {"embed_dim": info.embed_dim, "max_difference": differences, "size_bytes": sizes}
