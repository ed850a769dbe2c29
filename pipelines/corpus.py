"""From a source to a corpus's folder: list, prepare what is new, decide about all of it, write.

The folder's bytes depend on the source's content and the spec alone: not on how many tasks prepared it, on
which machines, in how many attempts, or on what was taken over from an earlier corpus.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from ..workflows.errors import EaglerayError
from ..workflows.stage import StageContext
from . import preparing, tokens
from .compute import pc
from .contracts import COLUMNS, INTAKE, PLACE, QUARANTINE
from .dictionaries import LOUGHRAN_MCDONALD, loughran_mcdonald
from .intake import Holding, open_corpus, open_parts, write_parts
from .operator import LeftOut
from .packages import fetch_package
from .packing import PackWriter
from .preparing import END, REFUSAL, UNITS, Recipe
from .quarantine import Quarantine, Refusal
from .shards import ShardWriter, write_table
from .spec import SPLITS, CorpusInfo, SplitCounts
from .splitting import split_of

if TYPE_CHECKING:
    from .stages.preprocess import PreprocessSpec

SECONDS_BETWEEN_REPORTS = 0.5
READ_BYTES = 8 << 20
"""Of records that are read at once to be written."""
MOST_ROWS = 4096
NO_UNIT = bytes(16)


@dataclass(frozen=True)
class Catalogue:
    """The records of a source that are not refused, in order: `holding`, `position`, `unit`, `row`, `id`,
    `group`, `category`, `split`, and what operators decide by.
    """

    holdings: Sequence[Holding]
    table: pa.Table

    def read(self, columns: Sequence[str]) -> Iterator[tuple[pa.Table, pa.Table]]:
        """Columns of all records, some at a time, each with its part of the table."""
        size_bytes = sum(holding.rows.size_bytes for holding in self.holdings)
        mean = size_bytes // max(1, sum(len(holding.rows) for holding in self.holdings))
        at_once = max(1, min(MOST_ROWS, READ_BYTES // max(1, mean)))
        for start in range(0, self.table.num_rows, at_once):
            part = self.table.slice(start, at_once)
            holdings, positions = part["holding"].to_numpy(), part["position"].to_numpy()
            edges = [0, *(np.flatnonzero(np.diff(holdings)) + 1).tolist(), len(holdings)]
            rows = [
                self.holdings[holdings[first]].rows.take(positions[first:last], columns)
                for first, last in pairwise(edges)
            ]
            yield pa.concat_tables(rows), part


class Progress:
    """Counts prepared units and reports them now and then."""

    def __init__(self, ctx: StageContext, total: int) -> None:
        self._ctx = ctx
        self._total = total
        self._done = 0
        self._started = self._reported = time.monotonic()

    def advance(self, count: int) -> None:
        """Count `count` more units."""
        self._done += count
        now = time.monotonic()
        if now - self._reported >= SECONDS_BETWEEN_REPORTS or self._done == self._total:
            self._reported = now
            rate = self._done / max(now - self._started, 1e-9)
            self._ctx.progress(self._done, self._total, units_per_s=rate)


def write_corpus(
    ctx: StageContext, spec: PreprocessSpec, recipe: Recipe, digest: str, tokenizer_of: Path | None = None
) -> CorpusInfo:
    """Write the corpus of a source to `ctx.output`.

    Args:
        ctx: the stage's.
        spec: what is asked for.
        recipe: how records are prepared.
        digest: of the source's content.
        tokenizer_of: the corpus whose tokenizer is used; None to train one.

    Raises:
        EaglerayError: when there is nothing to learn from, or more is refused than a budget allows.
    """
    units, unlisted = list_units(recipe)
    if not units.num_rows:
        raise EaglerayError(
            f"the source holds no {recipe.source.name} records" + _first(unlisted),
            "check source.path and the source's options",
            recipe.files.shown,
        )
    quarantine = Quarantine(spec.error_budget, spec.error_budgets, units.num_rows + len(unlisted))
    quarantine.add(unlisted)
    ctx.log(f"listed {units.num_rows} units in {recipe.files.shown}")
    holdings = _prepare(ctx, spec, recipe, units, quarantine)
    found = _catalogue(holdings, units, recipe)
    kept, left_out = _decide(found, spec, recipe)
    refused = pa.concat_tables([_as_table(unlisted), *(one.refusals for one in holdings)])
    quarantine = Quarantine(spec.error_budget, spec.error_budgets, found.num_rows + refused.num_rows)
    refused = pa.concat_tables([refused, left_out])
    quarantine.add(Refusal(**row) for row in refused.drop_columns([*PLACE.names, "content"]).to_pylist())
    catalogue = Catalogue(holdings, kept)
    if not pc.any(pc.equal(kept["split"], "train")).as_py():
        raise EaglerayError(
            f"no record is left to train on, of {quarantine.num_records}",
            "give a larger corpus, or mend the refused files",
            recipe.files.shown,
        )

    tokenizer = _tokenizer(ctx, spec, recipe, catalogue, tokenizer_of)
    counts = _write_records(ctx, spec, recipe, catalogue, tokenizer)
    write_table(_ordered(refused, units), ctx.output / "quarantine.parquet")
    write_table(_intake(units, holdings, kept, left_out), ctx.output / "intake.parquet")
    named = "category" in kept.schema.names
    categories = pc.unique(kept["category"]).drop_null().to_pylist() if named else []
    info = CorpusInfo(
        source=recipe.source.name,
        source_digest=digest,
        columns=_stored(recipe).names,
        splits=counts,
        classes=tuple(sorted(categories)),
        vocab_size=tokenizer.get_vocab_size() if tokenizer else 0,
        preparation=spec.preparation,
        packing=spec.packing,
        quarantined=quarantine.counts(),
    )
    (ctx.output / "corpus.json").write_text(info.model_dump_json(indent=2) + "\n")
    return info


def list_units(recipe: Recipe) -> tuple[pa.Table, list[Refusal]]:
    """The source's units (`UNITS`), sorted by name, and what could not be listed."""
    columns: dict[str, list[Any]] = {name: [] for name in UNITS.names}
    refusals: list[Refusal] = []
    for unit in recipe.source.list_units(recipe.spec, recipe.files):
        if isinstance(unit, Refusal):
            refusals.append(unit)
            continue
        columns["key"].append(unit.key(recipe.files))
        columns["name"].append(unit.name)
        columns["files"].append(unit.files)
        columns["fields"].append(json.dumps(unit.fields, sort_keys=True, ensure_ascii=False))
    return pa.table(columns, UNITS).sort_by("name"), sorted(refusals)


