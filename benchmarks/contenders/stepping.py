"""Timing steps of a vision model: what both contenders share."""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

THREADS = 2
WARM_UP, STEPS = 3, 10
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Shape:
    dtype: torch.dtype
    size: int
    window: int
    patch: int
    embed: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    batch: int
    compiled: bool

    @classmethod
    def parse(cls, words: Sequence[str]) -> "Shape":
        dtype, size, window, patch, embed, depths, heads, batch, compiled = words
        numbers = [tuple(int(n) for n in text.split(",")) for text in (depths, heads)]
        sizes = [int(word) for word in (size, window, patch, embed)]
        return cls(getattr(torch, dtype), *sizes, *numbers, int(batch), compiled == "compiled")


def wait() -> None:
    """Until the device has done what it was told."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def measure(model: nn.Module, forward: Callable[[Tensor], Tensor], shape: Shape) -> None:
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    model.to(DEVICE, shape.dtype).train()
    images = torch.randn(shape.batch, 3, shape.size, shape.size, dtype=shape.dtype, device=DEVICE)
    run = torch.compile(forward) if shape.compiled else forward
    took: list[float] = []
    for step in range(WARM_UP + STEPS):
        started = time.perf_counter()
        model.zero_grad()
        run(images).float().square().mean().backward()
        wait()
        if step >= WARM_UP:
            took.append(time.perf_counter() - started)
    parameters = sum(p.numel() for p in model.parameters())
    print(json.dumps({"steps_per_s": 1 / statistics.median(took), "parameters": parameters}))
