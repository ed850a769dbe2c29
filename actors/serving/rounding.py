"""A graph in eight bits: which values are rounded, and to what (arXiv 1712.05877, 2 and 3).

A product with weights gets its input in eight bits without sign, with one scale and zero point for the whole
tensor, and its weights in eight bits with sign, symmetric, with a scale for each output. What comes out is in
single precision, so that ONNX Runtime multiplies integers and scales their sum in one kernel
(`MatMulIntegerToFloat`, `QGemm`); a convolution's result is rounded, too, since there is no such kernel for
it. Products of two results, as attention has, stay in single precision: they are small here, and rounding
both sides takes longer than is gained (measured, width 128, one thread: 0.97 ms of 27 products and 0.44 ms of
rounding against 1.10 ms and 0.14 ms). Tables that are looked up, or are the constant half of such a product,
are only kept in eight bits.

`actors.training.rounding` does the same to a model in training, and `tests` hold one to the other.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from ...pipelines.bundle import Arrays

LEVELS = 127
"""Steps of weights on each side of zero."""
STEPS = 255
"""Steps of a result between its least and largest."""

Range = tuple[float, float]
"""Least and largest of a value; 0 is always within."""


@dataclass(frozen=True)
class Rounded:
    """An operation, and what of it is rounded.

    Attributes:
        node: its name.
        data: name of the value that it transforms; None where only weights are kept in eight bits.
        weight: name of its constant.
        axis: of the constant, along which each entry has a scale; None for one scale.
        result: name of what comes out, where that is rounded as well.
    """

    node: str
    data: str | None
    weight: str
    axis: int | None
    result: str | None = None


def rounded_nodes(model: onnx.ModelProto, names: Collection[str]) -> list[Rounded]:
    """What is rounded of the operations of these names; those without constants are left as they are."""
    ranks = {
        one.name: len(one.dims) for one in model.graph.initializer if one.data_type == onnx.TensorProto.FLOAT
    }
    found: list[Rounded] = []
    for node in model.graph.node:
        if node.name not in names:
            continue
        kind, inputs = node.op_type, list(node.input)
        constant = [one for one in inputs[:2] if one in ranks]
        if len(constant) != 1:
            continue
        (weight,) = constant
        data = inputs[1 - inputs.index(weight)]
        if kind == "Conv":
            found.append(Rounded(node.name, data, weight, 0, node.output[0]))
        elif kind == "Gemm" and inputs.index(weight) == 1 and _is_plain(node):
            found.append(Rounded(node.name, data, weight, 0 if _attribute(node, "transB") else 1))
        elif kind == "MatMul" and inputs.index(weight) == 1 and ranks[weight] == 2:
            found.append(Rounded(node.name, data, weight, 1))
        elif kind == "MatMul" and ranks[weight] > 2:
            found.append(Rounded(node.name, None, weight, 0))
        elif kind == "Gather" and inputs.index(weight) == 0 and not _attribute(node, "axis"):
            found.append(Rounded(node.name, None, weight, None))
    return found


def measure(model: onnx.ModelProto, values: Iterable[str], feeds: Sequence[Arrays]) -> dict[str, Range]:
    """The range of values of a graph over what it is given in several runs."""
    wanted = sorted(set(values))
    given = {one.name for one in (*model.graph.input, *model.graph.output)}
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in given)
    session = ort.InferenceSession(watched.SerializeToString(), providers=["CPUExecutionProvider"])
    inputs = {one.name for one in model.graph.input}
    found = {name: (0.0, 0.0) for name in wanted}
    for feed in feeds:
        arrays = {name: feed[name] for name in wanted if name in inputs}
        others = [name for name in wanted if name not in inputs]
        fed = {one.name: feed[one.name] for one in session.get_inputs()}
        ran = session.run(others, fed) if others else []
        arrays |= {name: np.asarray(array) for name, array in zip(others, ran, strict=True)}
        for name, array in arrays.items():
            least, largest = found[name]
            found[name] = min(least, float(array.min())), max(largest, float(array.max()))
    return found


def round_graph(
    model: onnx.ModelProto, nodes: Sequence[Rounded], ranges: Mapping[str, Mapping[str, Range]]
) -> None:
    """Round operations of a graph, in place.

    Args:
        model: the graph.
        nodes: what is rounded.
        ranges: operation → value → its range.
    """
    writer = _Writer(model)
    places = {one.node: one for one in nodes}
    changed: list[onnx.NodeProto] = []
    for node in model.graph.node:
        one = places.get(node.name)
        before = len(writer.nodes)
        after: list[onnx.NodeProto] = []
        if one is not None and node.op_type == "Gather":
            after = writer.look_up(node, one)
        elif one is not None:
            after = writer.multiply(node, one, ranges.get(node.name, {}))
        changed += [*writer.nodes[before:], node, *after]
    del model.graph.node[:]
    model.graph.node.extend(changed)
    read = {name for node in model.graph.node for name in node.input} | {
        one.name for one in model.graph.output
    }
    kept = [one for one in model.graph.initializer if one.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend([*kept, *writer.constants.values()])


class _Writer:
    """Makes the constants and operations that rounding takes; what is the same is made once."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[tuple[Any, ...], onnx.TensorProto] = {}
        self._weights = {one.name: one for one in model.graph.initializer}
        self._made: dict[tuple[Any, ...], str] = {}

    def multiply(
        self, node: onnx.NodeProto, one: Rounded, ranges: Mapping[str, Range]
    ) -> list[onnx.NodeProto]:
        """Let a product read what is rounded; returns what is to follow it."""
        places = {name: place for place, name in enumerate(node.input)}
        name, scale = self._weight(one)
        node.input[places[one.weight]] = name
        if one.data is None:
            return []
        node.input[places[one.data]], step = self._value(one.data, ranges[one.data])
        if len(node.input) > 2 and node.input[2]:
            node.input[2] = self._bias(node.input[2], step * scale)
        if one.result is None:
            return []
        return self._result(node, ranges[one.result])

    def look_up(self, node: onnx.NodeProto, one: Rounded) -> list[onnx.NodeProto]:
        """Look up integers and scale them; returns what is to follow the look-up."""
        weights = numpy_helper.to_array(self._weights[one.weight])
        scale = weight_scale(weights, None)
        node.input[0] = self._constant(_integers(weights, scale), one.weight)
        result, node.output[0] = node.output[0], f"{node.output[0]}_int8"
        scaled = helper.make_node(
            "DequantizeLinear",
            [node.output[0], self._constant(scale, "scale")],
            [result],
            f"{node.name}_scaled",
        )
        return [scaled]

    def _weight(self, one: Rounded) -> tuple[str, NDArray[np.float32]]:
        """Name of a constant that is kept in eight bits, and its scales."""
        weights = numpy_helper.to_array(self._weights[one.weight])
        scale = weight_scale(weights, one.axis)
        key = "weight", one.weight, one.axis
        if key not in self._made:
            integers = _integers(weights, _along(scale, one.axis, weights.ndim))
            zero = self._constant(np.zeros(scale.shape, np.int8), "zero")
            inputs = [self._constant(integers, one.weight), self._constant(scale, "scale"), zero]
            self._made[key] = self._scaled(inputs, one.weight, one.axis)
        return self._made[key], scale

    def _value(self, name: str, limits: Range) -> tuple[str, np.float32]:
        """Name of a result that is rounded, and its step."""
        key = "value", name, limits
        step, zero = value_scale(limits)
        if key not in self._made:
            told = [self._constant(np.asarray(one), "scale") for one in (step, zero)]
            integers = f"{name}_uint8_{len(self._made)}"
            self.nodes.append(
                helper.make_node("QuantizeLinear", [name, *told], [integers], f"{integers}_rounded")
            )
            self._made[key] = self._scaled([integers, *told], integers)
        return self._made[key], step

    def _bias(self, name: str, scale: NDArray[np.float32]) -> str:
        bias = numpy_helper.to_array(self._weights[name])
        scale = np.broadcast_to(scale, bias.shape).astype(np.float32)
        integers = np.clip(np.rint(bias / scale), -(2.0**31) + 1, 2.0**31 - 1).astype(np.int32)
        inputs = [self._constant(integers, name), self._constant(scale, "scale")]
        return self._scaled([*inputs, self._constant(np.zeros(scale.shape, np.int32), "zero")], name, 0)

    def _result(self, node: onnx.NodeProto, limits: Range) -> list[onnx.NodeProto]:
        result, node.output[0] = node.output[0], f"{node.output[0]}_exact"
        told = [self._constant(np.asarray(one), "scale") for one in value_scale(limits)]
        integers = f"{result}_uint8"
        return [
            helper.make_node("QuantizeLinear", [node.output[0], *told], [integers], f"{integers}_rounded"),
            helper.make_node("DequantizeLinear", [integers, *told], [result], f"{integers}_scaled"),
        ]

    def _scaled(self, inputs: Sequence[str], name: str, axis: int | None = None) -> str:
        made = f"{name}_scaled_{len(self.nodes)}"
        node = helper.make_node("DequantizeLinear", inputs, [made], f"{made}_node")
        if axis is not None:
            node.attribute.append(helper.make_attribute("axis", axis))
        self.nodes.append(node)
        return made

    def _constant(self, array: NDArray[Any], name: str) -> str:
        array = np.ascontiguousarray(array) if array.ndim else array
        key = array.dtype.str, array.shape, array.tobytes()
        if key not in self.constants:
            self.constants[key] = numpy_helper.from_array(
                array, f"{name}_{array.dtype}_{len(self.constants)}"
            )
        return self.constants[key].name


