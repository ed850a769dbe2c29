"""What a corpus holds and what was refused, counted: lengths, sizes, languages, duplicates, leakage.

Records are read a batch at a time, and of each are kept a few numbers and hashes, some 150 bytes.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from .compute import pc
from .contracts import COLUMNS, PLACE
from .media.similarity import hash_clusters, perceptual_hash
from .media.text import normalise
from .reading import read_info
from .shards import MappedRows, open_split
from .spec import CorpusInfo

NUM_BARS = 24
NUM_EXAMPLES = 5
NEAR_BITS = 4
"""Bits in which the perceptual hashes of pictures that look the same may differ."""
NEAR_PICTURES = 20_000
"""Pictures that are looked at for such, spread evenly over the corpus."""

Hashes = NDArray[np.uint64]
Reals = NDArray[np.float64]


@dataclass(frozen=True)
class Summary:
    """A split's values of something: how many, percentiles, and how many in each bar."""

    count: int
    p5: float
    median: float
    p95: float
    largest: float
    bars: list[int]


@dataclass(frozen=True)
class Distribution:
    """How something is distributed. Bars are between neighbouring `edges`; the last takes what is over."""

    name: str
    unit: str
    edges: list[float]
    splits: dict[str, Summary]


@dataclass(frozen=True)
class Shared:
    """What is the same in several records.

    Attributes:
        kind: group, picture, caption, document or recording.
        different: values there are, by split.
        repeated: records that have a value of another one before them in their split, by split.
        across: values that stand in several splits.
        examples: ids of records that have such a value, each with its split.
    """

    kind: str
    different: dict[str, int]
    repeated: dict[str, int]
    across: int
    examples: list[list[str]]


@dataclass(frozen=True)
class Refusals:
    """What was refused for one reason; samples are rows of the quarantine."""

    reason: str
    operators: list[str]
    count: int
    broken: int
    samples: list[dict[str, Any]]


@dataclass(frozen=True)
class Inspection:
    """All of it. `intake` counts units and records; `near` are pictures that look the same across splits."""

    info: CorpusInfo
    intake: dict[str, int]
    refusals: list[Refusals]
    distributions: list[Distribution]
    languages: dict[str, dict[str, dict[str, int]]]
    categories: dict[str, dict[str, int]]
    shared: list[Shared]
    near_compared: int
    near: list[list[str]]
    samples: dict[str, list[dict[str, Any]]]

    @property
    def leaks(self) -> list[str]:
        """One sentence for each kind of thing that stands in several splits."""
        found = [
            f"{_several(one.across, one.kind)} in more than one split" for one in self.shared if one.across
        ]
        if self.near:
            found.append(
                f"{_several(len(self.near), 'group')} of pictures in several splits that look the same"
            )
        return found

    def numbers(self) -> dict[str, Any]:
        """All but the samples, as JSON has it."""
        from dataclasses import asdict

        found: dict[str, Any] = asdict(self)
        found |= {"info": self.info.model_dump(mode="json"), "leaks": self.leaks}
        del found["samples"]
        for one in found["refusals"]:
            del one["samples"]
        return found


