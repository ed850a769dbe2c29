"""From a torch model to a bundle: ONNX graphs, checked against torch on rows of the corpus."""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor, nn

from ...models.multimodal import MultimodalModel
from ...models.spec import MODALITIES
from ...pipelines.bundle import (
    STATES,
    STATISTICS,
    Arrays,
    BundleInfo,
    Decoding,
    GraphSignature,
    Lineage,
    Modality,
    TensorSignature,
    open_graph,
    seal_bundle,
)
from ...pipelines.reading import CorpusReader
from ...pipelines.spec import BOS
from ...workflows.errors import EaglerayError
from .describing import TRAINED, describe_corpora
from .graphs import EvidenceGraph, Graph, ImageGraph, SpeechGraph, StepGraph, TextGraph
from .indexing import open_splits, sample_rows, write_index

GRAPHS: Mapping[Modality, type[Graph]] = {"image": ImageGraph, "text": TextGraph, "speech": SpeechGraph}


@dataclass(frozen=True)
class ExportOptions:
    """How a model is exported.

    Attributes:
        tolerance: largest |onnx - torch| that is accepted.
        check_rows: rows of the corpus on which both are compared.
        batch_rows: pictures that are embedded together for the index.
        described_rows: rows of the training split that say what its inputs are like.
    """

    tolerance: float
    check_rows: int
    batch_rows: int
    described_rows: int


def export_bundle(
    model: MultimodalModel,
    corpus: Path,
    output: Path,
    lineage: Lineage,
    options: ExportOptions,
    progress: Callable[[int, int], None] = lambda step, total: None,
    asked: Path | None = None,
) -> BundleInfo:
    """Write a bundle of `model` with an index of all the corpus's pictures.

    Args:
        model: in eval mode, on the CPU.
        corpus: the corpus's folder.
        output: empty folder.
        lineage: where model and corpus came from.
        options: tolerance and sizes.
        progress: told how many pictures of how many are indexed.
        asked: folder of a corpus that is more like what will be asked; none if that is `corpus`.

    Raises:
        EaglerayError: a graph is further from torch than the tolerance, or the model has no embeddings.
    """
    if "contrastive" not in model.tasks or set(model.modalities) != set(GRAPHS):
        raise EaglerayError(
            "the model does not embed pictures, texts and speech, which is what is served",
            "train all three encoders with a weight for objective.contrastive",
        )
    readers = open_splits(corpus)
    info = next(iter(readers.values())).info
    rows = sample_rows(readers, options.check_rows)
    graphs: dict[str, GraphSignature] = {}
    encoded: dict[str, Tensor] = {}
    for modality, kind in GRAPHS.items():
        graph = kind(model)
        given = torch.from_numpy(rows["present"][:, MODALITIES.index(modality)])
        everything = tuple(torch.from_numpy(rows[name]) for name in graph.inputs)
        path, arrays = output / f"{modality}.onnx", tuple(tensor[given] for tensor in everything)
        graphs[modality] = export_graph(graph, arrays, path, options.tolerance)
        with torch.no_grad():
            encoded[modality] = graph(*everything)[graph.outputs.index(STATES)]
    decoding = _export_decoder(model, rows, encoded, output, graphs, options) if model.decoder else None
    shutil.copyfile(corpus / "tokenizer.json", output / "tokenizer.json")
    embed_dim = write_index(readers, output, options.batch_rows, progress)
    likely = [CorpusReader(folder, TRAINED) for folder in (asked, corpus) if folder is not None]
    if options.described_rows:
        statistics = describe_corpora(likely, output, options.described_rows, options.batch_rows)
        (output / STATISTICS).write_text(statistics.model_dump_json(), encoding="utf-8")
    return seal_bundle(
        output,
        embed_dim=embed_dim,
        classes=tuple(info.classes),
        preparation=info.preparation,
        graphs=graphs,
        decoding=decoding,
        lineage=lineage,
    )


