"""Compiled layers train as the layers do as they are, and those that don't are refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from eagleray.actors.training.group import run_group
from eagleray.actors.training.loop import TrainingJob
from eagleray.actors.training.spec import ObjectiveSpec

from .conftest import job_of, losses

COMPILE = nn.Module.compile


def traced(graph, inputs):
    """A compiler that changes nothing, and is quick."""
    return graph.forward


def wrong(graph, inputs):
    """A compiler that makes of whatever comes out a quarter more."""

    def run(*arguments):
        return [
            1.25 * out if isinstance(out, torch.Tensor) and out.is_floating_point() else out
            for out in graph.forward(*arguments)
        ]

    return run


def compiled_by(rank, job, compiler):
    nn.Module.compile = lambda self: COMPILE(self, backend=compiler)
    return losses(rank, job)


def job(corpus, *, compile_layers: bool, **parallel: int) -> TrainingJob:
    plain = job_of(corpus, **(parallel or {"data": 2}))
    update = {"compile_layers": compile_layers, "objective": ObjectiveSpec(classification=1.0)}
    return TrainingJob(plain.spec.model_copy(update=update), plain.model, corpus)


@pytest.mark.parametrize("axis", ["data", "tensor"])
def test_compiled_layers_train_as_the_layers_do_as_they_are(corpus_folder, axis):
    expected = run_group(losses, 2, job(corpus_folder, compile_layers=False, **{axis: 2}))[0]
    found = run_group(compiled_by, 2, job(corpus_folder, compile_layers=True, **{axis: 2}), traced)[0]
    for mine, theirs in zip(found, expected, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-9)


def test_a_wrong_compiler_is_found_in_the_first_step(corpus_folder):
    with pytest.raises(RuntimeError, match="compiled layers have another gradient"):
        run_group(compiled_by, 2, job(corpus_folder, compile_layers=True), wrong)
