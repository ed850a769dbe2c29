"""What the inputs of a corpus are like that a model was trained on, for `drift`."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ...models.spec import MODALITIES
from ...pipelines.bundle import EMBEDDING, GRAPH_INPUTS, Arrays, Modality, open_graph, split
from ...pipelines.reading import CorpusReader
from ...pipelines.statistics import Measure, Quantities, Statistics, describe

TRAINED = "train"


def describe_corpora(
    readers: Sequence[CorpusReader], bundle: Path, num_rows: int, batch_rows: int
) -> Statistics:
    """Describe each modality by the first of some training splits that has enough of it."""
    found = [describe_corpus(reader, bundle, num_rows, batch_rows) for reader in readers]
    by = {name: next((one for one in found if one.quantities[name]), found[0]) for name in GRAPH_INPUTS}
    return Statistics(
        tokens=by["text"].tokens,
        means={name: one.means[name] for name, one in by.items() if name in one.means},
        quantities={name: one.quantities[name] for name, one in by.items()},
    )


def describe_corpus(reader: CorpusReader, bundle: Path, num_rows: int, batch_rows: int) -> Statistics:
    """Measure rows, spread over a training split, by the graphs of a bundle.

    Pictures and recordings are taken as they are, and texts as training does, which draws their language.
    The rows are read twice, since what they are like is measured by their mean.
    """
    rows = np.unique(np.linspace(0, len(reader) - 1, min(num_rows, len(reader))).astype(np.int64))
    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    graphs = {modality: open_graph(bundle / f"{modality}.onnx") for modality in GRAPH_INPUTS}
    tokens = np.zeros(tokenizer.get_vocab_size(), np.int64)
    vectors: dict[Modality, list[NDArray[np.float32]]] = {modality: [] for modality in GRAPH_INPUTS}
    for modality, feed in _feeds(reader, rows, batch_rows):
        vectors[modality] += list(np.asarray(graphs[modality].run([EMBEDDING], dict(feed))[0]))
        if modality == "text":
            tokens += np.bincount(feed["tokens"][feed["token_mask"]], minlength=len(tokens))
    means = {modality: np.mean(found, axis=0).tolist() for modality, found in vectors.items() if found}
    measure = Measure(reader.info.preparation, tokenizer, tokens.tolist(), means, counted=True)
    measured: dict[Modality, list[Quantities]] = {modality: [] for modality in GRAPH_INPUTS}
    for modality, feed in _feeds(reader, rows, batch_rows):
        found = measured[modality]
        for row in split(feed):
            found.append(measure(modality, row, vectors[modality][len(found)]))
    return Statistics(
        tokens=tuple(tokens.tolist()),
        means=means,
        quantities={modality: describe(found) for modality, found in measured.items()},
    )


def _feeds(
    reader: CorpusReader, rows: NDArray[np.int64], batch_rows: int
) -> Generator[tuple[Modality, Arrays]]:
    """Rows of the corpus, as the graph of each modality takes those that have it."""
    for start in range(0, len(rows), batch_rows):
        some = rows[start : start + batch_rows]
        read, plain = reader.examples(some, some.astype(np.uint64)), reader.examples(some, None)
        batch = {**plain, "tokens": read["tokens"], "token_mask": read["token_mask"]}
        given = dict(zip(MODALITIES, plain["present"].T, strict=True))
        given["text"] = batch["token_mask"].any(axis=1)
        for modality, names in GRAPH_INPUTS.items():
            if given[modality].any():
                yield modality, {name: batch[name][given[modality]] for name in names}
