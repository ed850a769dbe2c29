"""Which layer of a graph a value is of, and after which one its values are astray."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from ...pipelines.bundle import ON_CPU, Arrays

Providers = Sequence[tuple[str, dict[str, Any]]]
KINDS = ("MatMul", "Gemm", "Conv", "Gather")
"""Operations that a layer consists of here: nearly all weights and multiplications are theirs."""
SCOPES = "pkg.torch.onnx.name_scopes"
"""Key of a node's property: the modules that it is within, the outermost first."""


def modules_of(node: onnx.NodeProto) -> list[str]:
    """Paths of the modules that an operation is within, the outermost first."""
    told = next((one.value for one in node.metadata_props if one.key == SCOPES), "[]")
    return [scope for scope in ast.literal_eval(told) if "." in scope]


def layers_of(model: onnx.ModelProto) -> dict[str, list[str]]:
    """Module path → names of its operations that can be quantised, in order."""
    found: dict[str, list[str]] = {}
    for node in model.graph.node:
        if node.op_type in KINDS:
            found.setdefault(_layer(node), []).append(node.name)
    return found


def errors_by_layer(
    before: Path, after: Path, feed: Arrays, providers: Providers = ON_CPU
) -> dict[str, float]:
    """How far each layer's result is from where it was: the root of the mean square of the difference, over
    that of the result; in the order in which they run. What is after runs on `providers`.
    """
    model = onnx.load(before)
    results = {node.name: node.output[0] for node in model.graph.node}
    wanted = {layer: results[names[-1]] for layer, names in layers_of(model).items()}
    names = list(wanted.values())
    ours, theirs = values_of(before, names, feed), values_of(after, names, feed, providers)
    return {
        layer: _rms(theirs[name] - ours[name]) / max(_rms(ours[name]), 1e-12)
        for layer, name in wanted.items()
        if name in ours and name in theirs
    }


def jumps(errors: Mapping[str, float], count: int) -> list[tuple[str, float]]:
    """Layers after which results are further off than after all before them, by how much, the most first."""
    found: list[tuple[str, float]] = []
    most = 0.0
    for layer, error in errors.items():
        found.append((layer, error - most))
        most = max(most, error)
    return sorted(found, key=lambda pair: -pair[1])[:count]


def values_of(
    path: Path, names: Sequence[str], feed: Arrays, providers: Providers = ON_CPU
) -> dict[str, NDArray[np.floating[Any]]]:
    """What some values of a graph are, of those that it has."""
    model = onnx.load(path)
    known = {name for node in model.graph.node for name in node.output}
    wanted = [name for name in dict.fromkeys(names) if name in known]
    given = {one.name for one in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in given)
    session = ort.InferenceSession(model.SerializeToString(), providers=list(providers))
    found = session.run(wanted, {one.name: feed[one.name] for one in session.get_inputs()})
    return {name: np.asarray(one, np.float64) for name, one in zip(wanted, found, strict=True)}


def _rms(values: NDArray[np.floating[Any]]) -> float:
    return float(np.sqrt(np.mean(np.square(values)))) if values.size else 0.0


def _layer(node: onnx.NodeProto) -> str:
    """Path of the module that an operation is of, within the model."""
    return next(reversed(modules_of(node)), node.name).removeprefix("model.")
