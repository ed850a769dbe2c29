"""From a torch model to a bundle: ONNX graphs, checked against torch on rows of the corpus."""

from __future__ import annotations

import json
import logging
import math
import shutil
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import helper, numpy_helper
from onnxscript import optimizer
from tokenizers import Tokenizer
from torch import Tensor, nn

from ...models.anomaly import AnomalyDetector
from ...models.multimodal import MultimodalModel
from ...models.spec import MODALITIES
from ...pipelines.assessing.answers import write_answers
from ...pipelines.bundle import (
    ANOMALY,
    BESIDE,
    DOCUMENT,
    GRAPH_INPUTS,
    MARKS,
    MODULATION,
    SAMPLE,
    STATES,
    STATISTICS,
    AnomalyScoring,
    Arrays,
    BundleInfo,
    Decoding,
    GraphSignature,
    Lineage,
    Marking,
    Modality,
    Reading,
    TensorSignature,
    open_graph,
    seal_bundle,
)
from ...pipelines.media.image import denormalise
from ...pipelines.reading import CorpusReader
from ...pipelines.spec import BOS, EOS, Slicing
from ...workflows.errors import EaglerayError
from .describing import TRAINED, describe_corpora
from .graphs import (
    AnomalyGraph,
    BesideGraph,
    DocumentGraph,
    EvidenceGraph,
    Graph,
    ImageGraph,
    MarksGraph,
    SpeechGraph,
    StepGraph,
    TextGraph,
)
from .indexing import open_splits, sample_rows, write_index
from .layers import SCOPES, modules_of, values_of
from .quantising import Forms, write_forms
from .sampling import picture_sample, volume_sample

SAMPLE_CHARS = 600
FOLDED = 2**22
"""Numbers that a constant may have."""
LARGE = 2**10
"""Numbers from which on a constant's size matters."""
GRAPHS: Mapping[Modality, type[Graph]] = {"image": ImageGraph, "text": TextGraph, "speech": SpeechGraph}


EXACT = "detector.density", "detector.features.jet"
"""Parts that stay in single precision in all forms: a density falls by orders of magnitude within one of 256
steps."""


@dataclass(frozen=True)
class Anomalies:
    """What tells what looks like nothing normal.

    Attributes:
        detector: whose encoder, if it has one, is the exported model's.
        false_alarms: share of normal pictures that its threshold was set for.
    """

    detector: AnomalyDetector
    false_alarms: float


@dataclass(frozen=True)
class ExportOptions:
    """How a model is exported.

    Attributes:
        tolerance: largest |onnx - torch| that is accepted.
        check_rows: rows of the corpus on which both are compared.
        batch_rows: pictures that are embedded together for the index.
        described_rows: rows of the training split that say what its inputs are like.
        calibration_rows: rows on which other forms are measured, and as many on which they are compared.
        threshold: probability from which on a pixel is told to be marked.
        pixels_per_mm: of pictures that are marked, if it is known.
        slicing: of volumes, whose slices are marked; None where pictures are.
        forms: that graphs are written in besides.
    """

    tolerance: float
    check_rows: int
    batch_rows: int
    described_rows: int
    calibration_rows: int = 64
    threshold: float = 0.5
    pixels_per_mm: float | None = None
    slicing: Slicing | None = None
    forms: Forms = field(default_factory=Forms)


