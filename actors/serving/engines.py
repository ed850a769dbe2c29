"""Engines of a bundle's graphs, made ahead of serving and held to single precision on the CPU."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...pipelines.bundle import BundleInfo, graph_file, load_bundle, read_info
from ...pipelines.providers import Choice, engine_folder, profile
from ...pipelines.spec import Accelerator, Form, Modality
from ...workflows.errors import EaglerayError
from .indexing import open_splits, sample_rows
from .parity import compare, decide
from .quantising import Recorder, in_words, layers_at_fault


@dataclass(frozen=True)
class EngineOptions:
    """How engines are made, and how close they must be.

    Attributes:
        form: of the graphs; None is single precision.
        accelerator: what they shall run on.
        folder: where engines lie; None is beside the bundle.
        max_rows: of a batch.
        check_rows: rows of the corpus on which decisions are compared.
        max_flips: share of rows that may be decided otherwise.
    """

    form: Form | None = None
    accelerator: Accelerator = "auto"
    folder: Path | None = None
    max_rows: int = 16
    check_rows: int = 64
    max_flips: float = 0.0


@dataclass(frozen=True)
class Made:
    """What came of it.

    Attributes:
        choice: what the graphs run on.
        seconds: graph → until its engine was made or read, and had run once.
        engines: graph → where its engine lies, None if there is none.
        decided: decision → of how many rows.
        flips: decision → of how many rows it is another.
    """

    choice: Choice
    seconds: Mapping[str, float]
    engines: Mapping[str, Path | None]
    decided: Mapping[str, int]
    flips: Mapping[str, int]


def make_engines(
    folder: Path, corpus: Path, options: EngineOptions, log: Callable[[str], None] = lambda line: None
) -> Made:
    """Make the engines of a bundle, and compare what it decides with them.

    Args:
        folder: of the bundle.
        corpus: a corpus that it may be asked about, which decisions are compared on.
        options: what is made.
        log: takes a line for people about each graph.

    Raises:
        EaglerayError: when a decision flips too often, with the layers at fault.
    """
    bundle = load_bundle(folder, options.form)
    choice = bundle.accelerate(options.accelerator, options.folder, options.max_rows)
    log(choice.line)
    seconds: dict[str, float] = {}
    for graph in bundle.info.graphs:
        begun, blank = time.monotonic(), bundle.blank(graph)
        for count in sorted({1, options.max_rows}):
            bundle.run(graph, {name: np.stack([array] * count) for name, array in blank.items()})
        seconds[graph] = time.monotonic() - begun
        log(f"{graph_file(graph, options.form)}: ready after {seconds[graph]:.1f} s")
    marking = bundle.info.marking
    splits = (
        open_splits(corpus) if marking is None else open_splits(corpus, marking.findings, marking.compares)
    )
    rows = sample_rows(splits, options.check_rows, modalities(bundle.info))
    plain = Recorder(folder, bundle.info)
    before, after = decide(plain, rows), decide(bundle, rows)
    flips = compare(before, after)
    for name, where in flips.items():
        if len(where) > options.max_flips * len(before[name].found):
            fault = layers_at_fault(before[name], folder, options.form, plain.fed, bundle.providers)
            raise EaglerayError(
                f"on {choice.provider}, {options.form or 'single precision'} decides {len(where)} of "
                f"{len(before[name].found)} rows otherwise ({name}: {where[0]}); results go astray most at "
                f"{in_words(fault)}",
                "use another form or accelerator, or allow some (--max-flips)",
                graph_file(before[name].graphs[0], options.form),
            )
    return Made(
        choice=choice,
        seconds=seconds,
        engines={
            graph: engine_folder(choice, bundle.info.files[graph_file(graph, options.form)], options.form)
            for graph in bundle.info.graphs
        },
        decided={name: len(one.found) for name, one in before.items()},
        flips={name: len(where) for name, where in flips.items()},
    )


def modalities(info: BundleInfo) -> tuple[Modality, ...]:
    """What rows must have, for a bundle to decide something of each."""
    if info.embeds:
        return ("image", "text", "speech")
    return ("text",) if info.document is not None else ("image",)


def trtexec_commands(folder: Path, options: EngineOptions) -> list[str]:
    """Commands that make the same engines by TensorRT's own tool, for what doesn't run ONNX Runtime.

    Args:
        folder: of the bundle.
        options: form, rows, and where engines go.
    """
    info = read_info(folder)
    where = folder.with_name(f"{folder.name}.engines") if options.folder is None else options.folder
    flags = {"float16": ["--fp16"], "int8": ["--int8", "--fp16"]}.get(options.form or "", [])
    found: list[str] = []
    for graph, signature in info.graphs.items():
        file = graph_file(graph, options.form)
        shapes = {one.name: one.shape for one in signature.inputs}
        sizes = {"min": 1, "opt": max(1, options.max_rows // 2), "max": options.max_rows}
        told = [
            "trtexec",
            f"--onnx={folder / file}",
            f"--saveEngine={where / Path(file).with_suffix('.engine').name}",
            f"--timingCacheFile={where / 'timing.cache'}",
            *(f"--{name}Shapes={profile(shapes, rows)}" for name, rows in sizes.items()),
            *flags,
        ]
        found.append(shlex.join(told))
    return found
