"""Stage `export`: a checkpoint becomes a bundle of ONNX graphs with an index of the corpus."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from ...workflows.artifacts import Bundle, Checkpoint, Corpus
from ...workflows.spec import Runtime, StageSpec
from ...workflows.stage import StageContext, stage


class ExportSpec(StageSpec):
    """How exactly the graphs must agree with torch, and on how many rows that is checked."""

    kind: Literal["export"] = "export"
    tolerance: float = Field(1e-4, gt=0)
    """Largest |onnx - torch| of an embedding or a logit that is accepted."""
    check_rows: int = Field(32, ge=2)
    """Pictures of the corpus, with caption and speech, on which both are compared."""
    batch_rows: int = Runtime(32, ge=1)
    """Pictures embedded together for the index."""


@stage(ExportSpec, takes={"checkpoint": Checkpoint, "corpus": Corpus}, gives=Bundle)
def export(ctx: StageContext, spec: ExportSpec, checkpoint: Checkpoint, corpus: Corpus) -> dict[str, Any]:
    """Export a checkpoint as ONNX graphs, check them against torch, and index the corpus's pictures."""
    from ...pipelines.bundle import Lineage
    from ..serving.exporting import ExportOptions, export_bundle
    from ..training.checkpoint import check_tokenizer, load_model

    check_tokenizer(checkpoint.path, corpus.path, ctx.stage)
    info = export_bundle(
        load_model(checkpoint.path),
        corpus.path,
        ctx.output,
        Lineage(run_id=ctx.run_id, checkpoint=checkpoint.digest, corpus=corpus.digest),
        ExportOptions(spec.tolerance, spec.check_rows, spec.batch_rows),
        ctx.progress,
    )
    differences = {modality: graph.max_difference for modality, graph in info.graphs.items()}
    for modality, difference in differences.items():
        ctx.log(f"{modality}.onnx: at most {difference:.2g} away from torch")
    sizes = {name: (ctx.output / name).stat().st_size for name in info.files}
    return {"embed_dim": info.embed_dim, "max_difference": differences, "size_bytes": sizes}
