"""Which certificate a training needs, and the certificate itself: an artifact, found by what it proves.

What is proven is a stage's training at toy width (see `certifying`), so a certificate serves every
training that is the same there: of more steps, of a wider model, on another corpus. It is bound to the code
of models and trainer and to the libraries that compute, and no longer stands when one of them changes.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from ...models.spec import ModelSpec
from ...workflows.errors import EaglerayError
from ...workflows.fingerprint import digest_of
from ...workflows.spec import StageSpec
from .spec import AdaptationSpec, BatchingSpec, OptimizerSpec, ParallelSpec, TrainingSpec
from .toy import toy_model

FORMAT = 1
FILE = "certificate.json"
STEPS = 3
TOLERANCE = 1e-12
MIN_ROWS = 8
"""Of a step, so that some have every modality and some share a caption."""
PATIENCE_S = 600.0
"""What a worker of a proof waits for another: many share a laptop's cores."""
LIBRARIES = ("torch", "numpy")
PACKAGE = Path(__file__).parents[2]
CODE = ("models", "actors/training")


@dataclass(frozen=True)
class Training:
    """A stage's training, and what of which model it changes."""

    spec: TrainingSpec
    model: ModelSpec
    adaptation: AdaptationSpec = field(default_factory=AdaptationSpec)

    def at_toy_width(self) -> Training:
        """The same on its mesh, as small as it can be, in double precision."""
        parallel, optimizer = self.spec.parallel, self.spec.optimizer
        rows = self.spec.row_unit
        # in groups a step need not be divisible, so let it not be
        odd = 0 if self.spec.batching is None else 1
        # more of the past than a step's rows and fewer than all steps', so that some is forgotten
        negatives = min(self.spec.objective.negatives, 3 * rows)
        update = {
            "objective": self.spec.objective.model_copy(update={"negatives": negatives}),
            # at a rate that moves the weights from the first step on
            "optimizer": OptimizerSpec(
                algorithm=optimizer.algorithm,
                compression=optimizer.compression,
                warmup_steps=1,
                max_grad_norm=optimizer.max_grad_norm,
            ),
            "parallel": parallel.model_copy(update={"timeout_s": PATIENCE_S}),
            "batch_size": rows * max(2, -(-MIN_ROWS // rows)) + odd,
            "batching": None if self.spec.batching is None else BatchingSpec(fill=self.spec.batching.fill),
            "steps": 2 * STEPS,
            "precision": "fp64",
            "seed": 0,
        }
        return Training(self.spec.model_copy(update=update), toy_model(self.model), self.adaptation)

    @property
    def proven(self) -> dict[str, Any]:
        """Everything that its proof depends on, as JSON values."""
        toy = self.at_toy_width()
        fields = {"batch_size", "batching", "steps", "precision", "objective", "optimizer", "parallel"}
        return {
            "format": FORMAT,
            "training": toy.spec.model_dump(mode="json", include=fields),
            "model": toy.model.model_dump(mode="json"),
            "adaptation": toy.adaptation.model_dump(mode="json", include=set(AdaptationSpec.model_fields)),
            "code": code_digest(),
            "libraries": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        }

    @property
    def fingerprint(self) -> str:
        """Of its certificate."""
        return digest_of(self.proven)


class Finding(BaseModel):
    """How far a mesh is from one process.

    Attributes:
        what: that was compared.
        difference: the largest, as a part of the largest value there is.
        where: the step, and the term or the parameter, where it is.
    """

    model_config = ConfigDict(frozen=True)

    what: str
    difference: float
    where: str

    @property
    def holds(self) -> bool:
        """Whether it is no more than rounding."""
        return self.difference <= TOLERANCE  # false for NaN


def write_certificate(folder: Path, training: Training, findings: Sequence[Finding]) -> None:
    """Write down what was found, and for what."""
    content = {
        **training.proven,
        "tolerance": TOLERANCE,
        "findings": [finding.model_dump(mode="json") for finding in findings],
    }
    (folder / FILE).write_text(json.dumps(content, indent=1))


def read_findings(folder: Path) -> list[Finding]:
    """What a certificate says that was found."""
    content = json.loads((folder / FILE).read_text())
    return [Finding.model_validate(finding) for finding in content["findings"]]


def check_certificate(name: str, stages: Mapping[str, StageSpec], has: Callable[[str], bool]) -> None:
    """Refuse a training that has no certificate, unless it is one process or is to run all the same.

    Args:
        name: of the stage.
        stages: of the workflow, by name.
        has: whether the store has an artifact of a fingerprint.

    Raises:
        EaglerayError: with what to do; also when the model that it trains is known only once another stage
            has run.
    """
    spec = stages[name]
    assert isinstance(spec, TrainingSpec)
    if spec.uncertified or spec.is_one_process or has(training_of(name, spec, stages).fingerprint):
        return
    raise EaglerayError(
        f"nothing proves yet that {mesh_of(spec.parallel)} computes what one process does",
        "`eagleray certify` the same spec with the same --set and --home, which takes a minute or two on any "
        "machine; or run it with --uncertified, which the checkpoint will say",
        name,
    )


def trainings(stages: Mapping[str, StageSpec]) -> Iterator[tuple[str, Training]]:
    """Every stage that trains, by name.

    Raises:
        EaglerayError: when the model of one is known only once another stage has run.
    """
    for name, spec in stages.items():
        if isinstance(spec, TrainingSpec):
            yield name, training_of(name, spec, stages)


def training_of(name: str, spec: TrainingSpec, stages: Mapping[str, StageSpec]) -> Training:
    """A stage's training, of its own model or of that whose checkpoint it goes on from.

    Raises:
        EaglerayError: when that is known only once another stage has run.
    """
    first: StageSpec | None = spec
    before = ""
    while isinstance(first, TrainingSpec):
        model = getattr(first, "model", None)
        if isinstance(model, ModelSpec):
            return Training(spec, model, spec if isinstance(spec, AdaptationSpec) else AdaptationSpec())
        before = first.inputs.get("checkpoint", "")
        first = stages.get(before)
    raise EaglerayError(
        f"what {name} trains is known only once {before} has run",
        f"write its sizes down as {name}.model",
        name,
    )


def mesh_of(parallel: ParallelSpec) -> str:
    """A mesh, for people."""
    axes = f"{parallel.data}×{parallel.tensor}×{parallel.pipeline}"
    if parallel.sharding == "optimizer":
        axes += ", ZeRO-1"
    for name in parallel.grids:
        own = parallel.within(name)
        axes += f", {name} {own.data}×{own.tensor}"
    if parallel.num_microbatches == 1:
        return axes
    slices = f" of {parallel.num_slices} slices" if parallel.num_slices > parallel.pipeline else ""
    return f"{axes}, {parallel.num_microbatches} microbatches, {parallel.schedule}{slices}"


@cache
def code_digest() -> str:
    """Of the modules that a training's numbers come from."""
    digest = hashlib.sha256()
    for part in CODE:
        for path in sorted((PACKAGE / part).rglob("*.py")):
            digest.update(path.relative_to(PACKAGE).as_posix().encode() + b"\0")
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
