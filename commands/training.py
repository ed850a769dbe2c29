"""`eagleray certify`: what a training would compute on its mesh."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import typer

from ..display import print_table
from ..session import Session
from ..workflows.errors import EaglerayError
from ..workflows.spec import StageSpec
from .common import DEFAULT_HOME, AsJson, Overrides, SpecFile, err, out

if TYPE_CHECKING:
    from ..actors.training.spec import AdaptationSpec, ParallelSpec, TrainingSpec
    from ..models.spec import ModelSpec


def certify(spec: SpecFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Prove that trainings compute on their mesh what one process does.

    The model of each, at toy width and in double precision, takes three steps in processes of this machine,
    under the training's own mesh, schedule and loss, and three in one process of plain PyTorch. It needs no
    cluster, no corpus and no GPU. Fails if a loss, a gradient or a weight differs by more than rounding.
    """
    from ..actors.training.certifying import certify as compare

    workflow = Session(DEFAULT_HOME).load(spec, overrides or [])
    rows: list[dict[str, object]] = []
    for name, training, model, adaptation in _trainings(workflow.stages):
        mesh = _mesh(training.parallel)
        err.print(f"{name}: {mesh}")
        for found in compare(training, model, adaptation):
            rows.append(
                {
                    "stage": name,
                    "mesh": mesh,
                    "compared": found.what,
                    "difference": f"{found.difference:.1e}",
                    "where": found.where,
                    "holds": found.holds,
                }
            )
    print_table(out, rows, as_json, "no stage trains")
    if not all(row["holds"] for row in rows):
        raise typer.Exit(1)


def _trainings(
    stages: Mapping[str, StageSpec],
) -> Iterator[tuple[str, TrainingSpec, ModelSpec, AdaptationSpec | None]]:
    from ..actors.training.spec import AdaptationSpec, TrainingSpec

    for name, stage in stages.items():
        if isinstance(stage, TrainingSpec):
            adaptation = stage if isinstance(stage, AdaptationSpec) else None
            yield name, stage, _model_of(name, stages), adaptation


def _model_of(name: str, stages: Mapping[str, StageSpec]) -> ModelSpec:
    """The model that a stage trains: its own, or that of the stage whose checkpoint it goes on from."""
    from ..actors.training.spec import TrainingSpec
    from ..models.spec import ModelSpec

    stage = stages[name]
    model = getattr(stage, "model", None)
    if isinstance(model, ModelSpec):
        return model
    before = stage.inputs.get("checkpoint", "")
    if isinstance(stages.get(before), TrainingSpec):
        return _model_of(before, stages)
    raise EaglerayError(
        f"what {name} trains is known only once {before} has run",
        f"write its sizes down as {name}.model",
        name,
    )


def _mesh(parallel: ParallelSpec) -> str:
    axes = f"{parallel.data}×{parallel.tensor}×{parallel.pipeline}"
    if parallel.num_microbatches == 1:
        return axes
    return f"{axes}, {parallel.num_microbatches} microbatches, {parallel.schedule}"