def _prepare(
    ctx: StageContext, spec: PreprocessSpec, recipe: Recipe, units: pa.Table, quarantine: Quarantine
) -> list[Holding]:
    """Prepare the units that are not prepared yet; returns where the rows of all of them are."""
    folder = ctx.scratch / "parts"
    earlier = ctx.earlier()
    before = open_corpus(earlier.path) if earlier is not None else None
    todo = units
    for holding in (open_parts(folder), before):
        if holding is not None:
            todo = todo.filter(pc.invert(pc.is_in(todo["key"], holding.units["key"].combine_chunks())))
    if todo.num_rows < units.num_rows:
        ctx.log(f"{units.num_rows - todo.num_rows} of them are prepared already, {todo.num_rows} are not")
    progress = Progress(ctx, todo.num_rows)
    # Closed at once when something fails: Ray would end its executor at the next collection of garbage.
    with closing(preparing.run(todo, recipe, spec.parallelism, spec.block_units)) as blocks:
        for block in write_parts(blocks, folder):
            quarantine.add(
                Refusal(**row["refusal"])
                for row in block.filter(pc.equal(block["event"], REFUSAL)).select(["refusal"]).to_pylist()
            )
            progress.advance(pc.sum(pc.equal(block["event"], END)).as_py())
    holdings: list[Holding] = []
    wanted = units["key"].combine_chunks()
    for holding in (open_parts(folder), before):
        if holding is not None:
            holdings.append(holding.of(wanted))
            wanted = wanted.filter(pc.invert(pc.is_in(wanted, holdings[-1].units["key"].combine_chunks())))
    return holdings


