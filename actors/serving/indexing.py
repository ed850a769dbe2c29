"""The pictures of a corpus: rows to check graphs on, and the index that searches go through."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ...models.spec import MODALITIES
from ...pipelines.bundle import EMBEDDING, Arrays, open_graph
from ...pipelines.index import INDEX, INDEX_SCHEMA
from ...pipelines.reading import CorpusReader
from ...workflows.errors import EaglerayError


def open_splits(corpus: Path, marks: Sequence[str] = (), compares: bool = False) -> dict[str, CorpusReader]:
    """Open every split of a corpus that has records, to read what is marked and compared, too."""
    readers: dict[str, CorpusReader] = {}
    for split in ("train", "val", "test"):
        reader = CorpusReader(corpus, split, marks, compares)
        if len(reader):
            readers[split] = reader
    return readers


def sample_rows(
    readers: Mapping[str, CorpusReader], num_rows: int, modalities: Sequence[str] = MODALITIES
) -> Arrays:
    """Read rows, spread over a split, of which at least two have each of some modalities."""
    places = [MODALITIES.index(one) for one in modalities]
    for reader in readers.values():
        rows = np.unique(np.linspace(0, len(reader) - 1, num_rows).astype(np.int64))
        batch = reader.examples(rows, None)
        if (batch["present"].sum(axis=0)[places] >= 2).all():
            return batch
    raise EaglerayError(
        f"no split has two records with {', '.join(modalities)} to check the exported graphs on",
        "export a model of a larger corpus, or raise the stage's check_rows",
    )


def write_index(
    readers: Mapping[str, CorpusReader],
    bundle: Path,
    batch_rows: int,
    progress: Callable[[int, int], None],
) -> int:
    """Embed all pictures with the bundle's image graph, write `index.parquet`, and return the width."""
    graph = open_graph(bundle / "image.onnx")
    pictures = {split: _pictures(reader) for split, reader in readers.items()}
    total = sum(len(rows) for rows in pictures.values())
    tables: list[pa.Table] = []
    done = 0
    for split, reader in readers.items():
        for start in range(0, len(pictures[split]), batch_rows):
            rows = pictures[split][start : start + batch_rows]
            images = reader.examples(rows, None)["image"]
            vectors = np.asarray(graph.run([EMBEDDING], {"image": images})[0])
            tables.append(_describe(reader, rows, vectors))
            done += len(rows)
            progress(done, total)
    index = pa.concat_tables(tables).sort_by("id")
    pq.write_table(index, bundle / INDEX)
    return len(index["embedding"][0])


def _pictures(reader: CorpusReader) -> NDArray[np.int64]:
    """Rows of all pictures, each once: of a record that describes it, if there is one."""
    asks = ["answer"] if "answer" in reader.info.columns else []
    table = reader.table(np.arange(len(reader)), ["id", "image", *asks])
    found: dict[str, tuple[bool, str, int]] = {}
    for row, record in enumerate(table.to_pylist()):
        if record["image"] is not None:
            place = record["image"]["address"]
            mine = record.get("answer") is not None, record["id"], row
            found[place] = min(found.get(place, mine), mine)
    return np.array(sorted(row for *_, row in found.values()), np.int64)


def _describe(reader: CorpusReader, rows: NDArray[np.int64], vectors: NDArray[np.float32]) -> pa.Table:
    """Join the embeddings (N, E) of rows with what is known of them."""
    reference = reader.info.preparation.caption_languages[0]
    columns: dict[str, list[Any]] = {name: [] for name in INDEX_SCHEMA.names}
    for record in reader.table(rows, ["id", "category", "captions", "image"]).to_pylist():
        captions = {caption["language"]: caption["text"] for caption in record["captions"]}
        columns["id"].append(record["id"])
        columns["caption"].append(captions.get(reference, ""))
        columns["category"].append(record["category"])
        columns["path"].append(record["image"]["address"])
    return pa.table(columns | {"embedding": list(vectors)}, schema=INDEX_SCHEMA)