def export_bundle(
    model: MultimodalModel,
    corpus: Path,
    output: Path,
    lineage: Lineage,
    options: ExportOptions,
    progress: Callable[[int, int], None] = lambda step, total: None,
    asked: Path | None = None,
    anomalies: Anomalies | None = None,
) -> BundleInfo:
    """Write a bundle of `model`; where it embeds, with an index of all the corpus's pictures.

    Args:
        model: in eval mode, on the CPU.
        corpus: the corpus's folder.
        output: empty folder.
        lineage: where model and corpus came from.
        options: tolerance and sizes.
        progress: told how many pictures of how many are indexed.
        asked: folder of a corpus that is more like what will be asked; none if that is `corpus`.
        anomalies: what tells those in pictures, if anything does.

    Raises:
        EaglerayError: a graph is further from torch than the tolerance, or the model does nothing that is
            served, or it is to tell anomalies in volumes.
    """
    embeds = "contrastive" in model.tasks and set(model.modalities) == set(GRAPHS)
    reads, marks = "document" in model.tasks, "segmentation" in model.tasks
    if not (embeds or reads or marks or anomalies):
        raise EaglerayError(
            "the model neither embeds pictures, texts and speech, nor reads documents, nor marks pictures",
            "train all three encoders with a weight for objective.contrastive, a text's for "
            "objective.document, or a picture's for objective.segmentation; or give it an anomaly model",
        )
    if anomalies and options.slicing:
        raise EaglerayError(
            "an anomaly model is of pictures, and slicing is of volumes", "leave one of them out", "slicing"
        )
    readers = open_splits(corpus, model.spec.findings, model.spec.compares)
    described = next(iter(readers.values())).info
    graphs: dict[str, GraphSignature] = {}
    told: dict[str, Any] = {
        "embed_dim": 0,
        "classes": tuple(described.classes),
        "preparation": described.preparation,
        "graphs": graphs,
        "decoding": None,
        "lineage": lineage,
    }
    if (corpus / "tokenizer.json").is_file():  # pictures alone have none
        shutil.copyfile(corpus / "tokenizer.json", output / "tokenizer.json")
    if embeds:
        told["decoding"] = _export_encoders(model, readers, output, graphs, options)
        told["embed_dim"] = write_index(readers, output, options.batch_rows, progress)
        likely = [CorpusReader(folder, TRAINED) for folder in (asked, corpus) if folder is not None]
        if options.described_rows:
            statistics = describe_corpora(likely, output, options.described_rows, options.batch_rows)
            (output / STATISTICS).write_text(statistics.model_dump_json(), encoding="utf-8")
    if reads:
        told["document"] = _export_document(model, readers, output, graphs, options)
    if marks:
        told["marking"] = _export_marks(model, readers, output, graphs, options)
    if anomalies:
        told["anomaly"] = _export_anomalies(model, anomalies, readers, output, graphs, options)
    if options.forms.forms:
        # ranges are measured on what was trained on, if there is anything else to compare on
        needed = ("image", "text") if model.spec.marks_by_text else ("image",)
        modalities: Sequence[Modality] = tuple(GRAPHS) if embeds else ("text",) if reads else needed
        seen, golden = (
            sample_rows(some, options.calibration_rows, modalities)
            for some in (readers, dict(reversed(readers.items())))
        )
        names = {f"detector.{name}" for name, _ in anomalies.detector.named_modules()} if anomalies else set()
        kept = (*options.forms.keep, *(one for one in EXACT if one in names))
        forms = replace(options.forms, keep=kept)
        told["forms"] = write_forms(output, BundleInfo(files={}, **told), seen, golden, forms)
    info = BundleInfo(files={}, **told)
    if "picture" in info.assesses:
        write_answers(output, info, options.forms.forms)
    return seal_bundle(output, **told)


def _export_encoders(
    model: MultimodalModel,
    readers: Mapping[str, CorpusReader],
    output: Path,
    graphs: dict[str, GraphSignature],
    options: ExportOptions,
) -> Decoding | None:
    """Write the graphs of encoders, and of the decoder if there is one."""
    rows = sample_rows(readers, options.check_rows)
    encoded: dict[str, Tensor] = {}
    for modality, kind in GRAPHS.items():
        graph = kind(model)
        given = torch.from_numpy(rows["present"][:, MODALITIES.index(modality)])
        everything = tuple(torch.from_numpy(rows[name]) for name in graph.inputs)
        path, arrays = output / f"{modality}.onnx", tuple(tensor[given] for tensor in everything)
        graphs[modality] = export_graph(graph, arrays, path, options.tolerance)
        with torch.no_grad():
            encoded[modality] = graph(*everything)[graph.outputs.index(STATES)]
    return _export_decoder(model, rows, encoded, output, graphs, options) if model.decoder else None


