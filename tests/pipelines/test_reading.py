"""Order and batches."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from tokenizers import Tokenizer

from eagleray.pipelines.contracts import MODALITIES
from eagleray.pipelines.media import audio, image, text
from eagleray.pipelines.order import rows_at
from eagleray.pipelines.reading import CorpusReader
from eagleray.pipelines.shards import open_split
from eagleray.pipelines.splitting import group_of
from eagleray.workflows.errors import EaglerayError


@pytest.fixture(scope="module")
def reader(corpus):
    return CorpusReader(corpus.folder, "train")


def records_of(corpus):
    """Record by id, as the shards have it."""
    rows = open_split(corpus.folder, "train")
    return {row["id"]: row for row in rows.column(*rows.schema.names).to_pylist()}


def tokens_of(corpus):
    """(Id, language) → tokens of the caption."""
    return {
        (record, caption["language"]): tokens
        for record, row in records_of(corpus).items()
        for caption, tokens in zip(row["captions"], row["tokens"], strict=True)
    }


def clips_of(corpus):
    """(Id, language) → recording."""
    return {
        (name, clip["language"]): clip for name, row in records_of(corpus).items() for clip in row["speech"]
    }


def test_a_batch_holds_what_was_prepared(corpus, reader):
    """Against the shards themselves, field by field."""
    batch = reader.examples(np.arange(len(reader)), None)
    tokenizer = Tokenizer.from_file(str(corpus.folder / "tokenizer.json"))
    records, clips = records_of(corpus), clips_of(corpus)
    groups: dict[int, str] = {}
    for i, record in enumerate(reader.ids):
        row = records[record]
        stored = np.frombuffer(row["image"]["pixels"], np.uint8).reshape(1, 20, 20, 3)
        assert np.array_equal(batch["image"][i], image.normalise(image.center(stored, 16))[0])
        assert reader.info.classes[batch["label"][i]] == row["category"]
        assert groups.setdefault(int(batch["group"][i]), group_of(row, "en")) == group_of(row, "en")
        said = next(caption["text"] for caption in row["captions"] if caption["language"] == "en")
        expected, mask = text.encode(tokenizer, [said], 12)
        assert np.array_equal(batch["tokens"][i], expected[0])
        assert np.array_equal(batch["token_mask"][i], mask[0])
        clip = clips.get((record, "es")) or clips.get((record, "fr"))
        assert batch["present"][i, MODALITIES.index("speech")] == (clip is not None)
        if clip is None:
            assert not batch["mel"][i].any()
            assert not batch["mel_mask"][i].any()
        else:
            mel = np.frombuffer(clip["mel"], np.float16).reshape(-1, 12).astype(np.float32)
            assert np.array_equal(batch["mel"][i], audio.pad(audio.normalise(mel), 48)[0])
            assert batch["mel_mask"][i].sum() == clip["frames"]
    assert len(set(groups.values())) == len(groups)


def test_what_serving_prepares_is_what_training_read(corpus, reader):
    """From the files' bytes, by the functions that serving calls, to the same arrays."""
    preparation = reader.info.preparation
    batch = reader.examples(np.arange(len(reader)), None)
    clips = clips_of(corpus)
    for i, record in enumerate(reader.ids):
        pixels = image.decode((corpus.source / record).read_bytes(), preparation.stored_image_size)
        assert np.array_equal(
            batch["image"][i], image.normalise(image.center(pixels[None], preparation.image_size))[0]
        )
        clip = clips.get((record, "es")) or clips.get((record, "fr"))
        if clip is not None:
            wave = audio.decode((corpus.source / clip["address"]).read_bytes(), preparation.sample_rate)
            mel, mask = audio.pad(audio.normalise(audio.log_mel(wave, preparation)), preparation.max_frames)
            assert np.array_equal(batch["mel"][i], mel)
            assert np.array_equal(batch["mel_mask"][i], mask)


@pytest.mark.parametrize("cuts", [[5], [1, 2, 9], list(range(1, 24))])
def test_ranks_that_take_slices_read_what_one_reader_reads(reader, cuts):
    rows, seeds = rows_at(3, len(reader), 120, 144)
    whole = reader.examples(rows, seeds)
    parts = [reader.examples(r, s) for r, s in zip(np.split(rows, cuts), np.split(seeds, cuts), strict=True)]
    for name, array in whole.items():
        assert np.array_equal(np.concatenate([part[name] for part in parts]), array), name


