"""The sources and operators there are: every module of their packages, and of installed extensions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from functools import lru_cache, reduce
from operator import or_
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from ..workflows.discovery import discover
from ..workflows.errors import EaglerayError
from ..workflows.spec import Spec
from .operator import Operator, OperatorSpec
from .packages import Log
from .source import Source, SourceSpec, open_source


@lru_cache(maxsize=1)
def sources() -> Mapping[str, Source]:
    """Every source by name; an extension's package stands in the entry points `eagleray.sources`."""
    return discover(Source, "source", [f"{__package__}.sources"], "eagleray.sources")


@lru_cache(maxsize=1)
def operators() -> Mapping[str, Operator]:
    """Every operator by name; an extension's package stands in the entry points `eagleray.operators`."""
    return discover(Operator, "operator", [f"{__package__}.operators"], "eagleray.operators")


def source_of(spec: SourceSpec) -> Source:
    """The source that a spec belongs to."""
    return sources()[spec.kind]


def operator_of(spec: OperatorSpec) -> Operator:
    """The operator that a spec belongs to."""
    return operators()[spec.kind]


def spec_type(specs: Iterable[type[Spec]]) -> Any:  # noqa: ANN401 - a type that is only known once they are found
    """The union of specs, told apart by `kind`: the type of a field that takes any of them."""
    return Annotated[reduce(or_, specs), Field(discriminator="kind")]


def fetch(name: str, cache: Path, log: Log) -> str:
    """Fetch a source with its defaults into `cache`; the folder of the unpacked, verified copy.

    Raises:
        EaglerayError: when there is no such source, or it has no data of its own, or can't be fetched.
    """
    known = {source.name: source for source in sources().values() if source.fetched}
    if name not in known:
        near = get_close_matches(name, known, 1)
        remedy = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
        raise EaglerayError(f"there is no corpus {name!r} that can be fetched", remedy)
    source = known[name]
    return open_source(source, source.spec(kind=name), cache, log).place
