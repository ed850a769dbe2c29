"""Every example is a workflow that this version understands, and every source has one."""

from __future__ import annotations

from pathlib import Path

import pytest

from eagleray.pipelines.catalog import sources
from eagleray.session import STAGE_PACKAGES
from eagleray.workflows.loading import load_workflow
from eagleray.workflows.stage import discover_kinds

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").rglob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_a_workflow(path):
    workflow = load_workflow(path, [], discover_kinds(STAGE_PACKAGES), {})
    kinds = discover_kinds(STAGE_PACKAGES)
    for name, spec in workflow.stages.items():
        check = kinds[spec.kind].check
        if check is not None:
            check(name, spec)


def test_every_source_has_an_example():
    kinds = discover_kinds(STAGE_PACKAGES)
    given = [
        spec.source
        for path in EXAMPLES
        for spec in load_workflow(path, [], kinds, {}).stages.values()
        if spec.kind == "preprocess"
    ]
    parts = [part for source in given if source.kind == "mixture" for part in source.parts.values()]
    assert set(sources()) <= {source.kind for source in (*given, *parts)}