def _several(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


@dataclass
class _Seen:
    """What is kept of the records of one split."""

    values: dict[str, list[Reals]] = field(default_factory=lambda: defaultdict(list))
    hashes: dict[str, list[Hashes]] = field(default_factory=lambda: defaultdict(list))
    rows: dict[str, list[NDArray[np.int64]]] = field(default_factory=lambda: defaultdict(list))
    languages: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    categories: Counter[str] = field(default_factory=Counter)
    near: list[tuple[int, int]] = field(default_factory=list)


UNITS = {
    "caption length": "tokens",
    "caption characters": "characters",
    "document length": "words",
    "document tokens": "tokens",
    "picture width": "pixels",
    "picture height": "pixels",
    "picture aspect": "width / height",
    "recording": "seconds",
    "boxes": "a picture",
    "findings": "a volume",
    "slices": "a volume",
    "slice distance": "mm",
    "group size": "records",
}


def inspect(folder: Path, num_samples: int = 12) -> Inspection:
    """Look a corpus through.

    Args:
        folder: the corpus's.
        num_samples: records shown of each split, and refusals of each reason.

    Raises:
        EaglerayError: when the folder holds no corpus of this version.
    """
    info = read_info(folder)
    rows = {split: open_split(folder, split) for split in info.splits}
    every = max(1, sum(map(len, rows.values())) // NEAR_PICTURES)
    seen = {split: _look(rows[split], info, every) for split in rows}
    names = list(dict.fromkeys(name for one in seen.values() for name in one.values))
    kinds = list(dict.fromkeys(kind for one in seen.values() for kind in one.hashes))
    near, compared = _near(seen, rows)
    return Inspection(
        info=info,
        intake=_intake(folder),
        refusals=_refusals(folder, num_samples),
        distributions=[
            _distribution(name, {split: one.values[name] for split, one in seen.items()}) for name in names
        ],
        languages={
            what: {split: dict(one.languages[what].most_common()) for split, one in seen.items()}
            for what in dict.fromkeys(what for one in seen.values() for what in one.languages)
        },
        categories={split: dict(one.categories.most_common()) for split, one in seen.items()},
        shared=[_shared(kind, seen, rows) for kind in kinds],
        near_compared=compared,
        near=near,
        samples={split: _samples(rows[split], num_samples) for split in rows},
    )


def _look(rows: MappedRows, info: CorpusInfo, every: int) -> _Seen:
    """Go through a split once."""
    seen = _Seen()
    first = 0
    for batch in rows.batches():
        _measure(batch, seen)
        _identify(batch, first, seen)
        if "image" in batch.schema.names:
            size = info.preparation.stored_image_size
            pixels = batch.column("image").field("pixels")
            for row in range(-first % every, batch.num_rows, every):
                if batch.column("image")[row].is_valid:
                    picture = np.frombuffer(pixels[row].as_buffer(), np.uint8).reshape(size, size, 3)
                    seen.near.append((perceptual_hash(picture), first + row))
        first += batch.num_rows
    sizes = np.unique(np.concatenate(seen.hashes["group"]), return_counts=True)[1] if first else np.zeros(0)
    seen.values["group size"].append(sizes.astype(np.float64))
    return seen


def _measure(batch: pa.RecordBatch, seen: _Seen) -> None:
    """Note lengths, sizes, languages and categories of some records."""
    names = batch.schema.names

    def note(name: str, values: Any) -> None:  # noqa: ANN401 - an Arrow array
        numbers = pc.cast(values, pa.float64()).drop_null().to_numpy(zero_copy_only=False)
        seen.values[name].append(numbers)

    if "captions" in names:
        captions = batch.column("captions").flatten()
        note("caption characters", pc.utf8_length(captions.field("text")))
        seen.languages["captions"].update(captions.field("language").to_pylist())
    if "tokens" in names:
        note("caption length", pc.list_value_length(batch.column("tokens").flatten()))
    if "text" in names:
        note("document length", pc.list_value_length(pc.utf8_split_whitespace(batch.column("text"))))
        note("document tokens", pc.list_value_length(batch.column("text_tokens")))
    if "language" in names:
        seen.languages["documents"].update(batch.column("language").drop_null().to_pylist())
    if "image" in names:
        there = batch.column("image").drop_null()
        width, height = there.field("width"), there.field("height")
        note("picture width", width)
        note("picture height", height)
        note("picture aspect", pc.divide(pc.cast(width, pa.float64()), height))
    if "speech" in names:
        clips = batch.column("speech").flatten()
        note("recording", clips.field("duration_s"))
        seen.languages["recordings"].update(clips.field("language").to_pylist())
    for column in ("boxes", "findings"):
        if column in names:
            note(column, pc.list_value_length(batch.column(column)))
    if "volume" in names:
        there = batch.column("volume").drop_null()
        note("slices", pc.list_element(there.field("shape"), 0))
        note("slice distance", pc.list_element(there.field("spacing_mm"), 0))
    if "category" in names:
        seen.categories.update(batch.column("category").drop_null().to_pylist())
    for column in batch.schema:
        if column.name not in (*COLUMNS, *PLACE.names) and (
            pa.types.is_floating(column.type) or column.type == pa.int32()
        ):
            note(column.name.replace("_", " "), batch.column(column.name))


def _identify(batch: pa.RecordBatch, first: int, seen: _Seen) -> None:
    """Note hashes of what should not be in two splits, with the rows it is in."""

    def note(kind: str, contents: Iterable[bytes | str | None], owners: Iterable[int]) -> None:
        pairs = [(_hash(one), row) for one, row in zip(contents, owners, strict=True) if one is not None]
        seen.hashes[kind].append(np.array([one for one, _ in pairs], np.uint64))
        seen.rows[kind].append(np.array([row for _, row in pairs], np.int64) + first)

    names = batch.schema.names
    note("group", batch.column("group").to_pylist(), range(batch.num_rows))
    if "image" in names:
        images = batch.column("image")
        pixels = images.field("pixels")
        valid = images.is_valid().to_pylist()
        contents = (pixels[row].as_buffer() if there else None for row, there in enumerate(valid))
        note("picture", contents, range(batch.num_rows))  # pyright: ignore[reportArgumentType]
    if "captions" in names:
        captions = batch.column("captions")
        texts = (normalise(one) for one in captions.flatten().field("text").to_pylist())
        note("caption", texts, pc.list_parent_indices(captions).to_pylist())
    if "text" in names:
        note("document", batch.column("text").to_pylist(), range(batch.num_rows))
    if "speech" in names:
        clips = batch.column("speech")
        mels = clips.flatten().field("mel")
        contents = (mels[row].as_buffer() for row in range(len(mels)))
        note("recording", contents, pc.list_parent_indices(clips).to_pylist())  # pyright: ignore[reportArgumentType]


def _hash(content: bytes | str) -> int:
    data = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    return int.from_bytes(blake2b(data, digest_size=8).digest())


def _distribution(name: str, values: Mapping[str, Sequence[Reals]]) -> Distribution:
    """Bars of equal width up to the 99th percentile of all splits; the last takes what is over."""
    found = {split: np.concatenate([np.zeros(0), *parts]) for split, parts in values.items()}
    everything = np.concatenate(list(found.values()))
    low, high = (
        (float(np.min(everything)), float(np.percentile(everything, 99))) if len(everything) else (0, 1)
    )
    whole = bool(len(everything)) and bool((everything == np.rint(everything)).all())
    if whole and high - low < NUM_BARS:
        edges = np.arange(low, max(high, low + 1) + 2) - 0.5
    else:
        edges = np.linspace(low, high if high > low else low + 1, NUM_BARS + 1)
    splits: dict[str, Summary] = {}
    for split, one in found.items():
        bars = np.histogram(np.clip(one, edges[0], edges[-1]), edges)[0]
        p5, median, p95 = np.percentile(one, [5, 50, 95]).tolist() if len(one) else (0.0, 0.0, 0.0)
        splits[split] = Summary(len(one), p5, median, p95, float(one.max(initial=0)), bars.tolist())
    return Distribution(name, UNITS.get(name, ""), edges.tolist(), splits)


def _shared(kind: str, seen: Mapping[str, _Seen], rows: Mapping[str, MappedRows]) -> Shared:
    """What of a kind is the same, within splits and across."""
    different: dict[str, Hashes] = {}
    repeated: dict[str, int] = {}
    for split, one in seen.items():
        hashes = np.concatenate([np.zeros(0, np.uint64), *one.hashes[kind]])
        owners = np.concatenate([np.zeros(0, np.int64), *one.rows[kind]])
        pairs = np.unique(np.stack([hashes, owners.astype(np.uint64)]), axis=1)  # once in a record
        different[split] = np.unique(pairs[0])
        repeated[split] = pairs.shape[1] - len(different[split])
    values, counts = np.unique(np.concatenate(list(different.values())), return_counts=True)
    across = values[counts > 1]
    examples: list[list[str]] = []
    for value in across[:NUM_EXAMPLES]:
        example: list[str] = []
        for split, one in seen.items():
            for hashes, owners in zip(one.hashes[kind], one.rows[kind], strict=True):
                here = owners[hashes == value]
                if len(here):
                    example += [f"{_id(rows[split], int(here[0]))} ({split})"]
                    break
        examples.append(example)
    sizes = {split: len(one) for split, one in different.items()}
    return Shared(kind, sizes, repeated, len(across), examples)


def _near(seen: Mapping[str, _Seen], rows: Mapping[str, MappedRows]) -> tuple[list[list[str]], int]:
    """Ids of pictures in different splits that look the same, or are; and how many were compared."""
    all_hashes = np.array([one for split in seen.values() for one, _ in split.near], np.uint64)
    places = [(split, row) for split, one in seen.items() for _, row in one.near]
    if not len(all_hashes):
        return [], 0
    unique, codes = np.unique(all_hashes, return_inverse=True)
    labels = hash_clusters(unique, NEAR_BITS)[codes]
    order = np.argsort(labels, kind="stable")
    found: list[list[str]] = []
    for members in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1):
        splits = {places[i][0]: places[i] for i in members.tolist()}
        if len(splits) > 1:
            found.append([f"{_id(rows[split], row)} ({split})" for split, row in splits.values()])
    return found, len(all_hashes)


def _id(rows: MappedRows, row: int) -> str:
    return rows.take(np.array([row]), ["id"])["id"][0].as_py()


def _intake(folder: Path) -> dict[str, int]:
    """Sums of what became of every unit."""
    table = pq.read_table(folder / "intake.parquet", columns=["records", "kept", "refused"])
    sums = {name: int(pc.sum(table[name]).as_py() or 0) for name in table.schema.names}
    left_out = sums["records"] - sums["kept"] - sums["refused"]
    return {"units": table.num_rows, **sums, "left_out": left_out}


def _refusals(folder: Path, num_samples: int) -> list[Refusals]:
    """The quarantine by reason, the most frequent first; samples are drawn by a hash of their place."""
    counts: Counter[str] = Counter()
    broken: Counter[str] = Counter()
    operators: dict[str, set[str]] = defaultdict(set)
    samples: dict[str, list[tuple[int, int, dict[str, Any]]]] = defaultdict(list)
    number = 0
    for batch in pq.ParquetFile(folder / "quarantine.parquet").iter_batches(256):
        for row in batch.to_pylist():
            number += 1
            reason = row["reason"]
            counts[reason] += 1
            broken[reason] += not row["wanted"]
            operators[reason].add(row["operator"])
            drawn = (-_hash(f"{row['id']} {row['address']}"), number, row)
            if len(samples[reason]) < num_samples:
                heapq.heappush(samples[reason], drawn)
            elif num_samples:
                heapq.heappushpop(samples[reason], drawn)
    return [
        Refusals(
            reason,
            sorted(operators[reason]),
            count,
            broken[reason],
            [row for *_, row in sorted(samples[reason], key=lambda one: one[1])],
        )
        for reason, count in counts.most_common()
    ]


def _samples(rows: MappedRows, num_samples: int) -> list[dict[str, Any]]:
    """Records spread evenly over a split."""
    count = min(num_samples, len(rows))
    chosen = np.linspace(0, len(rows) - 1, count).astype(np.int64) if count else np.zeros(0, np.int64)
    shown = [name for name in rows.schema.names if name not in (*PLACE.names, "tokens", "text_tokens")]
    return rows.take(chosen, shown).to_pylist()
