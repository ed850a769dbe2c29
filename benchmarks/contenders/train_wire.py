"""Bytes that really cross the loopback device for a step's gradients: HOW WORKERS DENSITY."""

import json
import sys
from pathlib import Path

import torch
from torch import distributed as dist
from torch import nn

from eagleray.actors.training.group import run_group
from eagleray.actors.training.mesh import build_mesh
from eagleray.actors.training.spec import CompressionSpec, OptimizerSpec, ParallelSpec
from eagleray.actors.training.zero import ZeroOptimizer

ROUNDS = 3


def crossed():
    """Bytes sent over loopback since this machine started, headers included."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    return next(int(line.split()[9]) for line in lines if line.strip().startswith("lo:"))


def work(rank, how, workers, density):
    """A step's bytes: of summing up whole gradients, or of all that a compressed step sends."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(500, 256), *(nn.Linear(256, 256) for _ in range(8)))
    compression = CompressionSpec(density=density, sources=workers)
    spec = OptimizerSpec(algorithm="adagrad", compression=compression)
    mesh = build_mesh(ParallelSpec(data=workers, timeout_s=300), "cpu")["data", "tensor"]
    optimizer = ZeroOptimizer(spec, model, {}, (), mesh)

    def step():
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        if how == "dense":
            dist.all_reduce(torch.cat([p.grad.flatten() for p in model.parameters()]))
        else:
            optimizer.take(0, 1.0)
            optimizer.gather()
            optimizer.step(0.1)

    step()  # connections are made
    dist.barrier()
    before = crossed()
    dist.barrier()
    for _ in range(ROUNDS):
        step()
    dist.barrier()
    return (crossed() - before) / ROUNDS


if __name__ == "__main__":
    how, workers, density = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    print(json.dumps({"bytes": run_group(work, workers, how, workers, density)[0]}))
