"""Chains of operators."""

from __future__ import annotations

import pytest

from eagleray.pipelines.operator import Operator, OperatorSpec, check_chain
from eagleray.workflows.errors import EaglerayError


class NamedSpec(OperatorSpec):
    kind: str = "named"


def operator(name: str, needs: tuple[str, ...], gives: tuple[str, ...]) -> tuple[Operator, OperatorSpec]:
    spec = type(name, (NamedSpec,), {"__annotations__": {"kind": str}, "kind": name})
    return Operator(
        spec, name, lambda spec: needs, lambda spec, preparation: lambda row, refuse: None, lambda spec: gives
    ), spec()


def test_columns_run_through_the_chain():
    chain = [operator("decode", ("picture",), ("image",)), operator("measure", ("image",), ("boxes",))]
    assert check_chain(("picture",), chain, "folder") == ("id", "picture", "image", "boxes")


def test_a_missing_column_is_told_with_what_would_give_it():
    chain = [operator("measure", ("image",), ("boxes",)), operator("decode", ("picture",), ("image",))]
    with pytest.raises(EaglerayError) as error:
        check_chain(("picture",), chain, "folder")
    assert "operator measure needs image" in error.value.cause
    assert "folder and what comes before give id, picture" in error.value.cause
    assert error.value.remedy == "put decode before it"


def test_a_column_that_nothing_gives_is_told_as_well():
    with pytest.raises(EaglerayError, match="needs volume"):
        check_chain(("picture",), [operator("window", ("volume",), ())], "folder")
