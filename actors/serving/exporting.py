"""From a torch model to a bundle: three ONNX graphs, checked against torch on rows of the corpus."""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Callable, Generator, Sequence
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
    EMBEDDING,
    GRAPH_INPUTS,
    Arrays,
    BundleInfo,
    GraphSignature,
    Lineage,
    Modality,
    TensorSignature,
    open_graph,
    seal_bundle,
)
from ...workflows.errors import EaglerayError
from .indexing import open_splits, sample_rows, write_index


class ImageGraph(nn.Module):
    """Picture → embedding, and category logits if the model has categories."""

    def __init__(self, model: MultimodalModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Embed and classify pictures (B, 3, H, W)."""
        embedding, logits = self.model.embed_and_classify(image)
        return (embedding,) if logits is None else (embedding, logits)


class TextGraph(nn.Module):
    """Tokens → embedding."""

    def __init__(self, model: MultimodalModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, token_mask: Tensor) -> Tensor:
        """Embed texts (B, T)."""
        return self.model.embed_text(tokens, token_mask)


class SpeechGraph(nn.Module):
    """Log-mel frames → embedding."""

    def __init__(self, model: MultimodalModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, mel: Tensor, mel_mask: Tensor) -> Tensor:
        """Embed speech (B, F, n_mels)."""
        return self.model.embed_speech(mel, mel_mask)


GRAPHS: dict[Modality, type[ImageGraph | TextGraph | SpeechGraph]] = {
    "image": ImageGraph,
    "text": TextGraph,
    "speech": SpeechGraph,
}


@dataclass(frozen=True)
class ExportOptions:
    """How a model is exported.

    Attributes:
        tolerance: largest |onnx - torch| that is accepted.
        check_rows: rows of the corpus on which both are compared.
        batch_rows: pictures that are embedded together for the index.
    """

    tolerance: float
    check_rows: int
    batch_rows: int


def export_bundle(
    model: MultimodalModel,
    corpus: Path,
    output: Path,
    lineage: Lineage,
    options: ExportOptions,
    progress: Callable[[int, int], None] = lambda step, total: None,
) -> BundleInfo:
    """Write a bundle of `model` with an index of all the corpus's pictures.

    Args:
        model: in eval mode, on the CPU.
        corpus: the corpus's folder.
        output: empty folder.
        lineage: where model and corpus came from.
        options: tolerance and sizes.
        progress: told how many pictures of how many are indexed.

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
    graphs: dict[Modality, GraphSignature] = {}
    for modality in GRAPHS:
        graphs[modality] = export_graph(model, modality, rows, output / f"{modality}.onnx", options.tolerance)
    shutil.copyfile(corpus / "tokenizer.json", output / "tokenizer.json")
    embed_dim = write_index(readers, output, options.batch_rows, progress)
    return seal_bundle(
        output,
        embed_dim=embed_dim,
        classes=tuple(info.classes),
        preparation=info.preparation,
        graphs=graphs,
        lineage=lineage,
    )


def export_graph(
    model: MultimodalModel, modality: Modality, rows: Arrays, path: Path, tolerance: float
) -> GraphSignature:
    """Write one graph with a free batch dimension, and hold it against torch.

    Args:
        model: in eval mode.
        modality: which graph.
        rows: a batch of the corpus, at least two rows that have the modality.
        path: where the graph goes.
        tolerance: largest |onnx - torch| that is accepted.
    """
    module = GRAPHS[modality](model).eval()
    classified = modality == "image" and "classification" in model.tasks
    outputs = (EMBEDDING, "class_logits") if classified else (EMBEDDING,)
    names = GRAPH_INPUTS[modality]
    given = rows["present"][:, MODALITIES.index(modality)]
    inputs = tuple(torch.from_numpy(rows[name][given]) for name in names)
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad(), _quiet():
        torch.onnx.export(
            module,
            tuple(tensor[:2] for tensor in inputs),
            path,
            dynamo=True,
            input_names=names,
            output_names=outputs,
            dynamic_shapes=tuple({0: batch} for _ in names),
            external_data=False,
            verbose=False,
        )
    session = open_graph(path)
    difference = max(_difference(session, module, tuple(t[:n] for t in inputs)) for n in (1, len(inputs[0])))
    if difference > tolerance:
        raise EaglerayError(
            f"{modality} is {difference:.2g} away from torch, more than the tolerance {tolerance:g}",
            "raise the tolerance (--set STAGE.tolerance=…) if that is accurate enough",
            path.name,
        )
    return GraphSignature(
        inputs=_signature(session.get_inputs()),
        outputs=_signature(session.get_outputs()),
        rows_checked=len(inputs[0]),
        max_difference=difference,
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
        np.abs(ours - theirs.numpy()).max()
        for ours, theirs in zip(session.run(None, feed), expected, strict=True)
    ]
    return float(np.nan_to_num(largest, nan=np.inf).max())


def _signature(nodes: Sequence[Any]) -> tuple[TensorSignature, ...]:
    return tuple(TensorSignature(name=n.name, dtype=n.type, shape=tuple(n.shape)) for n in nodes)
