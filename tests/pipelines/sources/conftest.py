"""Reading a source's units in this process."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from eagleray.pipelines.files import Files
from eagleray.pipelines.quarantine import Refusal, Refused
from eagleray.pipelines.source import Row, Source, SourceSpec, Unit
from eagleray.pipelines.spec import Preparation


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
