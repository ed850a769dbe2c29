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
    described_rows: int = Field(1000, ge=0)
    """Rows of a training split that say what inputs are like, so that what is asked later can be held
    against them (drift); 0 for none. They are of the corpus `asked`, if there is one, and of `corpus` for
    modalities of which that has fewer than 100."""
    batch_rows: int = Runtime(32, ge=1)
    """Pictures embedded together for the index."""


@stage(
    ExportSpec,
    takes={"checkpoint": Checkpoint, "corpus": Corpus},
    may_take={"asked": Corpus},
    gives=Bundle,
)
def export(
    ctx: StageContext,
    spec: ExportSpec,
    checkpoint: Checkpoint,
    corpus: Corpus,
    asked: Corpus | None = None,
) -> dict[str, Any]:
    """Export a checkpoint as ONNX graphs, check them against torch, and index the corpus's pictures.

    Where what is asked is to be like another corpus than that which is indexed, that is `asked`.
    """
    from ...pipelines.bundle import Lineage
    from ..serving.exporting import ExportOptions, export_bundle
    from ..training.checkpoint import check_tokenizer, load_model

    for one in (corpus, asked):
        if one is not None:
            check_tokenizer(checkpoint.path, one.path, ctx.stage)
    info = export_bundle(
        load_model(checkpoint.path),
        corpus.path,
        ctx.output,
        Lineage(run_id=ctx.run_id, checkpoint=checkpoint.digest, corpus=corpus.digest),
        ExportOptions(spec.tolerance, spec.check_rows, spec.batch_rows, spec.described_rows),
        ctx.progress,
        asked.path if asked else None,
    )
    differences = {modality: graph.max_difference for modality, graph in info.graphs.items()}
    for modality, difference in differences.items():
        ctx.log(f"{modality}.onnx: at most {difference:.2g} away from torch")
    sizes = {name: (ctx.output / name).stat().st_size for name in info.files}
    return {"embed_dim": info.embed_dim, "max_difference": differences, "size_bytes": sizes}
