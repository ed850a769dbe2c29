"""Several sources as one corpus; each keeps its own ids, groups and addresses, below its name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SerializeAsAny, field_validator

from ..files import Files, MixedFiles
from ..packages import Log
from ..quarantine import Refusal, Refuse, Refused
from ..source import Row, Source, SourceSpec, Unit, content_digest, open_source
from ..spec import Preparation

FILES = ("picture", "volume")
LISTS_OF_FILES = ("recordings",)


class MixtureSpec(SourceSpec):
    """Several sources as one corpus."""

    kind: Literal["mixture"] = "mixture"
    path: None = None
    """Each part has its own."""
    parts: Mapping[str, SerializeAsAny[SourceSpec]] = Field(min_length=1)
    """Name → source. A record's id is NAME/ID, so that no two parts' ids or groups are the same."""

    @field_validator("parts", mode="before")
    @classmethod
    def _of_their_kinds(cls, parts: Any) -> Any:  # noqa: ANN401 - what a file says
        from pydantic import TypeAdapter

        from ..catalog import sources, spec_type

        if not isinstance(parts, Mapping):
            return parts
        any_part: Any = spec_type(source.spec for source in sources().values() if source.spec is not cls)
        known: TypeAdapter[SourceSpec] = TypeAdapter(any_part)
        return {name: known.validate_python(part) for name, part in parts.items()}

    @field_validator("parts")
    @classmethod
    def _plain_names(cls, parts: Mapping[str, SourceSpec]) -> Mapping[str, SourceSpec]:
        for name in parts:
            if not name or "/" in name:
                raise ValueError(f"{name!r} is no name of a part: it must not be empty or have a /")
        return parts


def list_units(spec: MixtureSpec, files: Files) -> Iterator[Unit | Refusal]:
    """The units of all parts."""
    assert isinstance(files, MixedFiles)
    for name, part in spec.parts.items():
        for unit in _source(part).list_units(part, files.parts[name]):
            if isinstance(unit, Refusal):
                yield Refusal(f"{name}/{unit.id}", f"{name}/{unit.address}", *_rest(unit))
            else:
                fields = {"part": name, "fields": dict(unit.fields)}
                yield Unit(f"{name}/{unit.name}", tuple(f"{name}/{path}" for path in unit.files), fields)


def read(
    spec: MixtureSpec, files: Files, unit: Unit, preparation: Preparation, refuse: Refuse
) -> Iterator[Row]:
    """The records of a part's unit; columns that only other parts have are empty."""
    assert isinstance(files, MixedFiles)
    name = unit.fields["part"]
    part = spec.parts[name]
    source = _source(part)
    inner = Unit(
        unit.name.removeprefix(f"{name}/"),
        tuple(path.removeprefix(f"{name}/") for path in unit.files),
        unit.fields["fields"],
    )

    def refuse_inner(
        refused: Refused, address: str, content: bytes | None = None, whole: bool = False
    ) -> None:
        refuse(refused, f"{name}/{address}", content, whole)

    absent = _absent(set(_columns(spec)) - set(source.columns(part)))
    for row in source.read(part, files.parts[name], inner, preparation, refuse_inner):
        yield {**absent, **_below(name, row)}


def _below(name: str, row: Row) -> Row:
    """A part's record with its id, group and addresses below the part's name."""

    def file(value: Row | None) -> Row | None:
        return value and {**value, "address": f"{name}/{value['address']}"}

    moved = {**row, "id": f"{name}/{row['id']}"}
    if row.get("group"):
        moved["group"] = f"{name}/{row['group']}"
    moved |= {column: file(row[column]) for column in FILES if column in row}
    moved |= {column: [file(one) for one in row[column]] for column in LISTS_OF_FILES if column in row}
    return moved


def _absent(columns: set[str]) -> Row:
    import pyarrow as pa

    from ..contracts import COLUMNS

    return {name: [] if pa.types.is_list(COLUMNS[name].type) else None for name in columns}


def _columns(spec: MixtureSpec) -> tuple[str, ...]:
    return tuple(dict.fromkeys(c for part in spec.parts.values() for c in _source(part).columns(part)))


def _rest(refusal: Refusal) -> tuple[Any, ...]:
    return tuple(vars(refusal).values())[2:]


def _source(spec: SourceSpec) -> Source:
    from ..catalog import source_of

    return source_of(spec)


def _open(spec: MixtureSpec, cache: Path, log: Log) -> Files:
    parts = {name: open_source(_source(part), part, cache, log) for name, part in spec.parts.items()}
    return MixedFiles(parts, cache)


def _digest(spec: MixtureSpec, cache: Path) -> str:
    digests = [f"{name} {content_digest(_source(p), p, cache)}" for name, p in sorted(spec.parts.items())]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


SOURCE = Source(
    spec=MixtureSpec,
    summary="several sources as one corpus",
    columns=_columns,
    list_units=list_units,
    read=read,
    open=_open,
    content_digest=_digest,
)
