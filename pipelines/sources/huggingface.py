"""Datasets of Hugging Face's `datasets`, as `save_to_disk` leaves them: Arrow streams."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Literal

from ..columns import BATCH_ROWS, ColumnsSpec, given_columns, read_batch, wanted_columns
from ..files import OUTSIDE, Files
from ..quarantine import Refusal, Refuse, Refused, link_outside
from ..source import Row, Source, Unit
from ..spec import Preparation

if TYPE_CHECKING:
    import pyarrow as pa


class HuggingfaceSpec(ColumnsSpec):
    """A dataset that `datasets` saved to disk; options say which column is what."""

    kind: Literal["huggingface"] = "huggingface"
    splits: tuple[str, ...] = ()
    """Splits that are taken, where the folder has several; all by default. The corpus is split anew."""


def list_units(spec: HuggingfaceSpec, files: Files) -> Iterator[Unit | Refusal]:
    """One unit for each Arrow file."""
    for path, entry in files.entries.items():
        folder = path.rpartition("/")[0]
        if not path.endswith(".arrow") or (spec.splits and folder.rpartition("/")[2] not in spec.splits):
            continue
        if path.rpartition("/")[2].startswith("cache-"):
            continue  # what a `map` left behind
        if entry.version == OUTSIDE:
            yield link_outside("huggingface", path)
        else:
            yield Unit(path, (path,))


def read(
    spec: HuggingfaceSpec, files: Files, unit: Unit, preparation: Preparation, refuse: Refuse
) -> Iterator[Row]:
    """The records of an Arrow stream, some rows at a time."""
    import pyarrow as pa

    (path,) = unit.files
    with files.open(path) as source:
        try:
            stream = pa.ipc.open_stream(source)
        except pa.ArrowException as error:
            raise Refused("corrupt-table", f"the Arrow stream can't be read: {error}") from error
        columns = wanted_columns(spec, stream.schema.names, path)
        names = _class_names(stream.schema, spec.category_column)
        first = 0
        while True:
            try:
                batch = stream.read_next_batch()
            except StopIteration:
                return
            except (pa.ArrowException, OSError) as error:
                raise Refused("corrupt-table", f"the Arrow stream breaks off: {error}") from error
            for start in range(0, batch.num_rows, BATCH_ROWS):
                rows = batch.slice(start, BATCH_ROWS).select(columns)
                for record in read_batch(spec, rows, path, first, refuse):
                    if names and record["category"] is not None:
                        record["category"] = names.get(record["category"])
                    yield record
                first += min(BATCH_ROWS, batch.num_rows - start)


def _class_names(schema: pa.Schema, column: str | None) -> Mapping[str, str]:
    """Number → name of the classes in a `ClassLabel` column; empty for any other."""
    described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    feature = described.get("info", {}).get("features", {}).get(column or "", {})
    names = feature.get("names", []) if isinstance(feature, dict) else []
    return {str(number): str(name) for number, name in enumerate(names)}


SOURCE = Source(
    spec=HuggingfaceSpec,
    summary="a dataset that Hugging Face's `datasets` saved to disk",
    columns=given_columns,
    list_units=list_units,
    read=read,
)
