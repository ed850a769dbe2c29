"""From a listing to a corpus's folder: split, decode, tokenize, write."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ..workflows.errors import EaglerayError
from ..workflows.stage import StageContext
from . import decoding
from .catalog import source_of
from .contracts import QUARANTINE
from .operators import text
from .quarantine import Quarantine
from .shards import ShardWriter, write_table
from .source import Listing
from .spec import SPLITS, CorpusInfo, SplitCounts
from .splitting import Placement, place

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from .stages.preprocess import PreprocessSpec

SECONDS_BETWEEN_REPORTS = 0.5


@dataclass(frozen=True)
class Record:
    """A listed record and where it goes."""

    id: str
    picture: str
    category: str
    captions: dict[str, str]
    speech: dict[str, str]
    placement: Placement


class Progress:
    """Counts decoded files and reports them now and then."""

    def __init__(self, ctx: StageContext, total: int) -> None:
        self._ctx = ctx
        self._total = total
        self._done = 0
        self._started = self._reported = time.monotonic()

    def advance(self, count: int) -> None:
        """Count `count` more files."""
        self._done += count
        now = time.monotonic()
        if now - self._reported >= SECONDS_BETWEEN_REPORTS or self._done == self._total:
            self._reported = now
            rate = self._done / max(now - self._started, 1e-9)
            self._ctx.progress(self._done, self._total, files_per_s=rate)


def write_corpus(ctx: StageContext, spec: PreprocessSpec, listing: Listing, folder: Path) -> CorpusInfo:
    """Write the corpus of a listing to `ctx.output`.

    Everything is in the order (split, id), and nothing depends on which task decoded what, so the
    bytes are the same whatever the parallelism.

    Raises:
        EaglerayError: when there is nothing to learn from, or more files are refused than the budget allows.
    """
    records = _records(listing, spec)
    if not records:
        raise EaglerayError(
            "the source holds no pictures", "check source.path: it must be the unpacked corpus", str(folder)
        )
    clips = _clips(records, spec.preparation.speech_languages)
    quarantine = Quarantine(spec.error_budget, num_files=2 * len(records) + clips.num_rows)
    ctx.log(f"listed {len(records)} pictures and {clips.num_rows} recordings")
    quarantine.add(listing.refusals)
    progress = Progress(ctx, len(records) + clips.num_rows)

    kept, pictures = _write_pictures(ctx, spec, records, folder, quarantine, progress)
    tokenizer, captions = _write_captions(ctx, spec, kept)
    whole = {record.id for record in kept}
    all_clips = clips.num_rows
    clips = clips.filter(pa.array([record in whole for record in clips["id"].to_pylist()], pa.bool_()))
    progress.advance(all_clips - clips.num_rows)  # a recording without its picture is not read
    speech = _write_speech(ctx, spec, kept, clips, folder, quarantine, progress)

    refused = [vars(one) for one in sorted(quarantine.refusals)]
    write_table(pa.Table.from_pylist(refused, schema=QUARANTINE), ctx.output / "quarantine.parquet")
    info = CorpusInfo(
        source=source_of(spec.source).name,
        source_digest=spec.source.digest,
        splits={
            split: SplitCounts(pictures=pictures[split], captions=captions[split], clips=speech[split])
            for split in SPLITS
        },
        classes=_classes(kept),
        vocab_size=tokenizer.get_vocab_size(),
        preparation=spec.preparation,
        quarantined=quarantine.counts(),
    )
    (ctx.output / "corpus.json").write_text(info.model_dump_json(indent=2) + "\n")
    return info


def _records(listing: Listing, spec: PreprocessSpec) -> list[Record]:
    """The listed records in the order (split, id)."""
    rows = listing.records.to_pylist(maps_as_pydicts="strict")
    reference = spec.preparation.caption_languages[0]
    captions = [row["captions"].get(reference) for row in rows]
    placements = place([row["id"] for row in rows], captions, spec.splits)
    records = [Record(**row, placement=placed) for row, placed in zip(rows, placements, strict=True)]
    return sorted(records, key=_order)


def _order(record: Record) -> tuple[int, str]:
    return SPLITS.index(record.placement.split), record.id


def _clips(records: Iterable[Record], languages: Sequence[str]) -> pa.Table:
    """`id`, `path`, `language` of every recording in a wanted language."""
    rows = [
        {"id": record.id, "path": record.speech[language], "language": language}
        for record in records
        for language in sorted(languages)
        if language in record.speech
    ]
    schema = pa.schema([("id", pa.string()), ("path", pa.string()), ("language", pa.string())])
    return pa.Table.from_pylist(rows, schema=schema)


def _classes(records: Iterable[Record]) -> tuple[str, ...]:
    return tuple(sorted({record.category for record in records}))


def _write_pictures(
    ctx: StageContext,
    spec: PreprocessSpec,
    records: Sequence[Record],
    folder: Path,
    quarantine: Quarantine,
    progress: Progress,
) -> tuple[list[Record], dict[str, int]]:
    """Decode and write the pictures; returns the records that have one, and rows by split."""
    known = {record.id: record for record in records}
    labels = {name: number for number, name in enumerate(_classes(records))}
    writer = ShardWriter(ctx.output, "pictures", spec.shard_rows)
    kept: list[Record] = []
    files = pa.table({"id": [one.id for one in records], "path": [one.picture for one in records]})
    for block in _decode(spec, files, decoding.decode_pictures, folder):
        quarantine.add(decoding.refusals(block, "image"))
        good = decoding.accepted(block)
        owners = [known[one] for one in good["id"].to_pylist()]
        kept += owners
        columns: dict[str, tuple[pa.DataType, list[Any]]] = {
            "category": (pa.string(), [one.category for one in owners]),
            "label": (pa.int32(), [labels[one.category] for one in owners]),
            "caption_group": (pa.int64(), [one.placement.group for one in owners]),
        }
        for name, (kind, values) in columns.items():
            good = good.append_column(pa.field(name, kind), pa.array(values, kind))
        _add(writer, good, owners)
        progress.advance(block.num_rows)
    writer.close()
    if not writer.counts["train"]:
        raise EaglerayError(
            f"no picture is left to train on, of {len(records)}",
            "give a larger corpus, or mend the refused files",
            str(folder),
        )
    ctx.log(f"decoded {len(kept)} pictures of {len(records)}")
    return kept, writer.counts


def _write_captions(
    ctx: StageContext, spec: PreprocessSpec, records: Sequence[Record]
) -> tuple[Tokenizer, dict[str, int]]:
    """Train the tokenizer on the training captions, then encode and write all; returns rows by split."""
    preparation = spec.preparation
    wanted = sorted(preparation.languages)
    seen = [
        record.captions[language]
        for record in records
        if record.placement.split == "train"
        for language in wanted
        if language in record.captions
    ]
    tokenizer = text.train_tokenizer(seen, preparation.vocab_size)
    tokenizer.save(str(ctx.output / "tokenizer.json"))
    writer = ShardWriter(ctx.output, "captions", spec.shard_rows)
    rows = [
        (record, language, record.captions[language])
        for record in records
        for language in wanted
        if language in record.captions
    ]
    table = pa.table(
        {
            "id": pa.array([record.id for record, _, _ in rows], pa.string()),
            "language": pa.array([language for _, language, _ in rows], pa.string()),
            "text": pa.array([caption for _, _, caption in rows], pa.string()),
            "tokens": pa.array(
                text.token_ids(tokenizer, [caption for _, _, caption in rows], preparation.max_tokens),
                pa.list_(pa.int32()),
            ),
        }
    )
    _add(writer, table, [record for record, _, _ in rows])
    writer.close()
    ctx.log(f"encoded {len(rows)} captions with {tokenizer.get_vocab_size()} tokens")
    return tokenizer, writer.counts


def _write_speech(
    ctx: StageContext,
    spec: PreprocessSpec,
    records: Sequence[Record],
    clips: pa.Table,
    folder: Path,
    quarantine: Quarantine,
    progress: Progress,
) -> dict[str, int]:
    """Decode and write the recordings; returns rows by split."""
    known = {record.id: record for record in records}
    writer = ShardWriter(ctx.output, "speech", spec.shard_rows)
    for block in _decode(spec, clips, decoding.decode_speech, folder):
        quarantine.add(decoding.refusals(block, "audio"))
        good = decoding.accepted(block)
        _add(writer, good, [known[one] for one in good["id"].to_pylist()])
        progress.advance(block.num_rows)
    writer.close()
    ctx.log(f"decoded {sum(writer.counts.values())} recordings of {clips.num_rows}")
    return writer.counts


def _decode(
    spec: PreprocessSpec, files: pa.Table, decode: decoding.Decode, folder: Path
) -> Iterable[pa.Table]:
    return decoding.run(files, decode, folder, spec.preparation, spec.parallelism, spec.block_rows)


def _add(writer: ShardWriter, rows: pa.Table, owners: Sequence[Record]) -> None:
    """Hand rows, sorted by split, to the writer split by split."""
    start = 0
    for split in SPLITS:
        count = sum(one.placement.split == split for one in owners)
        writer.add(split, rows.slice(start, count))
        start += count
