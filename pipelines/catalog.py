"""The sources there are: every module of `sources/`, and of installed extensions. Imports pydantic only."""

from __future__ import annotations

import importlib
import pkgutil
from difflib import get_close_matches
from functools import lru_cache, reduce
from importlib.metadata import entry_points
from operator import or_
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from ..workflows.errors import EaglerayError
from .source import Log, Source, SourceSpec

PACKAGE = f"{__package__}.sources"
EXTENSIONS = "eagleray.sources"


@lru_cache(maxsize=1)
def list_sources() -> tuple[Source, ...]:
    """Find every source, sorted by name.

    An extension is a distribution with an entry point in the group `eagleray.sources` that names a
    package of source modules.

    Raises:
        EaglerayError: when two modules declare the same source.
    """
    return discover([PACKAGE, *(entry.value for entry in entry_points(group=EXTENSIONS))])


def discover(packages: list[str]) -> tuple[Source, ...]:
    """Find the sources that the modules of these packages declare, sorted by name.

    Raises:
        EaglerayError: when two modules declare the same source.
    """
    found: dict[str, tuple[str, Source]] = {}
    for package in packages:
        for info in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}."):
            for value in vars(importlib.import_module(info.name)).values():
                if not isinstance(value, Source) or value.spec.__module__ != info.name:
                    continue
                if value.name in found:
                    raise EaglerayError(
                        f"two modules declare the source {value.name!r}",
                        "rename one of them",
                        f"{found[value.name][0]} and {info.name}",
                    )
                found[value.name] = (info.name, value)
    return tuple(found[name][1] for name in sorted(found))


def source(name: str) -> Source:
    """The source of that name.

    Raises:
        EaglerayError: when there is none, with the nearest name.
    """
    known = {one.name: one for one in list_sources()}
    if name not in known:
        near = get_close_matches(name, known, 1)
        remedy = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
        raise EaglerayError(f"there is no corpus {name!r}", remedy)
    return known[name]


def spec_type() -> Any:  # noqa: ANN401 - a type that is only known once the sources are found
    """The union of all sources' specs, told apart by `kind`: the type of a spec's `source` field."""
    specs = [one.spec for one in list_sources()]
    if len(specs) == 1:  # pydantic wants at least two members in a discriminated union
        return specs[0]
    return Annotated[reduce(or_, specs), Field(discriminator="kind")]


def source_of(spec: SourceSpec) -> Source:
    """The source that a spec belongs to."""
    return next(one for one in list_sources() if isinstance(spec, one.spec))


def fetch(name: str, cache: Path, log: Log) -> Path:
    """Fetch a source with its defaults into `cache`; the folder of the unpacked, verified copy.

    Raises:
        EaglerayError: when there is no such source, or it can't be fetched.
    """
    found = source(name)
    return found.fetch(found.spec(), cache, log)  # pyright: ignore[reportCallIssue] - every field has a default
