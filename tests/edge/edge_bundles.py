"""Bundles of real graphs that are written by hand: what is light is marked. No torch, and made in no time."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper
from PIL import Image

from eagleray.pipelines.assessing.answers import write_answers
from eagleray.pipelines.bundle import (
    MARKS,
    PROBABILITIES,
    SAMPLE,
    BundleInfo,
    GraphSignature,
    Lineage,
    Marking,
    TensorSignature,
    seal_bundle,
)
from eagleray.pipelines.spec import Preparation

SIZE = 16


def write_bundle(folder: Path, scale: float = 0.5) -> Path:
    """A bundle whose probability of a finding is `scale` times green in [-1, 1], and 0.5."""
    folder.mkdir(parents=True)
    _write_graph(folder / f"{MARKS}.onnx", scale)
    shape = ("batch", 3, SIZE, SIZE)
    signature = GraphSignature(
        inputs=(TensorSignature(name="image", dtype="tensor(float)", shape=shape),),
        outputs=(TensorSignature(name=PROBABILITIES, dtype="tensor(float)", shape=("batch", 1, SIZE, SIZE)),),
        rows_checked=1,
        max_difference=0.0,
    )
    fields = {
        "embed_dim": 0,
        "classes": (),
        "preparation": Preparation(image_size=SIZE, stored_image_size=SIZE),
        "graphs": {MARKS: signature},
        "decoding": None,
        "lineage": Lineage(run_id="run", checkpoint="c" * 64, corpus="d" * 64),
        "marking": Marking(size=SIZE, findings=("light",), threshold=0.75, pixels_per_mm=10),
    }
    sample = {"image": base64.b64encode(png(board())).decode()}
    (folder / SAMPLE).write_text(json.dumps(sample))
    write_answers(folder, BundleInfo(files={}, **fields), ())
    seal_bundle(folder, **fields)
    return folder


def replace_graph(folder: Path, scale: float) -> None:
    """Give a bundle another graph, and seal it as if it always had it: digests don't tell."""
    _write_graph(folder / f"{MARKS}.onnx", scale)
    reseal(folder)


def reseal(folder: Path) -> None:
    """Seal what lies in a bundle's folder now."""
    told = BundleInfo.model_validate_json((folder / "bundle.json").read_bytes())
    (folder / "bundle.json").unlink()
    fields = {name: getattr(told, name) for name in BundleInfo.model_fields if name != "files"}
    seal_bundle(folder, **fields)


def board(seed: int = 0, spots: int = 2, size: int = 48) -> np.ndarray:
    """Sharp, upright and grey, with so many light spots."""
    random = np.random.default_rng(seed)
    lines = np.repeat(np.repeat(random.integers(0, 2, (size // 4, size // 4)), 4, 0), 4, 1)
    pixels = np.repeat((60 + 60 * lines).astype(np.uint8)[..., None], 3, axis=2)
    for spot in range(spots):
        pixels[4 + 12 * spot : 10 + 12 * spot, 8:16] = 240
    return pixels


def png(pixels: np.ndarray) -> bytes:
    """As a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _write_graph(path: Path, scale: float) -> None:
    constants = [
        helper.make_tensor("first", TensorProto.INT64, [1], [1]),
        helper.make_tensor("after", TensorProto.INT64, [1], [2]),
        helper.make_tensor("axes", TensorProto.INT64, [1], [1]),
        helper.make_tensor("scale", TensorProto.FLOAT, [], [scale]),
        helper.make_tensor("half", TensorProto.FLOAT, [], [0.5]),
    ]
    nodes = [
        helper.make_node("Slice", ["image", "first", "after", "axes"], ["green"]),
        helper.make_node("Mul", ["green", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "half"], [PROBABILITIES]),
    ]
    given = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])
    made = helper.make_tensor_value_info(PROBABILITIES, TensorProto.FLOAT, ["batch", 1, SIZE, SIZE])
    graph = helper.make_graph(nodes, "marks", [given], [made], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
