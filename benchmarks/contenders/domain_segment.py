"""One segment of a document at a time, by torch or by ONNX Runtime, alone in this process."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

kind, where, rows = sys.argv[1], Path(sys.argv[2]), 300


def eager() -> Callable[[np.ndarray, np.ndarray], object]:
    """A checkpoint's model in torch."""
    import torch

    from eagleray.actors.training.checkpoint import load_model

    torch.set_num_threads(2)
    model = load_model(where)

    def read(tokens: np.ndarray, mask: np.ndarray) -> object:
        with torch.inference_mode():
            return model.read_segments(torch.from_numpy(tokens), torch.from_numpy(mask))

    return read


def graph() -> Callable[[np.ndarray, np.ndarray], object]:
    """A bundle's graph, in single precision or in the form that is named."""
    from eagleray.pipelines.bundle import DOCUMENT, load_bundle

    bundle = load_bundle(where, None if kind == "onnx" else kind, threads=2)  # pyright: ignore[reportArgumentType]

    def read(tokens: np.ndarray, mask: np.ndarray) -> object:
        return bundle.run(DOCUMENT, {"tokens": tokens, "token_mask": mask})

    return read


read = eager() if kind == "eager" else graph()
length = int(sys.argv[3])
tokens = np.random.default_rng(0).integers(3, 4000, (rows, 1, length))
mask = np.ones((1, length), np.bool_)
for row in tokens[:20]:
    read(row, mask)
times: list[float] = []
for row in tokens:
    begun = time.perf_counter()
    read(row, mask)
    times.append(1e3 * (time.perf_counter() - begun))
print(json.dumps({"p50_ms": statistics.median(times)}))
