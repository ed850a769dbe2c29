"""Reading a source's units and preparing their records, in parallel on Ray Data.

A task takes a block of units, reads each, and sends every record through the whole chain of operators
before the next is read, so that its memory does not depend on how large a unit is. What comes back are
rows: records, refusals, and a mark at the end of each unit. Tasks send them as they get them, since whoever
waited for their order would have to hold what other tasks made meanwhile; `corpus` puts them in order.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
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
LEAST_SHARE = 8
"""The smallest block is a task's share of the units over this."""
MAX_BLOCK_UNITS = 16_384
LIMITS_UPDATE_S = 0.05
BLOCK_ROWS = 2048
BLOCK_BYTES = 4 << 20
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
        cache: where fetched packages lie, on each machine its own.
    """

    source: Source
    spec: SourceSpec
    files: Files
    chain: tuple[tuple[Operator, OperatorSpec], ...]
    preparation: Preparation
    bundle: Path | None = None
    cache: Path | None = None

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
    """Prepare units (of `UNITS`) in parallel; yields blocks of `recipe.block_schema` as they come,
    each in the order of its units.

    Args:
        units: what to read.
        recipe: how.
        parallelism: tasks at once; None takes as many as the cores of the cluster's machines hold.
        block_units: units that a task reads; None begins with large blocks and ends with small ones.
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
    total = units.num_rows
    sizes = [block_units] * -(-total // block_units) if block_units else _sizes(total, tasks)
    blocks = [units.slice(start, end - start) for start, end in pairwise(accumulate(sizes, initial=0))]
    with warnings.catch_warnings():
        # Ray 2.60 warns of its own fields when it copies them.
        warnings.simplefilter("ignore", DeprecationWarning)
        context = ray.data.DataContext.get_current().copy()
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


def _sizes(num_units: int, tasks: int) -> list[int]:
    """Units of each block: ever smaller ones, so that tasks neither begin nor end all at once (guided
    self-scheduling: Polychronopoulos & Kuck 1987).
    """
    least = -(-num_units // (LEAST_SHARE * tasks))
    sizes: list[int] = []
    left = num_units
    while left > 0:
        sizes.append(min(left, MAX_BLOCK_UNITS, max(least, -(-left // (2 * tasks)))))
        left -= sizes[-1]
    return sizes


def prepare(units: pa.Table, recipe: Recipe) -> Iterator[pa.Table]:
    """Prepare units (of `UNITS`) in this process; yields blocks of `recipe.block_schema`."""
    block = _Block(recipe)
    source = recipe.source
    given = recipe.preparation, recipe.bundle, recipe.cache
    chain = [(one, one.begin(spec, *given)) for one, spec in recipe.chain]
    for key, unit in _units(units):
        reader = _UnitReader(unit, key, block, chain)
        rows = source.read(recipe.spec, recipe.files, unit, recipe.preparation, reader.refuse)
        yield from reader.read(rows, source.name)
    if not block.is_empty:
        yield block.take()


def _units(table: pa.Table) -> Iterator[tuple[bytes, Unit]]:
    """Units (of `UNITS`) with their keys. NumPy makes objects of a column faster than Arrow does of rows."""
    files = table["files"].combine_chunks()
    paths, ends = _objects(files.flatten()), files.offsets.to_numpy() - files.offsets[0].as_py()
    columns = (_objects(table[name]) for name in ("key", "name", "fields"))
    for (key, name, fields), (start, end) in zip(zip(*columns, strict=True), pairwise(ends), strict=True):
        yield key, Unit(name, tuple(paths[start:end]), json.loads(fields))


def _objects(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    return column.to_numpy(zero_copy_only=False).tolist()


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
    """Rows that wait to become an Arrow table, column by column."""

    def __init__(self, recipe: Recipe) -> None:
        self._schema = recipe.block_schema
        self._reference = recipe.preparation.caption_languages[0]
        self._givers = _givers(recipe)
        self._heavy = _heavy(recipe.schema)
        self._clear()

    @property
    def is_full(self) -> bool:
        """Whether it should be sent."""
        return len(self._events) >= BLOCK_ROWS or self._bytes >= BLOCK_BYTES

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to send."""
        return not self._events

    def add(self, unit: bytes, number: int, event: int, row: Row) -> None:
        """Add one row."""
        self._places.append((unit, number))
        self._events.append(event)
        for name, values in self._values.items():
            values.append(row.get(name))
        if event == RECORD:
            self._values["group"][-1] = self.group(row)
            self._bytes += sum([_size(row[name], inside) for name, inside in self._heavy if row.get(name)])

    def group(self, row: Row) -> str:
        """What no two splits may share."""
        return row.get("group") or group_of(row, self._reference)

    def take(self) -> pa.Table:
        """All rows as a table; empties it.

        Raises:
            EaglerayError: when a value is not what its column declares, with the record and who set it.
        """
        units, numbers = zip(*self._places, strict=True)
        given = {"unit": units, "row": numbers, "event": self._events, **self._values}
        columns: list[pa.Array] = []
        for field in self._schema:
            try:
                columns.append(pa.array(given[field.name], field.type))
            except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
                raise self._mismatch(field, error) from error
        self._clear()
        return pa.Table.from_arrays(columns, schema=self._schema)

    def _clear(self) -> None:
        self._places: list[tuple[bytes, int]] = []
        self._events: list[int] = []
        own = ("event", *PLACE.names)
        self._values: dict[str, list[Any]] = {name: [] for name in self._schema.names if name not in own}
        self._bytes = 0

    def _mismatch(self, field: pa.Field, error: Exception) -> EaglerayError:
        for record, value in zip(self._values["id"], self._values[field.name], strict=True):
            try:
                pa.array([value], field.type)
            except (pa.ArrowException, TypeError, ValueError, OverflowError):
                return EaglerayError(
                    f"{self._givers[field.name]} gave {field.name} = {repr(value)[:200]} to the record "
                    f"{record}, declared is {field.type}: {error}",
                    f"mend {self._givers[field.name]}",
                )
        raise error


def _heavy(schema: pa.Schema) -> list[tuple[str, tuple[str, ...]]]:
    """Columns that may hold many bytes, and for those of structs which of their fields do."""
    found: list[tuple[str, tuple[str, ...]]] = []
    for field in schema:
        kind = field.type.value_type if pa.types.is_list(field.type) else field.type
        if pa.types.is_struct(kind):
            inside = tuple(one.name for one in kind if pa.types.is_large_binary(one.type))
            found += [(field.name, inside)] * bool(inside)
        elif kind in (pa.string(), pa.binary()) and field.name not in (*PLACE.names, "id", "group"):
            found.append((field.name, ()))
    return found


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


def _size(value: Any, inside: tuple[str, ...]) -> int:  # noqa: ANN401 - any value of a heavy column
    """Bytes of what is large in a value; of one of the wrong type, which is told later, none."""
    try:
        if type(value) is list:
            return sum([_size(one, inside) for one in value])
        return sum([len(value[name]) for name in inside]) if inside else len(value)
    except (TypeError, KeyError):
        return 0


def _cores() -> int:
    """Real cores of the cluster: a laptop's cluster may have more logical CPUs than that."""
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    return max(1, (os.cpu_count() or 1) * len(alive))
