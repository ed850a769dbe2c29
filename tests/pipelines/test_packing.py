"""Packing documents: no token is lost or repeated, sequences are full, and readers find them."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eagleray.pipelines.contracts import pack_path, shard_paths
from eagleray.pipelines.packing import PackWriter, Piece, pack
from eagleray.pipelines.reading import CorpusReader
from eagleray.pipelines.spec import BOS, EOS, PAD, Packing
from eagleray.pipelines.stages.preprocess import PreprocessSpec, check
from eagleray.workflows.artifacts import Corpus
from eagleray.workflows.errors import EaglerayError

LENGTHS = st.lists(st.integers(0, 90), max_size=60)


@given(LENGTHS, st.integers(1, 40))
def test_every_token_stands_in_exactly_one_sequence(lengths, capacity):
    packs = pack(lengths, capacity)
    tokens = [(one.row, place) for pieces in packs for one in pieces for place in range(one.start, one.stop)]
    assert sorted(tokens) == [(row, place) for row, length in enumerate(lengths) for place in range(length)]
    assert all(0 < sum(one.stop - one.start for one in pieces) <= capacity for pieces in packs)


@given(LENGTHS, st.integers(1, 40))
def test_only_what_is_longer_than_a_sequence_is_cut(lengths, capacity):
    pieces = [one for pieces in pack(lengths, capacity) for one in pieces]
    for row, length in enumerate(lengths):
        assert sum(one.row == row for one in pieces) == -(-length // capacity)


@given(LENGTHS, st.integers(1, 40))
def test_no_two_sequences_would_fit_into_one(lengths, capacity):
    sizes = sorted(sum(one.stop - one.start for one in pieces) for pieces in pack(lengths, capacity))
    assert all(first + second > capacity for first, second in itertools.pairwise(sizes))


def test_real_lengths_leave_little_room():
    lengths = np.random.default_rng(0).lognormal(5.5, 1.0, 4096).astype(int).tolist()
    packs = pack(lengths, 2048)
    assert len(packs) <= -(-sum(lengths) // 2048) * 1.001 + 1


@pytest.mark.parametrize("window", [1, 7, 1000])
def test_windows_are_packed_one_by_one(tmp_path: Path, window: int):
    lengths = np.random.default_rng(1).integers(0, 60, 300).tolist()
    writer = PackWriter(tmp_path, "train", Packing(length=32, window=window))
    for part in np.array_split(np.array(lengths), 11):
        writer.add(part.tolist())
    writer.close()
    file = pa.ipc.open_file(str(pack_path(tmp_path, "train")))
    found = [[Piece(**one) for one in pieces] for pieces in file.read_all()["pieces"].to_pylist()]
    expected = [
        [Piece(start + one.row, one.start, one.stop) for one in pieces]
        for start in range(0, 300, window)
        for pieces in pack(lengths[start : start + window], 32)
    ]
    assert found == expected
    assert writer.num_packs == len(found)


# ── in a corpus ────────────────────────────────────────────────────────────────────────────────────


def write_documents(folder: Path, count: int) -> Path:
    words = ["net", "sales", "rose", "fell", "by", "ten", "per", "cent", "in", "the", "quarter", "naïve"]
    draw = np.random.default_rng(5)
    for number in range(count):
        size = int(draw.integers(3, 120))
        text = f"Report {number}: " + " ".join(draw.choice(words, size))
        (folder / f"{number:03d}.txt").write_text(text, encoding="utf-8")
    return folder


def spec_of(folder: Path, **fields: object) -> PreprocessSpec:
    source = {"kind": "documents", "path": str(folder)}
    preparation = {"max_tokens": 16, "vocab_size": 300}
    return PreprocessSpec.model_validate({"source": source, "preparation": preparation, **fields})


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_documents(tmp_path_factory.mktemp("documents"), 150)


@pytest.fixture(scope="module")
def packed(build, documents):
    return build(spec_of(documents, packing={"length": 64, "window": 32}))


def documents_of(folder: Path, split: str) -> list[list[int]]:
    tables = [pa.ipc.open_file(str(path)).read_all() for path in shard_paths(folder, split)]
    return pa.concat_tables(tables)["text_tokens"].to_pylist()


def test_documents_have_tokens_from_which_they_can_be_written_again(packed, documents):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(packed.folder / "tokenizer.json"))
    (table,) = [pa.ipc.open_file(str(path)).read_all() for path in shard_paths(packed.folder, "train")]
    assert table.num_rows == packed.facts["splits"]["train"]["documents"] > 90
    for row in table.select(["id", "text", "text_tokens"]).to_pylist():
        first, *tokens, last = row["text_tokens"]
        assert (first, last) == (BOS, EOS)
        assert tokenizer.decode(tokens).strip() == row["text"] == (documents / row["id"]).read_text("utf-8")


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_reading_packs_gives_every_document_once(packed, split):
    reader = CorpusReader(packed.folder, split)
    batch = reader.packed(np.arange(reader.num_packs))
    assert batch["tokens"].shape == batch["segment"].shape == batch["position"].shape
    assert (batch["tokens"][batch["segment"] == 0] == PAD).all()
    assert (batch["segment"] > 0).mean() > (0.9 if split == "train" else 0)
    pieces: list[tuple[int, list[int]]] = []
    for tokens, segment, position in zip(*(batch[k] for k in ("tokens", "segment", "position")), strict=True):
        for number in range(1, segment.max() + 1):
            here = segment == number
            assert (np.diff(position[here]) == 1).all()
            pieces.append((int(position[here][0]), tokens[here].tolist()))
    whole = documents_of(packed.folder, split)
    rests = [len(one) - start for one in whole for start in range(64, len(one), 64)]
    assert sorted(len(piece) for start, piece in pieces if start) == sorted(min(64, rest) for rest in rests)
    assert sorted(piece for start, piece in pieces if not start) == sorted(one[:64] for one in whole)


def test_a_document_is_the_text_of_a_record_without_a_caption(packed):
    reader = CorpusReader(packed.folder, "train")
    rows = np.arange(len(reader))
    documents = documents_of(packed.folder, "train")
    plain = reader.examples(rows, None)
    assert plain["present"][:, 1].all()
    assert not plain["present"][:, [0, 2]].any()
    longest = int(np.argmax([len(one) for one in documents]))
    for row, document in enumerate(documents):
        assert plain["tokens"][row][plain["token_mask"][row]].tolist() == document[:16]
    many = reader.examples(np.full(500, longest), np.arange(500, dtype=np.uint64))["tokens"].tolist()
    stretches = [documents[longest][start : start + 16] for start in range(len(documents[longest]) - 15)]
    assert all(one in stretches for one in many)
    assert stretches[0] in many
    assert stretches[-1] in many


def test_packs_are_the_same_however_a_corpus_came_about(build, packed, documents, tmp_path):
    write_documents(tmp_path, 150)
    (tmp_path / "149.txt").rename(tmp_path / "late")
    fields = {"packing": {"length": 64, "window": 32}}
    before = build(spec_of(tmp_path, **fields))
    (tmp_path / "late").rename(tmp_path / "149.txt")
    grown = build(spec_of(tmp_path, **fields, parallelism=1, block_units=9), earlier=before)
    assert grown.num_prepared == 1
    names = [name for name in packed.contents if name.startswith("packs/")]
    assert len(names) == 3
    assert all(grown.contents[name] == packed.contents[name] for name in names)


def test_another_corpus_lends_its_tokenizer(build, packed, tmp_path):
    (tmp_path / "new.txt").write_text("An entirely different subject: pulmonary nodules, " * 9)
    ours = build(spec_of(tmp_path, splits={"train": 1, "val": 0, "test": 0}))
    lent = build(
        spec_of(tmp_path, splits={"train": 1, "val": 0, "test": 0}),
        inputs={"tokenizer": Corpus(packed.folder, "d" * 64, "f" * 64, {})},
    )
    assert lent.contents["tokenizer.json"] == packed.contents["tokenizer.json"]
    assert lent.contents["tokenizer.json"] != ours.contents["tokenizer.json"]
    assert lent.facts["vocab_size"] == packed.facts["vocab_size"]


def test_a_corpus_without_a_tokenizer_lends_none(build, documents, tmp_path):
    with pytest.raises(EaglerayError, match="has none"):
        build(spec_of(documents), inputs={"tokenizer": Corpus(tmp_path, "d" * 64, "f" * 64, {})})


def test_packing_without_documents_is_refused_by_the_plan(source_stamps):
    with pytest.raises(EaglerayError, match="nothing to pack"):
        check("corpus", source_stamps.spec(packing={}))


def test_what_is_not_packed_says_so(build, corpus):
    reader = CorpusReader(corpus.folder, "train")
    assert reader.num_packs == 0
    with pytest.raises(EaglerayError, match="packed"):
        reader.packed(np.arange(0))
