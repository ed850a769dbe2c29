"""Share of a step in which a worker of two waits for the other, of like layers: SCHEDULE MICROBATCHES."""

import json
import statistics
import sys
import time

import torch
from torch import distributed as dist
from torch.distributed.pipelining.stage import _PipelineStageBase

from eagleray.actors.training.group import run_group
from eagleray.actors.training.learner import Learner
from eagleray.actors.training.spec import ObjectiveSpec, ParallelSpec, TrainingSpec
from eagleray.models.spec import ModelSpec, TextSpec

VOCABULARY, LENGTH, ROWS, STEPS = 64, 256, 4, 12
DEPTH = 2
busy = 0.0


def timed(function):
    """The same, its time added to `busy`."""

    def run(*arguments, **options):
        global busy
        started = time.perf_counter()
        try:
            return function(*arguments, **options)
        finally:
            busy += time.perf_counter() - started

    return run


def work(rank, schedule, count):
    """Each step's share of waiting, of this worker."""
    global busy
    for name in ("forward_one_chunk", "backward_one_chunk", "backward_weight_one_chunk"):
        setattr(_PipelineStageBase, name, timed(getattr(_PipelineStageBase, name)))
    spec = TrainingSpec(
        kind="pretrain",
        steps=STEPS,
        batch_size=ROWS * count,
        objective=ObjectiveSpec(contrastive=0, language=1.0),
        parallel=ParallelSpec(pipeline=DEPTH, microbatches=count, schedule=schedule),
    )
    # so many like layers that embedding and head weigh nothing
    text = TextSpec(d_model=128, num_layers=8, num_heads=4, max_tokens=LENGTH, memory_length=0)
    model = ModelSpec(vision=None, audio=None, decoder=None, text=text)
    learner = Learner(spec, model, VOCABULARY, 1)
    tokens = torch.randint(1, VOCABULARY, (ROWS * count, LENGTH))
    batch = {
        "tokens": tokens,
        "token_mask": torch.ones_like(tokens, dtype=torch.bool),
        "present": torch.ones(len(tokens), 3, dtype=torch.bool),
        "label": torch.zeros(len(tokens), dtype=torch.long),
        "group": torch.arange(len(tokens)),
    }
    shares = []
    for step in range(STEPS):
        dist.barrier()
        busy, started = 0.0, time.perf_counter()
        rows = torch.arange(len(tokens))
        inputs = _inputs(learner, batch)
        learner._schedules(inputs).train.step(target=rows, return_outputs=False, **inputs)
        took = time.perf_counter() - started
        learner.optimizer.zero_grad()
        if step > 2:
            shares.append(1 - busy / took)
    return statistics.median(shares)


def _inputs(learner, batch):
    learner.objective.start_step([batch])
    return {name: tensor for name, tensor in batch.items() if name != "group"}


if __name__ == "__main__":
    schedule, count = sys.argv[1], int(sys.argv[2])
    found = run_group(work, DEPTH, schedule, count)
    # a third of a pass each: forward, gradients of inputs, of weights; zero-bubble hides the last (ZB-H1)
    waits = (DEPTH - 1) / 3 if schedule == "zero-bubble" else DEPTH - 1
    print(json.dumps({"bubble": statistics.mean(found), "theory": waits / (count + waits)}))
