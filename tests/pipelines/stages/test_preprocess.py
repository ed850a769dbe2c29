"""The whole stage on Ray Data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from eagleray.pipelines.contracts import QUARANTINE, TABLES, shard_paths
from eagleray.pipelines.reading import CorpusReader
from eagleray.pipelines.splitting import normalise
from eagleray.workflows.errors import EaglerayError

SPLITS = ("train", "val", "test")


def table(folder: Path, name: str, split: str) -> list[dict]:
    return [row for path in shard_paths(folder, name, split) for row in pq.read_table(path).to_pylist()]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def quarantine(folder: Path) -> dict[str, str]:
    return {row["path"]: row["reason"] for row in pq.read_table(folder / "quarantine.parquet").to_pylist()}


@pytest.mark.parametrize("run", [{"parallelism": 1, "block_rows": 64}, {"parallelism": 8, "block_rows": 3}])
def test_bytes_are_the_same_whatever_the_parallelism(corpus, build, source_stamps, run):
    assert contents(build(source_stamps.spec(**run)).folder) == contents(corpus.folder)


def test_shards_have_the_declared_schemas_and_are_sorted_by_id(corpus):
    for name, schema in TABLES.items():
        for split in SPLITS:
            for path in shard_paths(corpus.folder, name, split):
                assert pq.read_schema(path).equals(schema), (name, split)
            ids = [row["id"] for row in table(corpus.folder, name, split)]
            assert ids == sorted(ids)
    assert pq.read_schema(corpus.folder / "quarantine.parquet").equals(QUARANTINE)


def test_every_listed_picture_stands_in_exactly_one_split(corpus):
    ids = [row["id"] for split in SPLITS for row in table(corpus.folder, "pictures", split)]
    assert len(ids) == len(set(ids)) == 32


def test_no_caption_stands_in_two_splits(corpus):
    captions = {
        split: {
            normalise(row["text"])
            for row in table(corpus.folder, "captions", split)
            if row["language"] == "en"
        }
        for split in SPLITS
    }
    assert not captions["train"] & captions["test"]
    assert not captions["train"] & captions["val"]
    assert not captions["val"] & captions["test"]


def test_what_the_corpus_says_of_itself_is_what_it_holds(corpus):
    info = CorpusReader(corpus.folder, "train").info
    for split in SPLITS:
        counts = info.splits[split]
        assert counts.pictures == len(table(corpus.folder, "pictures", split))
        assert counts.captions == len(table(corpus.folder, "captions", split))
        assert counts.clips == len(table(corpus.folder, "speech", split))
    assert info.classes == ("living", "things")
    assert info.quarantined == {}
    assert corpus.facts["splits"] == json.loads((corpus.folder / "corpus.json").read_text())["splits"]


def test_only_the_wanted_languages_are_kept(corpus):
    languages = {row["language"] for split in SPLITS for row in table(corpus.folder, "captions", split)}
    assert languages == {"en", "es"}


def test_progress_runs_to_the_number_of_files(corpus):
    steps = [event["step"] for event in corpus.recorder.of("progress")]
    total = 32 + sum(len(table(corpus.folder, "speech", split)) for split in SPLITS)
    assert steps == sorted(steps)
    assert steps[-1] == total
    assert any("32 pictures" in event["message"] for event in corpus.recorder.of("log"))


def test_broken_files_go_to_quarantine_and_the_rest_goes_on(build, source_stamps, stamps):
    shutil.copytree(source_stamps.folder, stamps.folder, dirs_exist_ok=True)
    things = stamps.folder / "things"
    whole = (things / "drum/red.png").read_bytes()
    (things / "drum/red.png").write_bytes(whole[: len(whole) // 2])
    (things / "drum/blue.png").write_bytes(b"a text file named .png")
    (things / "drum/gold.svg").write_bytes(b"<svg xmlns='http://www.w3.org/2000/svg'")
    (things / "lemon/red_desc_fr.wav").write_bytes(b"")
    (things / "lemon/blue_desc_es.ogg").write_bytes(b"OggS, or so it says")
    (things / "star/red.txt").write_bytes(b"A red star.\nes.utf8=Una estrella roja \xff.")
    (things / "star/blue.txt").unlink()
    built = build(stamps.spec(error_budget=7))
    assert quarantine(built.folder) == {
        "things/drum/red.png": "truncated-image",
        "things/drum/blue.png": "not-an-image",
        "things/drum/gold.svg": "undecodable-svg",
        "things/lemon/red_desc_fr.wav": "empty-audio",
        "things/lemon/blue_desc_es.ogg": "undecodable-audio",
        "things/star/red.txt": "caption-not-utf8",
        "things/star/blue.txt": "missing-caption",
    }
    assert sum(built.facts["quarantined"].values()) == 7
    pictures, captions, speech = (
        {row["id"] for split in SPLITS for row in table(built.folder, name, split)} for name in TABLES
    )
    gone = {f"things/drum/{name}" for name in ("red.png", "blue.png", "gold.svg")}
    assert len(pictures) == 29
    assert not (pictures | captions | speech) & gone
    assert {"things/star/red.png", "things/star/blue.png"} <= pictures - captions
    for split in SPLITS:
        reader = CorpusReader(built.folder, split)
        batch = reader.examples(list_rows(reader), None)
        for i, record in enumerate(reader.ids):
            assert batch["present"][i].tolist() == [True, record in captions, record in speech]


def list_rows(reader: CorpusReader):
    import numpy as np

    return np.arange(len(reader))


def test_too_many_broken_files_stop_the_run_with_counts_and_examples(build, source_stamps, stamps):
    shutil.copytree(source_stamps.folder, stamps.folder, dirs_exist_ok=True)
    for path in sorted(stamps.folder.rglob("*.png"))[:12]:
        path.write_bytes(b"an error page")
    with pytest.raises(EaglerayError) as error:
        build(stamps.spec(block_rows=4))
    assert "not-an-image" in error.value.cause
    assert ".png: the content is no known picture" in error.value.cause
    assert "error_budget" in error.value.remedy


def test_too_many_bad_captions_stop_the_run_before_anything_is_decoded(build, source_stamps, stamps):
    shutil.copytree(source_stamps.folder, stamps.folder, dirs_exist_ok=True)
    for path in stamps.folder.rglob("*.txt"):
        path.write_bytes(b"\xff")
    with pytest.raises(EaglerayError, match="32 caption-not-utf8"):
        build(stamps.spec())


def test_a_full_disk_is_one_error_that_says_so(build, source_stamps, tmp_path):
    def prepare(output: Path) -> None:
        (output / "speech").mkdir()
        (output / "speech/train-00000.parquet").symlink_to("/dev/full")

    with pytest.raises(EaglerayError, match="No space left on device") as error:
        build(source_stamps.spec(), prepare)
    assert "free some space" in error.value.remedy


def test_an_empty_folder_is_an_error_that_names_it(build, stamps):
    with pytest.raises(EaglerayError) as error:
        build(stamps.spec())
    assert "no pictures" in error.value.cause
    assert error.value.where == str(stamps.folder)


def test_a_corpus_without_speech_is_a_corpus(build, source_stamps, stamps):
    shutil.copytree(
        source_stamps.folder, stamps.folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*_desc_*")
    )
    built = build(stamps.spec())
    reader = CorpusReader(built.folder, "train")
    batch = reader.examples(list_rows(reader), None)
    assert batch["present"].all(axis=0).tolist() == [True, True, False]
    assert not batch["present"][:, 2].any()