def _catalogue(holdings: Sequence[Holding], units: pa.Table, recipe: Recipe) -> pa.Table:
    """The records of all holdings in the order of the units, with their split and small columns."""
    own = [name for operator, options in recipe.chain for name in operator.own(options)]
    names = ["id", "group", *(["category"] if "category" in recipe.schema.names else []), *own]
    parts: list[pa.Table] = []
    keys = units["key"].combine_chunks()
    for number, holding in enumerate(holdings):
        places = holding.places
        part = holding.rows.column(*names).take(places["position"])
        part = part.append_column("unit", places["unit"]).append_column("row", places["row"])
        part = part.append_column("position", places["position"])
        part = part.append_column("holding", pa.array([number] * places.num_rows, pa.int32()))
        parts.append(part.append_column("rank", pc.index_in(places["unit"], keys)))
    table = pa.concat_tables(parts).sort_by([("rank", "ascending"), ("row", "ascending")])
    return table.drop_columns("rank")


def _decide(table: pa.Table, spec: PreprocessSpec, recipe: Recipe) -> tuple[pa.Table, pa.Table]:
    """Give every record its split, and let the operators that must know all of them decide.

    Returns:
        The records that are kept, and those that aren't as rows of the quarantine.
    """
    groups = table["group"].combine_chunks().dictionary_encode()
    splits = pa.array([split_of(group, spec.splits) for group in groups.dictionary.to_pylist()], pa.string())
    table = table.append_column("split", splits.take(groups.indices))
    refused: list[pa.Table] = []

    def leave_out(found: Sequence[LeftOut], operator: str, wanted: bool) -> pa.Table:
        gone = table.take(pa.array([one.position for one in found], pa.int64()))
        ids = gone["id"].to_pylist()
        refusals = [
            Refusal(record, record, operator, one.reason, one.message, wanted)
            for record, one in zip(ids, found, strict=True)
        ]
        refused.append(_as_table(refusals, gone["unit"], gone["row"]))
        keep = np.ones(table.num_rows, np.bool_)
        keep[[one.position for one in found]] = False
        return table.filter(pa.array(keep))

    table = leave_out(_repeated_ids(table), "id", wanted=False)
    for operator, options in recipe.chain:
        if operator.decide is not None:
            seen = table.select(["id", "split", "group", *operator.own(options)])
            table = leave_out(list(operator.decide(options, seen)), operator.name, wanted=True)
    return table, pa.concat_tables(refused)


def _repeated_ids(table: pa.Table) -> list[LeftOut]:
    """Records whose id another one before them has."""
    ids = table["id"].combine_chunks().dictionary_encode().indices.to_numpy()
    _, first = np.unique(ids, return_index=True)
    again = np.setdiff1d(np.arange(len(ids)), first)
    message = "another record before it has the same id"
    return [LeftOut(int(position), "duplicate-id", message) for position in again]


def _tokenizer(
    ctx: StageContext, spec: PreprocessSpec, recipe: Recipe, catalogue: Catalogue, other: Path | None
) -> Tokenizer | None:
    """Write `tokenizer.json`, that of another corpus or one trained on the training split; None where there
    is no text.
    """
    columns = [name for name in tokens.TEXTS if name in recipe.schema.names]
    if not columns:
        return None
    written = ctx.output / "tokenizer.json"
    if other is not None:
        if not (other / written.name).is_file():
            raise EaglerayError(
                "the corpus whose tokenizer is to be used has none",
                "name one that holds text, or leave inputs.tokenizer out",
                ctx.stage,
            )
        shutil.copyfile(other / written.name, written)
        tokenizer = Tokenizer.from_file(str(written))
    else:
        tokenizer, num_texts = tokens.train(_training(catalogue, columns), spec.preparation.vocab_size)
        tokenizer.save(str(written))
        ctx.log(f"trained a tokenizer of {tokenizer.get_vocab_size()} tokens on {num_texts} texts")
    if spec.terms is not None:
        words: Collection[str] = ()
        if spec.terms.dictionary is not None:
            words = loughran_mcdonald(fetch_package(LOUGHRAN_MCDONALD, ctx.cache, ctx.log))
        before = tokenizer.get_vocab_size()
        tokenizer = tokens.extend(tokenizer, _training(catalogue, columns), spec.terms, words)
        tokenizer.save(str(written))
        ctx.log(f"added {tokenizer.get_vocab_size() - before} tokens for terms to {before}")
    return tokenizer


