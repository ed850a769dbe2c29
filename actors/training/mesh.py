"""The device mesh, and which meshes a model can run on."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ...models.spec import ModelSpec, Task
from ...pipelines.spec import CorpusInfo, Preparation
from ...workflows.errors import EaglerayError
from ...workflows.placement import Resources, check_placement
from .spec import BatchingSpec, ObjectiveSpec, ParallelSpec, TrainingSpec

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

AXES = ("pipeline", "data", "tensor", "alone")
"""Outermost first: tensor-parallel workers, which talk most, are neighbours; along the last, a worker has
nobody beside it."""


def build_mesh(parallel: ParallelSpec, device_type: str) -> DeviceMesh:
    """Arrange the process group's ranks as pipeline × data × tensor × 1 (axes named as in `AXES`)."""
    shape = (parallel.pipeline, parallel.data, parallel.tensor, 1)
    return _arrange(shape, AXES, device_type, parallel.timeout_s)


def build_rows_mesh(parallel: ParallelSpec, tower: str, device_type: str) -> DeviceMesh:
    """Along `rows`: workers that divide their rows for an encoder with a grid of its own, or join them."""
    one, other = parallel.tensor, parallel.within(tower).tensor
    least, most = min(one, other), max(one, other)
    shape = (parallel.pipeline, parallel.data * one // most, most // least, least)
    return _arrange(shape, ("pipeline", "blocks", "rows", "tensor"), device_type, parallel.timeout_s)


def _arrange(shape: tuple[int, ...], axes: tuple[str, ...], device_type: str, timeout_s: float) -> DeviceMesh:
    from torch import distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    if device_type != "cpu":  # NCCL has a watch of its own
        return init_device_mesh(device_type, shape, mesh_dim_names=axes)
    options = dist.ProcessGroupGloo._Options()  # pyright: ignore[reportAttributeAccessIssue]
    options._timeout = timedelta(seconds=timeout_s)  # pyright: ignore[reportPrivateUsage]
    groups: dict[int | str, Any] = {axis: ("gloo", options) for axis in axes}
    return init_device_mesh(device_type, shape, mesh_dim_names=axes, backend_override=groups)


def head_counts(model: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Attention heads by encoder, all of which `tensor` must divide."""
    heads: dict[str, tuple[int, ...]] = {}
    if model.vision is not None:
        heads["vision"] = tuple(model.vision.num_heads)
    for name, part in (("text", model.text), ("audio", model.audio), ("decoder", model.decoder)):
        if part is not None:
            heads[name] = (part.num_heads,)
    return heads


def check_objective(objective: ObjectiveSpec, model: ModelSpec, where: str) -> None:
    """Refuse an objective that the model lacks a part for.

    Raises:
        EaglerayError: with the part.
    """
    for task in sorted(objective.tasks):
        if missing := model.missing_for(task):
            raise EaglerayError(
                f"objective.{task} needs {missing}, which the model lacks",
                f"set {where}.objective.{task}=0, or give the model {missing}",
                where,
            )


def check_topology(spec: TrainingSpec, model: ModelSpec, where: str) -> None:
    """Refuse a mesh that the model or the batch cannot be divided over.

    Raises:
        EaglerayError: with the numbers, and the nearest value that works.
    """
    parallel = spec.parallel
    _check_grids(spec, model, where)
    heads = head_counts(model)
    for name, counts in heads.items():
        tensor = parallel.within(name).tensor
        if any(count % tensor for count in counts):
            own = f"{name}." if tensor != parallel.tensor else ""
            shared = {name: counts} if own else {n: c for n, c in heads.items() if n not in parallel.grids}
            fits = _nearest(tensor, [t for t in range(1, min(counts) + 1) if _divides(t, shared)])
            raise EaglerayError(
                f"parallel.{own}tensor={tensor} does not divide the {name} heads {list(counts)}",
                f"set {where}.parallel.{own}tensor={fits}",
                where,
            )
    towers = [*parallel.grids, ""]
    if spec.precision == "fp8" and any(parallel.within(tower).tensor > 1 for tower in towers):
        raise EaglerayError(
            "linear layers that multiply in 8 bits are not divided over tensor-parallel workers",
            f"set {where}.parallel.tensor=1, or {where}.precision=bf16",
            where,
        )
    _check_compression(spec, where)
    _check_rows(spec, where)
    if (
        parallel.pipeline > 1
        and parallel.schedule == "1f1b"
        and parallel.num_microbatches < parallel.pipeline
    ):
        raise EaglerayError(
            f"{parallel.num_microbatches} microbatches don't fill a 1F1B pipeline of {parallel.pipeline}",
            f"set {where}.parallel.microbatches={parallel.pipeline} or more",
            where,
        )
    _check_slices(parallel, where)
    layers = num_layers(model, spec.objective.tasks)
    if parallel.num_slices > layers:
        each = parallel.num_slices // parallel.pipeline
        raise EaglerayError(
            f"{parallel.pipeline} pipeline workers of {each} slices, but the model has {layers} layers",
            f"set {where}.parallel.pipeline={layers // each} or less",
            where,
        )


def _check_grids(spec: TrainingSpec, model: ModelSpec, where: str) -> None:
    """Refuse an encoder's own grid that doesn't fit in with the model's."""
    parallel = spec.parallel
    workers = parallel.data * parallel.tensor
    for name, grid in parallel.given_grids.items():
        here = f"{where}.parallel.{name}"
        if name not in model.parts:
            raise EaglerayError(f"parallel.{name}: the model has no such encoder", f"leave {here} out", where)
        fitting = [
            size
            for size in range(1, workers + 1)
            if workers % size == 0 and (parallel.tensor % size == 0 or size % parallel.tensor == 0)
        ]
        if grid.tensor not in fitting:
            raise EaglerayError(
                f"parallel.{name}.tensor={grid.tensor}, but there are {parallel.data} × {parallel.tensor} "
                f"workers: it must divide {parallel.tensor}, or be a multiple of it that divides {workers}",
                f"set {here}.tensor={_nearest(grid.tensor, fitting)}",
                where,
            )
        data = workers // grid.tensor
        if grid.data not in (None, data):
            raise EaglerayError(
                f"parallel.{name} is of {grid.data} × {grid.tensor} workers, and there are {workers}",
                f"set {here}.data={data}, or leave it out",
                where,
            )
        if name not in parallel.grids:
            continue
        if parallel.sharding == "optimizer":
            raise EaglerayError(
                f"parallel.{name}: with sharding=optimizer all parts of the model share one grid",
                f"leave {here} out, or set {where}.parallel.sharding=full",
                where,
            )
        if (
            name == "text"
            and model.text is not None
            and model.text.tied
            and "language" in spec.objective.tasks
        ):
            raise EaglerayError(
                "parallel.text: a tied vocabulary is also the head's, which has the model's grid",
                f"leave {here} out, or set {where}.model.text.tied=false",
                where,
            )


def _check_rows(spec: TrainingSpec, where: str) -> None:
    """Refuse rows that can't be divided; where steps are of tokens, what is missing is filled up."""
    if spec.batching is not None:
        return
    parallel, batch_size, rows = spec.parallel, spec.batch_size, spec.row_unit
    if batch_size % rows:
        fits = max(rows, round(batch_size / rows) * rows)
        more = f", each of {parallel.row_unit} parts for an encoder" if parallel.row_unit > 1 else ""
        parts = f"{spec.passes} passes of " if spec.passes > 1 else ""
        raise EaglerayError(
            f"batch_size={batch_size} can't be divided over {parallel.data} data-parallel workers of "
            f"{parts}{parallel.num_microbatches} microbatches each{more}",
            f"set {where}.batch_size={fits}, or fewer workers or microbatches",
            where,
        )


def _check_compression(spec: TrainingSpec, where: str) -> None:
    """Refuse a compression that the workers can't do, or that has no use."""
    compression, parallel = spec.optimizer.compression, spec.parallel
    if compression is None:
        return
    if parallel.sharding != "optimizer":
        raise EaglerayError(
            "gradients of sharded parameters are not compressed",
            f"set {where}.parallel.sharding=optimizer",
            where,
        )
    if compression.sources % parallel.data:
        fits = parallel.data * max(1, round(compression.sources / parallel.data))
        raise EaglerayError(
            f"{compression.sources} sources can't be divided over {parallel.data} data-parallel workers",
            f"set {where}.optimizer.compression.sources={fits}, which trains another model, or "
            f"{where}.parallel.data to a divisor of {compression.sources}",
            where,
        )


def _check_slices(parallel: ParallelSpec, where: str) -> None:
    """Refuse slices and microbatches that a schedule has no order for."""
    if parallel.pipeline == 1:
        return
    each, schedule = parallel.num_slices // parallel.pipeline, parallel.schedule
    if schedule != "zero-bubble" and (each > 1) != (schedule == "interleaved"):
        raise EaglerayError(
            f"parallel.schedule={schedule} has no order for {each} slices a worker",
            f"set {where}.parallel.slices_per_worker={2 if each == 1 else 1}, or schedule=zero-bubble",
            where,
        )
    rounds = max(1, parallel.num_microbatches // parallel.pipeline)
    if schedule in ("interleaved", "zero-bubble") and parallel.num_microbatches % rounds:
        raise EaglerayError(
            f"{parallel.num_microbatches} microbatches don't make {rounds} equal rounds ({schedule})",
            f"set {where}.parallel.microbatches={rounds * parallel.pipeline}",
            where,
        )


def worker_resources(spec: TrainingSpec, nodes: Sequence[Resources], where: str) -> dict[str, float]:
    """What each worker reserves on a cluster: with GPUs, one.

    Args:
        spec: of the training.
        nodes: what each machine has.
        where: the stage.

    Raises:
        EaglerayError: when the machines can never hold all workers beside the stage's own task.
    """
    resources = {"CPU": spec.parallel.cpus_per_worker}
    if any(node.get("GPU", 0) for node in nodes):
        resources["GPU"] = 1.0
    check_placement(nodes, resources, {"CPU": spec.run.num_cpus}, spec.parallel.num_workers, where)
    return resources


def check_batching(batching: BatchingSpec | None, corpus: CorpusInfo, where: str) -> None:
    """Refuse sequences that are shorter than what isn't cut.

    Raises:
        EaglerayError: with the least that works.
    """
    least = corpus.preparation.max_tokens
    if batching is not None and "captions" in corpus.columns and batching.max_tokens < least:
        raise EaglerayError(
            f"a caption is not cut, and may have {least} tokens, more than batching.max_tokens="
            f"{batching.max_tokens}",
            f"set {where}.batching.max_tokens={least} or more",
            where,
        )


def check_inputs(model: ModelSpec, preparation: Preparation, where: str) -> None:
    """Refuse a model that is made for other inputs than the corpus holds.

    Raises:
        EaglerayError: with the first field that differs, and the value that fits.
    """
    wanted: dict[str, tuple[int, int]] = {}
    if model.vision is not None:
        wanted["vision.image_size"] = (model.vision.image_size, preparation.image_size)
    if model.audio is not None:
        wanted["audio.n_mels"] = (model.audio.n_mels, preparation.n_mels)
        wanted["audio.max_frames"] = (model.audio.max_frames, preparation.max_frames)
    for field, (given, prepared) in wanted.items():
        if given != prepared:
            raise EaglerayError(
                f"model.{field} is {given}, but the corpus was prepared with {prepared}",
                f"set {where}.model.{field}={prepared}, or change preparation.{field.partition('.')[2]}",
                where,
            )


def num_layers(model: ModelSpec, tasks: Collection[Task]) -> int:
    """How many layers a pipeline can be cut between for some tasks, without building the model."""
    parts = model.parts_for(tasks)
    towers = (("audio", model.audio), ("text", model.text), ("decoder", model.decoder))
    blocks = [tower.num_layers for name, tower in towers if tower is not None and name in parts]
    if (vision := model.vision) is not None and "vision" in parts:
        blocks.append(sum(vision.depths) + len(vision.depths) - 1 + (vision.pyramid_width > 0))
    return sum(number + 2 for number in blocks) + 1


def _divides(tensor: int, heads: dict[str, tuple[int, ...]]) -> bool:
    return all(count % tensor == 0 for counts in heads.values() for count in counts)


def _nearest(wanted: int, fitting: Sequence[int]) -> int:
    return min(fitting, key=lambda size: (abs(size - wanted), size))