def _export_document(
    model: MultimodalModel,
    readers: Mapping[str, CorpusReader],
    output: Path,
    graphs: dict[str, GraphSignature],
    options: ExportOptions,
) -> Reading:
    """Write the graph that reads a document's segments, and a document of the corpus to try it with."""
    spec = model.spec.text
    assert spec is not None
    rows = sample_rows(readers, options.check_rows, ("text",))
    given = rows["present"][:, MODALITIES.index("text")]
    parts = (model.segments(torch.from_numpy(rows[name][given])) for name in GRAPH_INPUTS["text"])
    path = output / f"{DOCUMENT}.onnx"
    graphs[DOCUMENT] = export_graph(DocumentGraph(model), tuple(parts), path, options.tolerance)
    ids = [one for one in rows["tokens"][given][0].tolist() if one > EOS]
    words = Tokenizer.from_file(str(output / "tokenizer.json")).decode(ids).strip()
    (output / SAMPLE).write_text(json.dumps({"text": words[:SAMPLE_CHARS]}), encoding="utf-8")
    return Reading(length=spec.max_tokens, overlap=spec.overlap)


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
    _tidy(path)
    session = open_graph(path)
    num_rows = len(inputs[0])
    difference = max(_difference(session, graph, tuple(t[:n] for t in inputs)) for n in (1, num_rows))
    if difference > tolerance:
        where = _astray(path, graph, tuple(tensor[:2] for tensor in inputs), tolerance)
        raise EaglerayError(
            f"{path.stem} is {difference:.2g} away from torch, more than the tolerance {tolerance:g}{where}",
            "raise the tolerance (--set STAGE.tolerance=…) if that is accurate enough",
            path.name,
        )
    return GraphSignature(
        inputs=_signature(session.get_inputs()),
        outputs=_signature(session.get_outputs()),
        rows_checked=num_rows,
        max_difference=difference,
    )


def _export_marks(
    model: MultimodalModel,
    readers: Mapping[str, CorpusReader],
    output: Path,
    graphs: dict[str, GraphSignature],
    options: ExportOptions,
) -> Marking:
    """Write the graph that marks pictures, and something of the corpus to try it with."""
    graph, reads_text = MarksGraph(model), model.spec.marks_by_text
    rows = sample_rows(readers, options.check_rows, ("image", "text") if reads_text else ("image",))
    given = rows["present"][:, MODALITIES.index("image")]
    known = {name: torch.from_numpy(rows[name][given]) for name in ("image", "reference") if name in rows}
    if reads_text:
        texts = [torch.from_numpy(rows[name][given]) for name in GRAPH_INPUTS["text"]]
        path = output / f"{BESIDE}.onnx"
        graphs[BESIDE] = export_graph(BesideGraph(model), texts, path, options.tolerance)
        with torch.no_grad():
            known[MODULATION] = model.modulate(*texts)
    inputs = tuple(known[name] for name in graph.inputs)
    graphs[MARKS] = export_graph(graph, inputs, output / f"{MARKS}.onnx", options.tolerance)
    _write_sample({name: known[name] for name in graph.inputs if name != MODULATION}, output, options)
    return Marking(
        size=known["image"].shape[-1],
        findings=model.spec.findings,
        threshold=options.threshold,
        pixels_per_mm=options.pixels_per_mm,
        compares=model.spec.compares,
        slicing=options.slicing,
        reads_text=reads_text,
    )


def _export_anomalies(
    model: MultimodalModel,
    anomalies: Anomalies,
    readers: Mapping[str, CorpusReader],
    output: Path,
    graphs: dict[str, GraphSignature],
    options: ExportOptions,
) -> AnomalyScoring:
    """Write the graph that tells anomalies, and something of the corpus to try it with."""
    graph = AnomalyGraph(model, anomalies.detector)
    pictures = _pictures(readers, options, graph.inputs)
    graphs[ANOMALY] = export_graph(graph, pictures, output / f"{ANOMALY}.onnx", options.tolerance)
    if not (output / SAMPLE).exists():
        _write_sample({"image": pictures[0]}, output, options)
    return AnomalyScoring(
        size=pictures[0].shape[-1], false_alarms=anomalies.false_alarms, pixels_per_mm=options.pixels_per_mm
    )


