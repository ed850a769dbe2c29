"""Finding sources."""

from __future__ import annotations

import sys
from typing import get_args

import pytest
from pydantic import TypeAdapter

from eagleray.pipelines import catalog
from eagleray.workflows.errors import EaglerayError

MODULE = """
from typing import Literal
from eagleray.pipelines.source import Source, SourceSpec

class {name}Spec(SourceSpec):
    kind: Literal["{kind}"] = "{kind}"
    digest: str = "0" * 64

SOURCE = Source({name}Spec, "pictures", "CC0", "here", 1, ("image",), None, None, None)
"""


@pytest.fixture
def extension(tmp_path, monkeypatch):
    """A package of sources as another distribution would bring it."""

    def write(**modules: str) -> str:
        package = tmp_path / "eagleray_test_sources"
        package.mkdir()
        (package / "__init__.py").touch()
        for name, kind in modules.items():
            (package / f"{name}.py").write_text(MODULE.format(name=name.title(), kind=kind))
        monkeypatch.syspath_prepend(tmp_path)
        for loaded in [name for name in sys.modules if name.startswith(package.name)]:
            monkeypatch.delitem(sys.modules, loaded)
        return package.name

    return write


def test_a_source_is_one_file_in_a_package(extension):
    found = catalog.discover([catalog.PACKAGE, extension(emoji="emoji")])
    assert [source.name for source in found] == ["emoji", "tuxpaint"]


def test_two_sources_of_one_name_are_an_error(extension):
    with pytest.raises(EaglerayError, match="two modules declare the source 'emoji'") as error:
        catalog.discover([extension(emoji="emoji", smiley="emoji")])
    assert "eagleray_test_sources.smiley" in error.value.where


def test_several_sources_are_told_apart_by_kind(extension, monkeypatch):
    found = catalog.discover([catalog.PACKAGE, extension(emoji="emoji")])
    monkeypatch.setattr(catalog, "list_sources", lambda: found)
    adapter = TypeAdapter(catalog.spec_type())
    assert get_args(catalog.spec_type())[1].discriminator == "kind"
    assert adapter.validate_python({"kind": "emoji"}).kind == "emoji"
    assert catalog.source_of(adapter.validate_python({"kind": "tuxpaint"})).name == "tuxpaint"


def test_an_unknown_corpus_names_the_nearest(tmp_path):
    with pytest.raises(EaglerayError) as error:
        catalog.fetch("tuxpant", tmp_path, print)
    assert error.value.cause == "there is no corpus 'tuxpant'"
    assert error.value.remedy == "did you mean tuxpaint?"


def test_every_source_says_where_it_comes_from_and_under_which_licence():
    for source in catalog.list_sources():
        assert all([source.summary, source.licence, source.origin, source.size_bytes, source.modalities])
