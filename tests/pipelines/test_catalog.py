"""Finding sources and operators."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter

from eagleray.pipelines import catalog
from eagleray.pipelines.contracts import COLUMNS
from eagleray.workflows.errors import EaglerayError


def test_specs_are_told_apart_by_kind():
    adapter = TypeAdapter(catalog.spec_type(one.spec for one in catalog.sources().values()))
    for source in catalog.sources().values():
        kind = adapter.json_schema()["discriminator"]["mapping"]
        assert source.name in kind
    assert catalog.source_of(adapter.validate_python({"kind": "tuxpaint"})).name == "tuxpaint"


def test_an_unknown_corpus_names_the_nearest(tmp_path):
    with pytest.raises(EaglerayError) as error:
        catalog.fetch("tuxpant", tmp_path, print)
    assert error.value.cause == "there is no corpus 'tuxpant' that can be fetched"
    assert error.value.remedy == "did you mean tuxpaint?"


def test_every_source_and_operator_says_what_it_is():
    assert all(source.summary and source.spec.__doc__ for source in catalog.sources().values())
    assert all(operator.summary and operator.spec.__doc__ for operator in catalog.operators().values())


def test_what_fetches_by_itself_says_how_much_and_under_which_licence():
    fetched = [source for source in catalog.sources().values() if source.fetched]
    assert fetched
    assert all(source.licence and source.size_bytes for source in fetched)


def test_operators_give_declared_columns():
    for operator in catalog.operators().values():
        assert set(operator.gives(operator.spec(kind=operator.name))) <= set(COLUMNS)
        assert not set(operator.own(operator.spec(kind=operator.name))) & set(COLUMNS)
