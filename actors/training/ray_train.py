"""Training on Ray Train: workers, checkpoints, progress and metrics around `Trainer`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...models.spec import ModelSpec
from ...workflows.errors import EaglerayError
from ...workflows.stage import Emit, StageContext
from .checkpoint import CheckpointInfo, write_artifact
from .mesh import check_batching, check_inputs, check_objective, check_topology, worker_resources
from .spec import AdaptationSpec, TrainingSpec

if TYPE_CHECKING:
    from .loop import StepReport, Trainer, TrainingJob


@dataclass(frozen=True)
class WorkerConfig:
    """What Ray Train hands to each worker. Picklable."""

    job: TrainingJob
    emit: Emit
    stage: str


def train(ctx: StageContext, job: TrainingJob) -> Path:
    """Train on a group of Ray Train workers and return the folder of the last checkpoint.

    A lost worker restarts the group from the last checkpoint; a second call with the same
    `ctx.scratch` goes on from there as well.

    Raises:
        EaglerayError: when training failed more often than `spec.worker_failures` allows.
    """
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    spec = job.spec
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    resources = worker_resources(spec, nodes, ctx.stage)
    use_gpu = "GPU" in resources
    trainer = TorchTrainer(
        _work,
        train_loop_config={"worker": WorkerConfig(job, ctx.emit, ctx.stage)},
        torch_config=TorchConfig(
            backend="cpu:gloo,cuda:nccl" if use_gpu else "gloo", timeout_s=ceil(spec.parallel.timeout_s)
        ),
        scaling_config=ray.train.ScalingConfig(
            num_workers=spec.parallel.num_workers,
            use_gpu=use_gpu,
            resources_per_worker=resources,
        ),
        run_config=ray.train.RunConfig(
            name="train",
            storage_path=str(ctx.scratch),
            failure_config=ray.train.FailureConfig(max_failures=spec.worker_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
        ),
    )
    try:
        result = trainer.fit()
    except Exception as error:
        raise EaglerayError(
            f"training stopped: {_first_cause(error)}",
            "mend the cause and run `eagleray resume`: it goes on from the last checkpoint",
            ctx.stage,
        ) from error
    if result.checkpoint is None:
        raise EaglerayError("training ended without a checkpoint", where=ctx.stage)
    return Path(result.checkpoint.path)


def train_checkpoint(
    ctx: StageContext,
    spec: TrainingSpec,
    model: ModelSpec,
    corpus: Path,
    weights: Path | None,
    before: CheckpointInfo | None = None,
    adaptation: AdaptationSpec | None = None,
) -> dict[str, Any]:
    """Train, and leave a `Checkpoint` artifact's content in `ctx.output`; returns its facts.

    Args:
        ctx: the stage's.
        spec: how to train.
        model: what to train.
        corpus: local folder of the corpus.
        weights: `weights` folder to start from; None starts at random.
        before: what the checkpoint says that they are of.
        adaptation: what of them is changed, and how fast.
    """
    import torch

    from ...models.multimodal import MultimodalModel
    from ...pipelines.reading import read_info
    from .adapting import adapt
    from .loop import TrainingJob

    check_objective(spec.objective, model, ctx.stage)
    check_topology(spec, model, ctx.stage)
    info = read_info(corpus)
    check_inputs(model, info.preparation, ctx.stage)
    check_batching(spec.batching, info, ctx.stage)
    # a classifier that isn't trained keeps the categories it knows
    knows = {"classification", "document"}
    keeps = before is not None and bool(knows & set(before.tasks))
    trains = bool(knows & spec.objective.tasks)
    classes = before.classes if before is not None and keeps and not trains else None
    other = before is not None and classes is None and before.classes != info.classes
    if keeps and other:
        ctx.log("the corpus has other categories than the checkpoint: their classifier starts at random")
    classes = tuple(info.classes if classes is None else classes)
    fresh = ("heads.classifier", "heads.document.classifier") if other else ()
    adaptation = adaptation or AdaptationSpec()
    tasks = before.tasks if before is not None else ()
    job = TrainingJob(spec, model, corpus, weights, tasks, fresh, adaptation, classes)
    with torch.device("meta"):  # a path that is none is refused before any worker starts
        adapt(MultimodalModel(model, info.vocab_size, len(classes), job.all_tasks), adaptation, ctx.stage)
    new = [task for task in job.all_tasks if before is not None and task not in before.tasks]
    if new:
        ctx.log(f"the checkpoint was not made for {', '.join(new)}: what only that needs starts at random")
    trained = train(ctx, job)
    checkpoint = CheckpointInfo(
        model=model,
        tasks=job.all_tasks,
        vocab_size=info.vocab_size,
        classes=classes,
        preparation=info.preparation,
        step=spec.steps,
        certified=(before is None or before.certified) and (spec.is_one_process or not spec.uncertified),
    )
    if not checkpoint.certified:
        ctx.log("nothing proves that its mesh computed what one process does: the checkpoint says so")
    write_artifact(ctx.output, trained, corpus, checkpoint, adaptation)
    return {"steps": spec.steps, "mesh": spec.parallel.model_dump(mode="json")}


def _work(config: dict[str, Any]) -> None:
    import ray.train
    from ray.util.metrics import Gauge

    from .faults import Fault
    from .loop import Trainer, use_threads

    worker: WorkerConfig = config["worker"]
    context = ray.train.get_context()
    use_threads(context.get_local_world_size())
    trainer = Trainer(worker.job)
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            trainer.restore(Path(folder))
        if context.get_world_rank() == 0:
            worker.emit("log", message=f"goes on from step {trainer.learner.step}")
    gauges = {
        name: Gauge(f"eagleray_{name}", description=f"{name} of the running stage", tag_keys=("stage",))
        for name in ("loss", "step", "samples_per_s")
    }
    steps = worker.job.spec.steps
    started, first = time.monotonic(), trainer.learner.step

    def on_step(report: StepReport) -> None:
        if context.get_world_rank() != 0:
            return
        values = {"loss": report.terms["loss"], "step": report.step, "samples_per_s": report.samples_per_s}
        for name, value in values.items():
            gauges[name].set(value, tags={"stage": worker.stage})
        left_s = (time.monotonic() - started) / (report.step - first) * (steps - report.step)
        metrics = {
            **report.terms,
            "grad_norm": report.grad_norm,
            "samples_per_s": report.samples_per_s,
            "left_s": left_s,
        }
        if report.fill is not None:
            metrics["fill"] = report.fill
        for note in report.notes:
            worker.emit("log", message=note)
        worker.emit("progress", step=report.step, total=steps, metrics=metrics)

    saver = Saver()
    try:
        trainer.run(on_step, saver.save)
    except Fault as fault:
        if fault.tells:
            worker.emit("log", message=str(fault.cause))
        raise
    trainer.photographer.wait()


class Saver:
    """Writes checkpoints while training goes on, one at a time."""

    def __init__(self) -> None:
        from torch import distributed as dist

        group = dist.new_group(backend="gloo")  # training's own is busy meanwhile
        assert isinstance(group, dist.ProcessGroup)
        self._group = group

    def save(self, trainer: Trainer, report: StepReport) -> None:
        """Have a checkpoint written; all workers call it together."""
        import ray.train
        from ray.train import CheckpointUploadMode

        snapshot = trainer.snapshot()
        storage: Any = ray.train.get_context().get_storage()

        def write(given: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
            folder = Path(storage.experiment_fs_path, name)
            snapshot.write(folder, self._group)
            return ray.train.Checkpoint(str(folder), storage.storage_filesystem)

        ray.train.report(
            {"step": report.step, **report.terms},
            checkpoint=ray.train.Checkpoint(storage.experiment_fs_path, storage.storage_filesystem),
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=write,
            delete_local_checkpoint_after_upload=False,
        )


def _first_cause(error: BaseException) -> str:
    """The innermost message that says something, on one line."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[-1]