def export_graph(graph: Graph, inputs: Sequence[Tensor], path: Path, tolerance: float) -> GraphSignature:
    """Write one graph with a free batch dimension, and hold it against torch.

    Args:
        graph: of a model in eval mode.
        inputs: at least two rows of each.
        path: where it goes.
        tolerance: largest |onnx - torch| that is accepted.
    """
    graph.eval()
    batch = torch.export.Dim("batch", min=1)
    dimensions = tuple({0: batch} for _ in inputs)
    with torch.no_grad(), _quiet():
        torch.onnx.export(
            graph,
            tuple(tensor[:2] for tensor in inputs),
            path,
            dynamo=True,
            input_names=graph.inputs,
            output_names=graph.outputs,
            dynamic_shapes=(dimensions,) if graph.is_variadic else dimensions,
            external_data=False,
            verbose=False,
        )
    session = open_graph(path)
    num_rows = len(inputs[0])
    difference = max(_difference(session, graph, tuple(t[:n] for t in inputs)) for n in (1, num_rows))
    if difference > tolerance:
        raise EaglerayError(
            f"{path.stem} is {difference:.2g} away from torch, more than the tolerance {tolerance:g}",
            "raise the tolerance (--set STAGE.tolerance=…) if that is accurate enough",
            path.name,
        )
    return GraphSignature(
        inputs=_signature(session.get_inputs()),
        outputs=_signature(session.get_outputs()),
        rows_checked=num_rows,
        max_difference=difference,
    )


def _export_decoder(
    model: MultimodalModel,
    rows: Arrays,
    encoded: Mapping[str, Tensor],
    output: Path,
    graphs: dict[str, GraphSignature],
    options: ExportOptions,
) -> Decoding:
    """Write the graphs that answers are decoded with; `step` is held to torch after two tokens."""
    spec, capacity = model.spec.decoder, rows["tokens"].shape[1]
    assert spec is not None
    evidence, step = EvidenceGraph(model), StepGraph(model, capacity)
    known = {f"{modality}_states": states for modality, states in encoded.items()}
    known |= {name: torch.from_numpy(rows[name]) for name in ("token_mask", "mel_mask", "present")}
    known["question_type"] = torch.arange(len(rows["label"])) % (len(spec.question_types) + 1) - 1
    given = tuple(known[name] for name in evidence.inputs)
    num_rows = len(given[0])
    graphs["evidence"] = export_graph(evidence, given, output / "evidence.onnx", options.tolerance)
    with torch.no_grad():
        found = evidence(*given)
        own = step.empty(num_rows)
        last = torch.full((num_rows, 1), BOS)
        for length in (1, 2):
            log_probs, own, *_ = step(last, torch.full((num_rows,), length), own, *found)
            last = log_probs.argmax(dim=-1, keepdim=True)
    inputs = (last, torch.full((num_rows,), 3), own, *found)
    graphs["step"] = export_graph(step, inputs, output / "step.onnx", options.tolerance)
    return Decoding(
        asks="text" in model.evidence,
        max_tokens=capacity,
        question_types=tuple(kind.pattern for kind in spec.question_types),
    )


@contextmanager
def _quiet() -> Generator[None]:
    """Keep the exporter's remarks on torchvision and its own internals out of the run's log."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings(action="ignore"):
        try:
            yield
        finally:
            logger.setLevel(level)


def _difference(session: ort.InferenceSession, module: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    """Largest absolute difference of any output; NaN anywhere is infinitely far."""
    feed = {node.name: tensor.numpy() for node, tensor in zip(session.get_inputs(), inputs, strict=True)}
    with torch.no_grad():
        expected = module(*inputs)
    expected = expected if isinstance(expected, tuple) else (expected,)
    largest = [
        np.abs(np.asarray(ours, np.float64) - theirs.numpy()).max()
        for ours, theirs in zip(session.run(None, feed), expected, strict=True)
    ]
    return float(np.nan_to_num(largest, nan=np.inf).max())


def _signature(nodes: Sequence[Any]) -> tuple[TensorSignature, ...]:
    return tuple(TensorSignature(name=n.name, dtype=n.type, shape=tuple(n.shape)) for n in nodes)