def weight_scale(weights: NDArray[np.float32], axis: int | None) -> NDArray[np.float32]:
    """Steps of weights, one for each entry along an axis, or one for all: the largest is 127 of them."""
    others = tuple(i for i in range(weights.ndim) if i != axis)
    largest = np.abs(weights).max(axis=others if axis is not None else None, initial=0)
    return np.asarray(np.maximum(largest, np.finfo(np.float32).tiny * 2**30) / LEVELS, np.float32)


def value_scale(limits: Range) -> tuple[np.float32, np.uint8]:
    """Step and zero point of results within limits, which 0 is moved into."""
    least, largest = min(limits[0], 0.0), max(limits[1], 0.0)
    step = np.float32(max(largest - least, 1e-8) / STEPS)
    return step, np.uint8(np.clip(np.rint(-least / step), 0, STEPS))


def _integers(weights: NDArray[np.float32], scale: NDArray[np.float32]) -> NDArray[np.int8]:
    return np.clip(np.rint(weights / scale), -LEVELS, LEVELS).astype(np.int8)


def _along(scale: NDArray[np.float32], axis: int | None, ndim: int) -> NDArray[np.float32]:
    return scale if axis is None else scale.reshape([-1 if i == axis else 1 for i in range(ndim)])


def _is_plain(node: onnx.NodeProto) -> bool:
    """Whether a Gemm is a linear layer's."""
    scales = (_attribute(node, name, 1.0) for name in ("alpha", "beta"))
    return all(one == 1.0 for one in scales) and not _attribute(node, "transA")


def _attribute(node: onnx.NodeProto, name: str, default: float = 0) -> Any:  # noqa: ANN401 - an integer or a float
    return next((helper.get_attribute_value(one) for one in node.attribute if one.name == name), default)
