"""Reading a source's units and preparing their records, in parallel on Ray Data.

A task takes a block of units, reads each, and sends every record through the whole chain of operators
before the next is read, so that its memory does not depend on how large a unit is. What comes back are
rows in the order of the units: records, refusals, and a mark at the end of each unit.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..workflows.errors import EaglerayError
from .contracts import COLUMNS, PLACE, stored_schema
from .files import Files
from .operator import Apply, Operator, OperatorSpec, check_chain
from .quarantine import KEPT_BYTES, Refusal, Refused
from .source import Row, Source, SourceSpec, Unit
from .spec import CPUS_PER_TASK, Preparation
from .splitting import group_of

RECORD, REFUSAL, END = range(3)
"""What a row of a prepared block is. The `row` of an END is the number of records that the unit had."""
BLOCKS_PER_TASK = 4
MAX_BLOCK_UNITS = 4096
LIMITS_UPDATE_S = 0.05
BLOCK_ROWS = 256
BLOCK_BYTES = 16 << 20
UNITS = pa.schema(
    [
        pa.field("key", pa.binary(16), nullable=False),
        pa.field("name", pa.string(), nullable=False),
        pa.field("files", pa.list_(pa.string()), nullable=False),
        pa.field("fields", pa.string(), nullable=False),
    ]
)
_REFUSED = pa.struct(
    [
        ("id", pa.string()),
        ("address", pa.string()),
        ("operator", pa.string()),
        ("reason", pa.string()),
        ("message", pa.string()),
        ("wanted", pa.bool_()),
        ("whole", pa.bool_()),
        ("size_bytes", pa.int64()),
        ("content", pa.large_binary()),
    ]
)


@dataclass(frozen=True)
class Recipe:
    """How the records of a source are prepared. Picklable.

    Attributes:
        source: where they come from.
        spec: the source's spec.
        files: the source's.
        chain: operators with their specs, decoding and encoding included.
        preparation: how inputs become arrays.
        bundle: folder of the model that operators ask, if any does; on every machine.
    """

    source: Source
    spec: SourceSpec
    files: Files
    chain: tuple[tuple[Operator, OperatorSpec], ...]
    preparation: Preparation
    bundle: Path | None = None

    @property
    def schema(self) -> pa.Schema:
        """Of a prepared record."""
        columns = check_chain(self.source.columns(self.spec), self.chain, self.source.name)
        own = {name: kind for one, spec in self.chain for name, kind in one.own(spec).items()}
        return stored_schema(("group", *columns), own)

    @property
    def block_schema(self) -> pa.Schema:
        """Of a prepared block: of a refusal, every column of the record is null."""
        columns = [field.with_nullable(True) for field in self.schema if field.name not in PLACE.names]
        return pa.schema([*PLACE, pa.field("event", pa.int8()), pa.field("refusal", _REFUSED), *columns])


def run(
    units: pa.Table, recipe: Recipe, parallelism: int | None, block_units: int | None
) -> Generator[pa.Table]:
    """Prepare units (of `UNITS`) in parallel; yields blocks of `recipe.block_schema` in the units' order.

    Args:
        units: what to read.
        recipe: how.
        parallelism: tasks at once; None takes as many as the cores of the cluster's machines hold.
        block_units: units that a task reads; None takes so many that there are four blocks for each task.
    """
    import ray.data
    from ray.data._internal.execution.resource_manager import ResourceManager

    if not units.num_rows:
        return
    # Ray 2.60 begins with one task, and looks only a second later at what the cluster has granted.
    ResourceManager.GLOBAL_LIMITS_UPDATE_INTERVAL_S = LIMITS_UPDATE_S  # pyright: ignore[reportAttributeAccessIssue]

    def prepare_block(block: pa.Table) -> Iterator[pa.Table]:
        yield from prepare(block, recipe)

    tasks = parallelism or int(_cores() / CPUS_PER_TASK)
    block_units = block_units or min(MAX_BLOCK_UNITS, -(-units.num_rows // (BLOCKS_PER_TASK * tasks)))
    blocks = [units.slice(start, block_units) for start in range(0, units.num_rows, block_units)]
    with warnings.catch_warnings():
        # Ray 2.60 warns of its own fields when it copies them.
        warnings.simplefilter("ignore", DeprecationWarning)
        context = ray.data.DataContext.get_current().copy()
    context.execution_options.preserve_order = True
    context.target_max_block_size = BLOCK_BYTES  # else Ray gathers 128 MiB of each task before it sends any
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    with ray.data.DataContext.current(context):  # a dataset keeps the one it was made in
        prepared = ray.data.from_arrow(blocks).map_batches(
            prepare_block,
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=CPUS_PER_TASK,
            compute=ray.data.TaskPoolStrategy(size=min(tasks, len(blocks))),
        )
    yield from prepared.iter_batches(batch_size=None, batch_format="pyarrow")


def prepare(units: pa.Table, recipe: Recipe) -> Iterator[pa.Table]:
    """Prepare units (of `UNITS`) in this process; yields blocks of `recipe.block_schema`."""
    block = _Block(recipe)
    source = recipe.source
    chain = [(one, one.begin(spec, recipe.preparation, recipe.bundle)) for one, spec in recipe.chain]
    for entry in units.to_pylist():
        unit = Unit(entry["name"], tuple(entry["files"]), json.loads(entry["fields"]))
        reader = _UnitReader(unit, entry["key"], block, chain)
        rows = source.read(recipe.spec, recipe.files, unit, recipe.preparation, reader.refuse)
        yield from reader.read(rows, source.name)
    if block.rows:
        yield block.take()


class _UnitReader:
    """Sends the records of one unit through the chain."""

    def __init__(
        self, unit: Unit, key: bytes, block: _Block, chain: Sequence[tuple[Operator, Apply]]
    ) -> None:
        self._unit, self._key, self._block, self._chain = unit, key, block, chain
        self._record = unit.name
        self._operator = ""
        self._num_records = 0

    def read(self, rows: Iterator[Row], source: str) -> Iterator[pa.Table]:
        """Prepare all records; yields blocks as they get full."""
        while True:
            self._record, self._operator = self._unit.name, source
            try:
                row = next(rows)
            except StopIteration:
                break
            except Exception as error:  # a library may raise anything on hostile bytes
                self._refuse_whole(_refused(error), {})
                break
            for finished in self._apply(row, 0):
                self._block.add(self._key, self._num_records, RECORD, finished)
                self._num_records += 1
            if self._block.is_full:
                yield self._block.take()
        self._block.add(self._key, self._num_records, END, {})

    def refuse(
        self, refused: Refused, address: str, content: bytes | None = None, whole: bool = False
    ) -> None:
        """Note that a part of the present record is refused, or a record of its own; see `Refuse`."""
        self._note(refused, address, content, whole)
        self._num_records += whole

    def _apply(self, row: Row, position: int) -> Iterator[Row]:
        """Send a record through the chain from `position` on."""
        for number in range(position, len(self._chain)):
            operator, apply = self._chain[number]
            self._record, self._operator = row["id"], operator.name
            try:
                given = apply(row, self.refuse)
            except Exception as error:
                self._refuse_whole(_refused(error), row)
                return
            if isinstance(given, list):
                origin = row | {"group": self._block.group(row)}  # its parts go to the same split
                for part, columns in enumerate(given):
                    yield from self._apply(origin | {"id": f"{row['id']}#{part:04d}"} | columns, number + 1)
                return
            row = row | (given or {})
        yield row

    def _refuse_whole(self, refused: Refused, row: Row) -> None:
        files = [row["picture"]] if row.get("picture") else row.get("recordings") or []
        file = files[0] if files else {}
        address = file.get("address") or row.get("address") or self._unit.files[0]
        self._note(refused, address, file.get("content"), whole=True)
        self._num_records += 1

    def _note(self, refused: Refused, address: str, content: bytes | None, whole: bool) -> None:
        size = -1 if content is None else len(content)
        refusal = Refusal(
            id=self._record,
            address=address,
            operator=self._operator,
            reason=refused.reason,
            message=refused.message,
            wanted=refused.wanted,
            whole=whole,
            size_bytes=size,
            content=content if content is not None and size <= KEPT_BYTES else None,
        )
        self._block.add(self._key, self._num_records, REFUSAL, {"refusal": vars(refusal)})


class _Block:
    """Rows that wait to become an Arrow table."""

    def __init__(self, recipe: Recipe) -> None:
        self._schema = recipe.block_schema
        self._reference = recipe.preparation.caption_languages[0]
        self._givers = _givers(recipe)
        self._columns = [name for name in recipe.schema.names if name not in PLACE.names]
        self._bytes = 0
        self.rows: list[Row] = []

    @property
    def is_full(self) -> bool:
        """Whether it should be sent."""
        return len(self.rows) >= BLOCK_ROWS or self._bytes >= BLOCK_BYTES

    def add(self, unit: bytes, number: int, event: int, row: Row) -> None:
        """Add one row."""
        kept = {name: row[name] for name in self._columns if name in row}
        if event == RECORD:
            kept["group"] = self.group(row)
            self._bytes += _size(kept)
        self.rows.append({"unit": unit, "row": number, "event": event, "refusal": row.get("refusal"), **kept})

    def group(self, row: Row) -> str:
        """What no two splits may share."""
        return row.get("group") or group_of(row, self._reference)

    def take(self) -> pa.Table:
        """All rows as a table; empties it.

        Raises:
            EaglerayError: when a value is not what its column declares, with the record and who set it.
        """
        columns: list[pa.Array] = []
        for field in self._schema:
            values = [row.get(field.name) for row in self.rows]
            try:
                columns.append(pa.array(values, field.type))
            except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
                raise self._mismatch(field, error) from error
        self.rows, self._bytes = [], 0
        return pa.Table.from_arrays(columns, schema=self._schema)

    def _mismatch(self, field: pa.Field, error: Exception) -> EaglerayError:
        for row in self.rows:
            try:
                pa.array([row.get(field.name)], field.type)
            except (pa.ArrowException, TypeError, ValueError, OverflowError):
                value = repr(row.get(field.name))
                return EaglerayError(
                    f"{self._givers[field.name]} gave {field.name} = {value[:200]} to the record "
                    f"{row.get('id')}, declared is {field.type}: {error}",
                    f"mend {self._givers[field.name]}",
                )
        raise error


def _givers(recipe: Recipe) -> dict[str, str]:
    """Column → what sets it last."""
    givers = dict.fromkeys(COLUMNS, f"the source {recipe.source.name}")
    for operator, spec in recipe.chain:
        given = (*operator.gives(spec), *operator.own(spec))
        givers |= dict.fromkeys(given, f"the operator {operator.name}")
    return givers


def _refused(error: Exception) -> Refused:
    """Why a record can't be used. What no one foresaw is a reason too: one odd file must not end a run."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, OSError):
        return Refused("unreadable-file", f"the file can't be read: {error.strerror or error}")
    return Refused("failed", f"{type(error).__name__}: {error}")


def _size(value: Any) -> int:  # noqa: ANN401 - any value of a column
    """Bytes of what is large in a value."""
    kind = type(value)
    if kind is bytes or kind is str:
        return len(value)
    if kind is dict:
        return sum([_size(one) for one in value.values()])
    return sum([_size(one) for one in value]) if kind is list else 0


def _cores() -> int:
    """Real cores of the cluster: a laptop's cluster may have more logical CPUs than that."""
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    return max(1, (os.cpu_count() or 1) * len(alive))
