"""What devices can do at their best, as their makers say it, and what of that a training gets."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .estimate import Estimate

TERA, GIGA = 10**12, 10**9


@dataclass(frozen=True)
class Device:
    """What a worker computes on.

    Attributes:
        title: for people.
        memory_bytes: of one.
        single: floating-point operations a second in fp32, without tensor cores.
        half: in bf16 or fp16, dense, on tensor cores if it has any.
        link: bytes a second that one sends to others of its machine.
        used: share of `single` that a training gets.
        used_half: share of `half`.
    """

    title: str
    memory_bytes: int
    single: float
    half: float
    link: float
    used: float
    used_half: float

    def step_s(self, estimate: Estimate) -> float:
        """Seconds of a step: that of the slowest worker, and what it sends, one after the other."""
        speed = self.half * self.used_half if estimate.half else self.single * self.used
        return max(
            worker.flops / speed / (1 - worker.waits) + sum(worker.sent.values()) / self.link
            for worker in estimate.workers
        )


# Shares were measured on an H100 with a model of 25 million parameters (docs/performance.md: 47 % and 8 %); a
# large one gets more.
GPUS: dict[str, Device] = {
    "v100": Device("V100 SXM2, 32 GB", 32 * GIGA, 15.7 * TERA, 125 * TERA, 150 * GIGA, 0.45, 0.1),
    "a100": Device("A100 SXM, 80 GB", 80 * GIGA, 19.5 * TERA, 312 * TERA, 300 * GIGA, 0.45, 0.1),
    "h100": Device("H100 SXM, 80 GB", 80 * GIGA, 67 * TERA, 989 * TERA, 450 * GIGA, 0.45, 0.1),
    "h200": Device("H200 SXM, 141 GB", 141 * GIGA, 67 * TERA, 989 * TERA, 450 * GIGA, 0.45, 0.1),
}
"""Name → device: data sheets of NVIDIA, NVLink one way."""
LOOPBACK = 1 * GIGA
"""Bytes a second between processes of a machine: gloo's all-reduce of 10 MB between two took 10.6 ms."""
SIZE, TIMES = 768, 3


def this_cpu(workers: int) -> Device:
    """This machine's processor, divided among workers; its speed is measured, in a few milliseconds."""
    import torch

    a = torch.ones(SIZE, SIZE)
    best = 0.0
    for _ in range(TIMES + 1):  # the first time wakes threads
        started = time.perf_counter()
        torch.mm(a, a)
        best = max(best, 2 * SIZE**3 / (time.perf_counter() - started))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    sharing = max(1, workers)
    return Device(
        f"this machine's {os.cpu_count()} cores",
        memory // sharing,
        best / sharing,
        best / sharing,
        LOOPBACK / sharing,
        0.5,
        0.5,
    )