def _pictures(
    readers: Mapping[str, CorpusReader], options: ExportOptions, inputs: Sequence[str]
) -> tuple[Tensor, ...]:
    """Inputs (B, 3, S, S) of a graph of pictures, of the corpus, that it is held to torch on."""
    rows = sample_rows(readers, options.check_rows, ("image",))
    given = rows["present"][:, MODALITIES.index("image")]
    return tuple(torch.from_numpy(rows[name][given]) for name in inputs)


def _write_sample(pictures: Mapping[str, Tensor], output: Path, options: ExportOptions) -> None:
    """Write a picture, with what it is compared with, or a patch of a volume to try a bundle with."""
    seen = {name: denormalise(one[0].numpy()) for name, one in pictures.items()}
    slicing = options.slicing
    sample = (
        {name: picture_sample(one) for name, one in seen.items()}
        if slicing is None
        else {"volume": volume_sample(seen["image"], slicing)}
    )
    (output / SAMPLE).write_text(json.dumps(sample), encoding="utf-8")


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


def _astray(path: Path, graph: Graph, inputs: tuple[Tensor, ...], tolerance: float) -> str:
    """The module after which a graph's values leave torch's, in words; nothing where none tells."""
    model = onnx.load(path)
    last = {module: node.output[0] for node in model.graph.node for module in modules_of(node)}
    expected: dict[str, Any] = {}

    def keeps(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, given: Any, found: Any) -> None:  # noqa: ANN401 - torch's
            expected[name] = found

        return hook

    hooks = [
        module.register_forward_hook(keeps(name)) for name, module in graph.named_modules() if name in last
    ]
    with torch.no_grad():
        graph(*inputs)
    for hook in hooks:
        hook.remove()
    given = [node.name for node in model.graph.input]
    feed = {name: tensor.numpy() for name, tensor in zip(given, inputs, strict=True)}
    found = values_of(path, list(last.values()), feed)
    for name, theirs in expected.items():  # in the order in which they ended
        ours = found.get(last[name])
        if ours is None or not isinstance(theirs, Tensor) or ours.shape != tuple(theirs.shape):
            continue
        if np.abs(ours - theirs.double().numpy()).max() > tolerance:
            return f", from {name.removeprefix('model.')} on"
    return ""


def _tidy(path: Path) -> None:
    """Compute what is the same in every run, which the exporter leaves where it is large (Swin V2's biases
    are half of a small model), and forget where in the source it comes from.
    """
    model: onnx.ModelProto = optimizer.optimize(
        onnx.load(path), input_size_limit=FOLDED, output_size_limit=FOLDED
    )
    for node in model.graph.node:
        scopes = [one for one in node.metadata_props if one.key == SCOPES]
        del node.metadata_props[:]
        node.metadata_props.extend(scopes)
    del model.graph.value_info[:]
    _keep_masks(model)
    _share_constants(model)
    onnx.save(model, path)


def _keep_masks(model: onnx.ModelProto) -> None:
    """Keep large constants of two numbers as masks, a quarter of the size; opening a graph makes them."""
    for one in list(model.graph.initializer):
        if one.data_type != onnx.TensorProto.FLOAT or math.prod(one.dims) < LARGE:
            continue
        array = numpy_helper.to_array(one)
        first = array.flat[0]
        others = array[array != first]
        if others.size and (others == others[0]).all():
            parts = {"mask": array == first, "first": first, "other": others[0]}
            names = [f"{one.name}_{part}" for part in parts]
            made = (
                numpy_helper.from_array(np.asarray(p), n) for p, n in zip(parts.values(), names, strict=True)
            )
            model.graph.initializer.remove(one)
            model.graph.initializer.extend(made)
            model.graph.node.insert(0, helper.make_node("Where", names, [one.name], f"{one.name}_made"))


def _share_constants(model: onnx.ModelProto) -> None:
    """Keep constants that are equal once."""
    found: dict[tuple[Any, ...], str] = {}
    instead: dict[str, str] = {}
    for one in list(model.graph.initializer):
        array = numpy_helper.to_array(one)
        name = found.setdefault((one.data_type, array.shape, array.tobytes()), one.name)
        if name != one.name:
            instead[one.name] = name
            model.graph.initializer.remove(one)
    for node in model.graph.node:
        node.input[:] = [instead.get(name, name) for name in node.input]


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
