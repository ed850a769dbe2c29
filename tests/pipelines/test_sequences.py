"""Long documents are several sequences, from which each can be put together again."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pyarrow as pa
import pytest

from eagleray.pipelines.contracts import shard_paths
from eagleray.pipelines.reading import CorpusReader
from eagleray.pipelines.sequences import Sequences
from eagleray.pipelines.spec import Sizes
from eagleray.pipelines.stages.preprocess import PreprocessSpec

LIMIT = 24


@pytest.fixture(scope="module")
def folder(build, tmp_path_factory):
    source, draw = tmp_path_factory.mktemp("documents"), np.random.default_rng(5)
    for number in range(150):
        words = draw.choice(["net", "sales", "rose", "fell", "by", "ten"], int(draw.integers(1, 120)))
        (source / f"{number:03d}.txt").write_text(" ".join(words))
    spec = {
        "source": {"kind": "documents", "path": str(source)},
        "preparation": {"max_tokens": 16, "vocab_size": 300},
    }
    return build(PreprocessSpec.model_validate(spec)).folder


def test_documents_can_be_put_together_again(folder):
    tables = [pa.ipc.open_file(str(path)).read_all() for path in shard_paths(folder, "train")]
    rows = pa.concat_tables(tables).select(["id", "text_tokens"]).to_pylist()
    expected = {row["id"]: row["text_tokens"] for row in rows}
    sequences = Sequences(CorpusReader(folder, "train"), LIMIT)
    numbers = np.random.default_rng(0).permutation(len(sequences))
    sizes = sequences.lengths(numbers, None)
    assert max(one.tokens for one in sizes) == LIMIT
    assert min(one.tokens for one in sizes) > 1
    batch = sequences.examples(numbers, None, Sizes(LIMIT, 0, 8))
    assert batch["token_mask"].sum(axis=1).tolist() == [one.tokens for one in sizes]
    parts: dict[str, dict[int, list[int]]] = defaultdict(dict)
    for one, tokens, mask in zip(
        sequences.ids_of(numbers), batch["tokens"], batch["token_mask"], strict=True
    ):
        name, _, start = one.partition("@")
        parts[name][int(start or 0)] = tokens[mask].tolist()
    for name, document in expected.items():
        starts = sorted(parts.pop(name).items())
        whole = starts[0][1]
        for start, tokens in starts[1:]:
            assert start == len(whole) - 1
            assert tokens[0] == whole[-1]
            whole = whole + tokens[1:]
        assert whole == document
    assert not parts


def test_records_with_captions_are_not_cut(corpus):
    reader = CorpusReader(corpus.folder, "train")
    sequences = Sequences(reader, 12)
    rows = np.arange(len(reader))
    seeds = rows.astype(np.uint64)
    assert len(sequences) == len(reader)
    assert sequences.ids_of(rows) == reader.ids_of(rows)
    sizes = sequences.lengths(rows, seeds)
    longest = Sizes(max(s.tokens for s in sizes), 0, max(s.frames for s in sizes))
    short, whole = sequences.examples(rows, seeds, longest), reader.examples(rows, seeds)
    for name, mask, size in (("tokens", "token_mask", longest.tokens), ("mel", "mel_mask", longest.frames)):
        assert np.array_equal(short[name], whole[name][:, :size])
        assert not whole[mask][:, size:].any()
    assert [one.frames for one in sizes] == whole["mel_mask"].sum(axis=1).tolist()
