"""What a bundle's graphs run on: TensorRT, CUDA or the CPU, by what ONNX Runtime has and which GPU answers.

TensorRT compiles a graph for one kind of GPU, which takes seconds to minutes. What it made (an engine) is
kept in a folder of its own for each graph, number format, kind of GPU and version of TensorRT, since it is of
no use to any other.
"""

from __future__ import annotations

import ctypes
import logging
import re
import subprocess
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import onnxruntime as ort

from .spec import Accelerator, Form

Provider = Literal["tensorrt", "cuda", "cpu"]
NAMES: Mapping[Provider, str] = {
    "tensorrt": "TensorrtExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "cpu": "CPUExecutionProvider",
}
"""As ONNX Runtime calls them, the fastest first."""
TOLD: Mapping[Provider, str] = {"tensorrt": "TensorRT", "cuda": "CUDA", "cpu": "the CPU"}
LIBRARIES = ("libnvinfer.so.10", "libnvinfer.so.8", "libnvinfer.so")
JETSON = Path("/proc/device-tree/model")
SMI = "nvidia-smi"
PATIENCE_S = 10.0
WORKSPACE_BYTES = 2**30
"""Memory that TensorRT may try out a graph's operations in."""

_logger = logging.getLogger("eagleray.providers")


@dataclass(frozen=True)
class Gpu:
    """The first NVIDIA GPU of a machine.

    Attributes:
        name: of its kind.
        capability: compute capability, such as 8.7; empty if it doesn't say.
    """

    name: str
    capability: str = ""


@dataclass(frozen=True)
class Machine:
    """What graphs could run on here.

    Attributes:
        available: ONNX Runtime's providers.
        version: of ONNX Runtime.
        gpu: None if none answers.
        tensorrt: version of TensorRT, None if it isn't installed.
    """

    available: tuple[str, ...]
    version: str
    gpu: Gpu | None = None
    tensorrt: str | None = None


@dataclass(frozen=True)
class Choice:
    """What graphs run on.

    Attributes:
        provider: the first that is tried; the others after it take what it can't do.
        line: for people: what it is, and what it isn't and why.
        machine: that it was chosen for.
        engines: folder that engines are kept in; None keeps none.
        max_rows: of a batch, that engines are made for.
    """

    provider: Provider
    line: str
    machine: Machine
    engines: Path | None = None
    max_rows: int = 16


def choose(wanted: Accelerator, machine: Machine, engines: Path | None = None, max_rows: int = 16) -> Choice:
    """Choose what graphs run on: the first of what is wanted and what follows it that works.

    Args:
        wanted: `auto` takes the fastest.
        machine: what there is.
        engines: see `Choice`.
        max_rows: see `Choice`.
    """
    order: list[Provider] = ["tensorrt", "cuda", "cpu"]
    start = 0 if wanted == "auto" else order.index(wanted)
    reasons: list[str] = []
    for provider in order[start:]:
        missing = _missing(provider, machine)
        if not missing:
            gpu = f" of {machine.gpu.name}" if machine.gpu and provider != "cpu" else ""
            told = f"graphs run on {TOLD[provider]}{gpu}, by ONNX Runtime {machine.version}"
            because = f": {'; '.join(reasons)}" if reasons else ""
            return Choice(provider, f"{told}{because}", machine, engines, max_rows)
        reasons.append(f"no {TOLD[provider]}, since {missing}")
    raise AssertionError("ONNX Runtime always has a CPU")


def _missing(provider: Provider, machine: Machine) -> str:
    """What a provider lacks, in words; nothing if it works."""
    if provider == "cpu":
        return ""
    if NAMES[provider] not in machine.available:
        return "this build of ONNX Runtime is without (onnxruntime-gpu has it)"
    if machine.gpu is None:
        return "no NVIDIA GPU answers"
    if provider == "tensorrt" and machine.tensorrt is None:
        return f"{LIBRARIES[0]} isn't installed"
    return ""


@cache
def this_machine() -> Machine:
    """What there is here; asked once."""
    available = tuple(str(one) for one in ort.get_available_providers())
    has_gpu = any(NAMES[one] in available for one in ("tensorrt", "cuda"))
    return Machine(available, ort.__version__, find_gpu() if has_gpu else None, find_tensorrt())


