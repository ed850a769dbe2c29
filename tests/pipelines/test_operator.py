"""Chains of operators."""

from __future__ import annotations

from dataclasses import replace

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


def test_after_a_record_became_several_the_files_are_not_those_of_a_record():
    cut, options = operator("cut", ("picture",), ("image",))
    chain = [(replace(cut, splits=True), options), operator("hash", ("picture",), ())]
    with pytest.raises(EaglerayError, match="hash needs picture"):
        check_chain(("picture",), chain, "folder")


def test_what_decides_does_not_stand_before_a_record_becomes_several():
    """Its column would be the same in all parts, and all but one be left out."""
    cut, options = operator("cut", ("text",), ("text",))
    judge, other = operator("judge", ("text",), ())
    first, second = (
        (replace(judge, decide=lambda spec, table: ()), other),
        (replace(cut, splits=True), options),
    )
    assert check_chain(("text",), [second, first], "folder") == ("id", "text")
    with pytest.raises(EaglerayError, match="cut makes several records of one that judge looked at"):
        check_chain(("text",), [first, second], "folder")
