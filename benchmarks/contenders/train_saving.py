"""How long training stands still for a checkpoint, written beside it and by itself: WORKERS CORPUS."""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from eagleray.actors.training.loop import Trainer, TrainingJob
from eagleray.actors.training.ray_train import Saver
from eagleray.actors.training.spec import ObjectiveSpec, ParallelSpec, TrainingSpec
from eagleray.models.spec import ModelSpec, TextSpec

PAIRS, EVERY = 6, 3
TEXT = TextSpec(d_model=512, num_layers=6, num_heads=8, max_tokens=64, memory_length=0)


def work(config):
    """Save in both ways in turn, and note what each took of training's time."""
    trainer, saver = Trainer(config["job"]), Saver()
    stalls = {"beside": [], "alone": []}
    wait = trainer.photographer.wait_for_copy

    def wait_for_copy():
        started = time.perf_counter()
        wait()
        if stalls["beside"] and len(stalls["beside"]) > len(stalls["alone"]):  # the last one was beside
            stalls["beside"][-1] += time.perf_counter() - started

    trainer.photographer.wait_for_copy = wait_for_copy

    def on_checkpoint(trainer, report):
        trainer.photographer.wait()  # neither pays for the other
        beside = len(stalls["beside"]) == len(stalls["alone"])
        started = time.perf_counter()
        if beside:
            saver.save(trainer, report)
        else:
            with tempfile.TemporaryDirectory() as folder:
                trainer.snapshot().write(Path(folder))
                ray.train.report({}, checkpoint=ray.train.Checkpoint.from_directory(folder))
        stalls["beside" if beside else "alone"].append(time.perf_counter() - started)

    trainer.run(lambda report: None, on_checkpoint)
    trainer.photographer.wait()
    if ray.train.get_context().get_world_rank() == 0:
        # the first of each allocates what the others use again
        found = {f"{how}_s": statistics.median(took[1:]) for how, took in stalls.items()}
        Path(config["result"]).write_text(json.dumps(found))


if __name__ == "__main__":
    workers, corpus = int(sys.argv[1]), Path(sys.argv[2]).resolve()
    job = TrainingJob(
        TrainingSpec(
            kind="pretrain",
            steps=2 * PAIRS * EVERY,
            batch_size=2 * workers,
            objective=ObjectiveSpec(contrastive=0, language=1.0),
            parallel=ParallelSpec(data=workers),
            checkpoint_every=EVERY,
        ),
        ModelSpec(vision=None, audio=None, decoder=None, text=TEXT),
        corpus,
    )
    ray.init(address="local", include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "result")
        TorchTrainer(
            work,
            train_loop_config={"job": job, "result": str(result)},
            torch_config=TorchConfig(backend="gloo"),
            scaling_config=ray.train.ScalingConfig(num_workers=workers),
            run_config=ray.train.RunConfig(
                storage_path=folder, checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2)
            ),
        ).fit()
        print(result.read_text())