def test_seeds_vary_the_picture_the_language_and_the_text(corpus, reader):
    captions, clips = tokens_of(corpus), clips_of(corpus).keys()
    row = next(i for i, record in enumerate(reader.ids) if {(record, "es"), (record, "fr")} <= clips)
    record = reader.ids[row]
    batch = reader.examples(np.full(400, row), np.arange(400, dtype=np.uint64))
    read = [tokens[mask].tolist() for tokens, mask in zip(batch["tokens"], batch["token_mask"], strict=True)]
    english = sum(tokens == captions[record, "en"] for tokens in read)
    spanish = sum(tokens == captions[record, "es"] for tokens in read)
    assert english + spanish == 400
    # Spanish is spoken half the time and then its caption is taken half the time; French has no caption.
    assert spanish == pytest.approx(100, abs=35)
    lengths = set(batch["mel_mask"].sum(axis=1).tolist())
    assert len(lengths) == 2
    assert len(np.unique(batch["image"].reshape(400, -1), axis=0)) > 390


def test_a_transcript_is_in_the_language_of_the_speech_or_absent(corpus, reader):
    captions = tokens_of(corpus)
    batch = reader.examples(np.arange(len(reader)), None, transcript=True)
    for i, record in enumerate(reader.ids):
        tokens = batch["tokens"][i][batch["token_mask"][i]].tolist()
        spoken = batch["present"][i, MODALITIES.index("speech")]
        assert tokens == (captions[record, "es"] if spoken else [])
        assert batch["present"][i, MODALITIES.index("text")] == spoken


def test_a_text_in_the_language_of_the_speech_is_known_as_its_transcript(corpus, reader):
    captions, clips = tokens_of(corpus), clips_of(corpus).keys()
    row = next(i for i, record in enumerate(reader.ids) if (record, "es") in clips)
    record = reader.ids[row]
    batch = reader.examples(np.full(200, row), np.arange(200, dtype=np.uint64))
    read = [tokens[mask].tolist() for tokens, mask in zip(batch["tokens"], batch["token_mask"], strict=True)]
    spanish = np.array([tokens == captions[record, "es"] for tokens in read])
    assert batch["is_transcript"][spanish].all()
    assert spanish.any()
    assert not batch["is_transcript"][~spanish].any()


def test_a_named_caption_language_is_taken_always(corpus, reader):
    captions = tokens_of(corpus)
    rows = np.arange(len(reader))
    batch = reader.examples(rows, rows.astype(np.uint64), caption_language="es")
    for i, record in enumerate(reader.ids):
        assert batch["tokens"][i][batch["token_mask"][i]].tolist() == captions[record, "es"]


def test_fields_have_their_contracted_types(reader):
    batch = reader.examples(np.arange(3), np.arange(3, dtype=np.uint64))
    assert {name: (array.shape, array.dtype.name) for name, array in batch.items()} == {
        "image": ((3, 3, 16, 16), "float32"),
        "tokens": ((3, 12), "int64"),
        "token_mask": ((3, 12), "bool"),
        "mel": ((3, 48, 12), "float32"),
        "mel_mask": ((3, 48), "bool"),
        "is_transcript": ((3,), "bool"),
        "present": ((3, 3), "bool"),
        "label": ((3,), "int64"),
        "group": ((3,), "int64"),
    }


@pytest.mark.parametrize("seeds", [None, np.zeros(0, np.uint64)])
def test_no_rows_are_an_empty_batch(reader, seeds):
    batch = reader.examples(np.zeros(0, np.int64), seeds)
    assert {len(array) for array in batch.values()} == {0}
    assert batch["image"].shape[1:] == (3, 16, 16)


def test_a_folder_that_is_no_corpus_is_refused(tmp_path):
    with pytest.raises(EaglerayError, match="no corpus"):
        CorpusReader(tmp_path, "train")


def test_an_unknown_split_is_refused(corpus):
    with pytest.raises(EaglerayError) as error:
        CorpusReader(corpus.folder, "dev")
    assert "train" in error.value.remedy


def test_shards_are_read_as_one_table(corpus, build, source_stamps):
    many = build(source_stamps.spec(shard_bytes=1))
    one, cut = CorpusReader(corpus.folder, "train"), CorpusReader(many.folder, "train")
    rows = np.arange(len(one))
    for name, array in one.examples(rows, None).items():
        assert np.array_equal(array, cut.examples(rows, None)[name]), name
    assert pa.table({"id": one.ids}).equals(pa.table({"id": cut.ids}))
