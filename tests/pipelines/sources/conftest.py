"""Reading a source's units in this process."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from eagleray.pipelines.catalog import source_of
from eagleray.pipelines.files import Files
from eagleray.pipelines.preparing import UNITS, Recipe, prepare
from eagleray.pipelines.quarantine import Refusal, Refused
from eagleray.pipelines.source import Row, Source, SourceSpec, Unit
from eagleray.pipelines.spec import Preparation
from eagleray.pipelines.stages.preprocess import PreprocessSpec, chain_of


@dataclass
class Reading:
    """What a source gave.

    Attributes:
        units: sorted by name.
        records: by id.
        refusals: (address, reason), of the listing, of units and of parts of records.
    """

    units: list[Unit] = field(default_factory=list[Unit])
    records: dict[str, Row] = field(default_factory=dict[str, Row])
    refusals: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])


Read = Callable[..., Reading]


@pytest.fixture
def read_source(tmp_path: Path) -> Read:
    """List and read a source whole: `read_source(SOURCE, spec, folder)`; the spec's columns are checked, and
    that reading needs no listing.
    """

    def read(source: Source, spec: SourceSpec, folder: Path | str, **preparation: Any) -> Reading:
        files = Files(str(folder), tmp_path / "digests")
        reading = Reading()
        for listed in source.list_units(spec, files):
            if isinstance(listed, Refusal):
                reading.refusals.append((listed.address, listed.reason))
            else:
                reading.units.append(listed)
        reading.units.sort(key=lambda unit: unit.name)
        assert len({unit.name for unit in reading.units}) == len(reading.units)

        # A task has no listing at hand: one that asked for it would list the whole folder again.
        there = pickle.loads(pickle.dumps(files))
        vars(there)["entries"] = None

        def refuse(refused: Refused, address: str, content: bytes | None = None, whole: bool = False) -> None:
            reading.refusals.append((address, refused.reason))

        for unit in reading.units:
            assert len(unit.key(files)) == 16
            try:
                for row in source.read(spec, there, unit, Preparation(**preparation), refuse):
                    assert row["id"] not in reading.records
                    assert set(row) - {"id", "group", "address"} == set(source.columns(spec))
                    reading.records[row["id"]] = row
            except Refused as refused:
                reading.refusals.append((unit.files[0], refused.reason))
        return reading

    return read


@pytest.fixture
def prepare_source(tmp_path: Path) -> Callable[[PreprocessSpec], list[Row]]:
    """Prepare all units of a spec's source in this process; gives rows of records, refusals and ends."""

    def run(spec: PreprocessSpec) -> list[Row]:
        source = source_of(spec.source)
        files = Files(str(spec.source.path), tmp_path / "digests")
        listed = [unit for unit in source.list_units(spec.source, files) if isinstance(unit, Unit)]
        units = [
            {"key": one.key(files), "name": one.name, "files": one.files, "fields": json.dumps(one.fields)}
            for one in listed
        ]
        recipe = Recipe(source, spec.source, files, chain_of(spec), spec.preparation)
        blocks = prepare(pa.Table.from_pylist(units, UNITS), recipe)
        return [row for block in blocks for row in block.to_pylist()]

    return run