@cache
def tell_once(line: str) -> None:
    """Log a line, the first time only."""
    _logger.warning("%s", line)


def find_gpu() -> Gpu | None:
    """The first NVIDIA GPU, as its driver says; on a Jetson without `nvidia-smi`, as the board does."""
    query = [SMI, "--query-gpu=name,compute_cap", "--format=csv,noheader", "--id=0"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, timeout=PATIENCE_S, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        told = ""
    if told.strip():
        name, _, capability = told.strip().splitlines()[0].partition(",")
        return Gpu(name.strip(), capability.strip().strip("[]").replace("N/A", ""))
    try:
        board = JETSON.read_text(errors="replace").strip("\0\n ")
    except OSError:
        return None
    return Gpu(board) if "jetson" in board.casefold() else None


def find_tensorrt(libraries: Sequence[str] = LIBRARIES) -> str | None:
    """Version of the TensorRT that is installed."""
    for name in libraries:
        try:
            number = int(ctypes.CDLL(name).getInferLibVersion())
        except (OSError, AttributeError):
            continue
        base = 10_000 if number >= 100_000 else 1000  # 10.3.0 is 100300, 8.6.1 is 8601
        return f"{number // base}.{number % base // 100}.{number % 100}"
    return None


def engine_folder(choice: Choice, digest: str, form: Form | None) -> Path | None:
    """Where the engine of a graph lies: of its bytes, its format, the kind of GPU, and TensorRT.

    Args:
        choice: with where engines are kept.
        digest: sha256 of the graph's file, hex.
        form: of the graph.
    """
    gpu, version = choice.machine.gpu, choice.machine.tensorrt
    if choice.engines is None or gpu is None or version is None:
        return None
    kind = re.sub(r"[^a-z0-9]+", "-", f"{gpu.name} {gpu.capability}".casefold()).strip("-")
    told = f"trt{version}-ort{choice.machine.version}-rows{choice.max_rows}"
    return choice.engines / kind / told / f"{digest[:16]}-{form or 'float32'}"


def providers_for(
    choice: Choice, digest: str, form: Form | None, shapes: Mapping[str, Collection[int | str]]
) -> list[tuple[str, dict[str, Any]]]:
    """ONNX Runtime's providers for a graph, with their options.

    Args:
        choice: what it runs on.
        digest: sha256 of the graph's file, hex.
        form: of the graph.
        shapes: input → its shape; names in it are the rows.
    """
    found: list[tuple[str, dict[str, Any]]] = []
    if choice.provider == "tensorrt":
        found.append((NAMES["tensorrt"], _for_tensorrt(choice, digest, form, shapes)))
    if choice.provider != "cpu" and NAMES["cuda"] in choice.machine.available:
        found.append((NAMES["cuda"], {"device_id": 0}))
    return [*found, (NAMES["cpu"], {})]


def _for_tensorrt(
    choice: Choice, digest: str, form: Form | None, shapes: Mapping[str, Collection[int | str]]
) -> dict[str, Any]:
    options: dict[str, Any] = {
        "device_id": 0,
        "trt_fp16_enable": form == "float16",
        "trt_int8_enable": form == "int8",  # the graph says itself what is rounded, and between which limits
        "trt_max_workspace_size": WORKSPACE_BYTES,
    }
    for name, rows in (("min", 1), ("opt", max(1, choice.max_rows // 2)), ("max", choice.max_rows)):
        options[f"trt_profile_{name}_shapes"] = profile(shapes, rows)
    folder = engine_folder(choice, digest, form)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        options |= {
            "trt_engine_cache_enable": True,
            "trt_engine_cache_path": str(folder),
            "trt_timing_cache_enable": True,
            "trt_timing_cache_path": str(folder.parent),
        }
    return options


def profile(shapes: Mapping[str, Collection[int | str]], rows: int) -> str:
    """Shapes of a graph's inputs with so many rows, as TensorRT's tools are told."""
    told = {
        name: "x".join(str(rows if isinstance(size, str) else size) for size in shape)
        for name, shape in shapes.items()
    }
    return ",".join(f"{name}:{shape}" for name, shape in told.items())
