"""Steps a second of the training loop on a corpus, under Ray Train or torchrun: HOW WORKERS CORPUS STEPS."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from eagleray.actors.training.loop import Trainer, TrainingJob, use_threads
from eagleray.actors.training.spec import ObjectiveSpec, ParallelSpec, TrainingSpec
from eagleray.models.spec import ModelSpec, TextSpec

how, workers, corpus, steps = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]).resolve(), int(sys.argv[4])
SKIP = 5
TEXT = TextSpec(d_model=128, num_layers=4, num_heads=4, max_tokens=128, memory_length=0)
job = TrainingJob(
    TrainingSpec(
        kind="pretrain",
        steps=steps,
        batch_size=4 * workers,
        objective=ObjectiveSpec(contrastive=0, language=1.0),
        parallel=ParallelSpec(data=workers),
        checkpoint_every=steps,
    ),
    ModelSpec(vision=None, audio=None, decoder=None, text=TEXT),
    corpus,
)


def speed(ends):
    """Of all steps but the first ones and the last, which a checkpoint follows."""
    return (len(ends) - 2 - SKIP) / (ends[-2] - ends[SKIP])


def work():
    from torch import distributed as dist

    dist.init_process_group("gloo")
    use_threads(workers)
    ends = []
    Trainer(job).run(lambda report: ends.append(time.perf_counter()), lambda trainer, report: None)
    if dist.get_rank() == 0:
        print(json.dumps({"steps_per_s": speed(ends)}), flush=True)


def through_ray():
    import tempfile

    import ray

    from eagleray.actors.training.ray_train import train
    from eagleray.workflows.stage import StageContext

    ends_at = Path(tempfile.mkdtemp())

    def emit(event, /, **fields):
        if event == "progress":
            with (ends_at / "ends").open("a") as file:
                file.write(f"{time.perf_counter()}\n")

    ray.init(address="local", include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    folders = [ends_at / name for name in ("output", "scratch", "cache")]
    for folder in folders:
        folder.mkdir()
    train(StageContext("run", "pretrain", "0" * 64, *folders, emit), job)
    ends = [float(line) for line in (ends_at / "ends").read_text().split()]
    print(json.dumps({"steps_per_s": speed(ends)}), flush=True)


if how == "ray":
    through_ray()
elif "RANK" in os.environ:
    work()
else:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}"]
    sys.exit(subprocess.run([*launcher, __file__, *sys.argv[1:]], check=False).returncode)