def _training(catalogue: Catalogue, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Columns of the training split's records, some rows at a time."""
    for rows, part in catalogue.read(columns):
        yield rows.filter(pc.equal(part["split"], "train"))


def _write_records(
    ctx: StageContext,
    spec: PreprocessSpec,
    recipe: Recipe,
    catalogue: Catalogue,
    tokenizer: Tokenizer | None,
) -> dict[str, SplitCounts]:
    """Write the shards; returns what each split has."""
    schema = _stored(recipe)
    writers = {split: ShardWriter(ctx.output, split, schema, spec.shard_bytes) for split in SPLITS}
    packers = {split: PackWriter(ctx.output, split, spec.packing) for split in SPLITS if spec.packing}
    counts = {split: Counter[str]() for split in SPLITS}
    for rows, part in catalogue.read(recipe.schema.names):
        if tokenizer is not None:
            rows = tokens.with_tokens(rows, tokenizer, spec.preparation)
        for split, writer in writers.items():
            mine = rows.filter(pc.equal(part["split"], split))
            writer.add(mine)
            counts[split].update(_counts(mine))
            if split in packers:
                packers[split].add(tokens.num_tokens(mine))
    for writer in writers.values():
        writer.close()
    for split, packer in packers.items():
        packer.close()
        counts[split]["packs"] = packer.num_packs
    ctx.log(f"wrote {catalogue.table.num_rows} records")
    return {split: SplitCounts.model_validate(found) for split, found in counts.items()}


def _counts(rows: pa.Table) -> dict[str, int]:
    """How much of each modality some records have."""
    found = {"records": rows.num_rows}
    for column, name in (("image", "pictures"), ("text", "documents"), ("volume", "volumes")):
        if column in rows.schema.names:
            found[name] = rows.num_rows - rows[column].null_count
    for column, name in (("captions", "captions"), ("speech", "clips")):
        if column in rows.schema.names:
            found[name] = pc.sum(pc.list_value_length(rows[column])).as_py() or 0
    return found


def _stored(recipe: Recipe) -> pa.Schema:
    """Schema of the shards: what was prepared, and the tokens of what is text."""
    schema = recipe.schema
    return pa.schema([*schema, *(COLUMNS[name] for name in tokens.token_columns(schema))])


def _as_table(refusals: Sequence[Refusal], unit: Any = None, row: Any = None) -> pa.Table:  # noqa: ANN401
    """Refusals as rows of the quarantine; without `unit` and `row`, of no unit."""
    columns = {name: [getattr(one, name) for one in refusals] for name in QUARANTINE.names[len(PLACE) :]}
    columns["unit"] = [NO_UNIT] * len(refusals) if unit is None else unit
    columns["row"] = [0] * len(refusals) if row is None else row
    return pa.table({name: columns[name] for name in QUARANTINE.names}, QUARANTINE)


def _ordered(refused: pa.Table, units: pa.Table) -> pa.Table:
    """The quarantine in an order that depends on what is in it only."""
    rank = pc.index_in(refused["unit"], units["key"].combine_chunks())
    keys = [
        ("rank", "ascending"),
        *((name, "ascending") for name in ("row", "address", "operator", "message")),
    ]
    return refused.append_column("rank", rank).sort_by(keys).drop_columns("rank")


def _intake(units: pa.Table, holdings: Sequence[Holding], kept: pa.Table, left_out: pa.Table) -> pa.Table:
    """What became of every unit."""
    records: dict[bytes, int] = {}
    for holding in holdings:
        records |= dict(zip(*(column.to_pylist() for column in holding.units.columns), strict=True))
    kept_of, left_out_of = (Counter(table["unit"].to_pylist()) for table in (kept, left_out))
    keys = units["key"].to_pylist()
    columns = {
        "unit": keys,
        "name": units["name"],
        "records": [records[key] for key in keys],
        "kept": [kept_of[key] for key in keys],
        "refused": [records[key] - kept_of[key] - left_out_of[key] for key in keys],
    }
    return pa.table(columns, INTAKE)


def _first(refusals: Sequence[Refusal]) -> str:
    return f": {refusals[0].address}: {refusals[0].message}" if refusals else ""
