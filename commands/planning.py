"""`eagleray plan`: what a run would do, and what its trainings would take."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from ..display import plan_rows, print_table, seconds
from ..session import Session
from ..workflows.errors import EaglerayError
from ..workflows.plan import Decision, PlannedStage
from .common import DEFAULT_HOME, AsJson, Home, Overrides, SpecFile, Store, err, out

if TYPE_CHECKING:
    from ..actors.training.estimate import Estimate
    from ..workflows.loading import Workflow
    from ..workflows.placement import Resources

MIB = 1 << 20
CLASSES = 1_000  # of a corpus that isn't there yet; they weigh next to nothing


class DeviceName(StrEnum):
    """What a plan can be made for."""

    CPU = "cpu"
    V100 = "v100"
    A100 = "a100"
    H100 = "h100"
    H200 = "h200"


def plan(
    spec: SpecFile,
    overrides: Overrides = None,
    device: Annotated[
        DeviceName, typer.Option(help="What each worker of a training computes on.")
    ] = DeviceName.CPU,
    devices: Annotated[
        int | None, typer.Option(min=1, help="How many there are.", show_default="as many as needed")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="A running Ray cluster whose machines shall hold the workers: HOST:PORT, ray://… or auto.",
            show_default="none is asked",
        ),
    ] = None,
    as_json: AsJson = False,
    home: Home = DEFAULT_HOME,
    store: Store = None,
) -> None:
    """Show what `run` would do and why, and what its trainings would take on each worker.

    Memory by category, how long a worker waits for others, bytes that it sends in a step along each axis of
    the mesh, and the time on a device. It is foretold from the model's layers, their shapes and the
    schedule; nothing is allocated, and neither a cluster nor the device need be there. With an address it
    says whether the machines of that cluster can ever hold the workers.
    """
    session = Session(home, store)
    workflow = session.load(spec, overrides or [])
    planned = session.plan(workflow)
    rows = plan_rows(planned)
    nodes = None
    if address is not None:
        from ..cluster.connect import machines

        nodes = machines(address)
    estimates: dict[str, tuple[PlannedStage, Estimate]] = {}
    for stage in planned.stages:
        found = None if stage.decision is Decision.HIT else _estimate(workflow, stage)
        if found is not None:
            estimates[stage.name] = stage, found
    if as_json:
        for row in rows:
            if row["stage"] in estimates:
                stage, found = estimates[row["stage"]]
                row["estimate"] = {**asdict(found), **_times(stage, found, device)}
                if nodes is not None:
                    row["estimate"]["misplaced"] = _misplaced(stage, nodes)
        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    print_table(out, rows, False, "no stages")
    for stage, found in estimates.values():
        out.print()
        _print(stage, found, device, devices)
        if nodes is not None:
            misplaced = _misplaced(stage, nodes)
            said = misplaced or f"the cluster can hold its workers (machines: {len(nodes)})"
            out.print(Text(said, style="bold red" if misplaced else ""))


def _misplaced(stage: PlannedStage, nodes: Sequence[Resources]) -> str:
    """Why a cluster's machines can never hold a training's workers; empty if they can."""
    from ..actors.training.mesh import worker_resources
    from ..actors.training.spec import TrainingSpec

    assert isinstance(stage.spec, TrainingSpec)
    try:
        worker_resources(stage.spec, nodes, stage.name)
    except EaglerayError as error:
        return f"{error.cause}: {error.remedy}"
    return ""


def _estimate(workflow: Workflow, stage: PlannedStage) -> Estimate | None:
    """Of a stage that trains a model that is known, on a mesh that can work; else None."""
    from ..actors.training.spec import TrainingSpec

    if not isinstance(stage.spec, TrainingSpec):
        return None
    from ..actors.training.certificate import training_of
    from ..pipelines.catalog import source_of
    from ..pipelines.source import SourceSpec
    from ..pipelines.spec import Preparation

    try:
        if stage.kind.check is not None:
            stage.kind.check(stage.name, stage.spec)
        training = training_of(stage.name, stage.spec, workflow.stages)
    except EaglerayError as error:
        if stage.error is None:  # the table says it otherwise
            err.print(f"{stage.name}: {error}: what it takes is not known yet")
        return None
    from ..actors.training.estimate import estimate

    corpus = workflow.stages.get(stage.spec.inputs.get("corpus", ""))
    preparation = getattr(corpus, "preparation", None)
    if not isinstance(preparation, Preparation):
        preparation = Preparation()
    batching, source = stage.spec.batching, getattr(corpus, "source", None)
    longest = preparation.max_tokens
    if (
        batching is not None
        and isinstance(source, SourceSpec)
        and "text" in source_of(source).columns(source)
    ):
        longest = batching.max_tokens  # a document is cut into as much
    return estimate(training, longest, preparation.vocab_size, CLASSES)


def _times(stage: PlannedStage, found: Estimate, name: DeviceName) -> dict[str, Any]:
    from ..actors.training.devices import GPUS, this_cpu
    from ..actors.training.spec import TrainingSpec

    assert isinstance(stage.spec, TrainingSpec)
    device = this_cpu(stage.spec.parallel.num_workers) if name is DeviceName.CPU else GPUS[name]
    step_s = device.step_s(found)
    return {
        "device": device.title,
        "device_memory": device.memory_bytes,
        "step_s": step_s,
        "total_s": step_s * found.steps,
    }


def _row(name: str, figures: Sequence[float]) -> dict[str, str]:
    numbers = {f"worker {number}": f"{figure:,.1f}" for number, figure in enumerate(figures)}
    return {"of each": name, **numbers}


def _print(stage: PlannedStage, found: Estimate, name: DeviceName, devices: int | None) -> None:
    from ..actors.training.certificate import mesh_of
    from ..actors.training.spec import TrainingSpec

    assert isinstance(stage.spec, TrainingSpec)
    parallel = stage.spec.parallel
    times = _times(stage, found, name)
    out.print(Text(f"{stage.name} on {mesh_of(parallel)}", style="bold"))
    workers = found.workers
    rows = [_row("memory, MiB", [worker.total / MIB for worker in workers])]
    for category in dict.fromkeys(name for worker in workers for name in worker.memory):
        rows.append(_row(f"  {category}", [worker.memory.get(category, 0) / MIB for worker in workers]))
    if parallel.pipeline > 1:
        rows.append(_row("waits, % of a step", [100 * worker.waits for worker in workers]))
    for axis in workers[0].sent:
        if any(worker.sent[axis] for worker in workers):
            rows.append(_row(f"sends over {axis}, MiB a step", [w.sent[axis] / MIB for w in workers]))
    print_table(out, rows, False, "")
    out.print(
        f"{found.steps:,} steps on {parallel.num_workers} × {times['device']}: at the least "
        f"{seconds(times['total_s'])}, {times['step_s']:.3g} s a step"
    )
    most = max(worker.total for worker in workers)
    problems: list[str] = []
    if most > times["device_memory"]:
        problems.append(
            f"it does not fit: {most / MIB:,.0f} MiB of tensors, and a device has "
            f"{times['device_memory'] / MIB:,.0f}; use more workers, more microbatches or a smaller batch"
        )
    if devices is not None and parallel.num_workers > devices:
        problems.append(f"the mesh needs {parallel.num_workers} devices, and there are {devices}")
    if found.sends_more_than_dense:
        problems.append(
            "compression sends more than whole gradients would: lower optimizer.compression.density, or its "
            "sources"
        )
    for problem in problems:
        out.print(Text(problem, style="bold red"))
