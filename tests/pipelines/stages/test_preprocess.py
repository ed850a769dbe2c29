"""The whole stage on Ray Data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from eagleray.pipelines.contracts import INTAKE, QUARANTINE, stored_schema
from eagleray.pipelines.media.text import normalise
from eagleray.pipelines.reading import CorpusReader
from eagleray.pipelines.shards import open_split
from eagleray.workflows.errors import EaglerayError

SPLITS = ("train", "val", "test")


def table(folder: Path, split: str) -> list[dict]:
    rows = open_split(folder, split)
    return rows.column(*rows.schema.names).to_pylist()


def every(folder: Path) -> dict[str, dict]:
    """Every record of a corpus by its id."""
    return {row["id"]: row for split in SPLITS for row in table(folder, split)}


def quarantine(folder: Path) -> dict[str, str]:
    return {row["address"]: row["reason"] for row in pq.read_table(folder / "quarantine.parquet").to_pylist()}


@pytest.mark.parametrize("run", [{"parallelism": 1, "block_units": 64}, {"parallelism": 8, "block_units": 3}])
def test_bytes_are_the_same_whatever_the_parallelism(corpus, build, source_stamps, run):
    assert build(source_stamps.spec(**run)).contents == corpus.contents


def test_shards_have_the_declared_schema_and_are_in_the_order_of_the_source(corpus):
    expected = stored_schema(("id", "group", "category", "captions", "tokens", "image", "speech"), {})
    for split in SPLITS:
        found = open_split(corpus.folder, split).schema
        assert {field.name: field for field in found} == {field.name: field for field in expected}
        ids = [row["id"] for row in table(corpus.folder, split)]
        assert ids == sorted(ids)
    assert pq.read_schema(corpus.folder / "quarantine.parquet").equals(QUARANTINE)
    assert pq.read_schema(corpus.folder / "intake.parquet").equals(INTAKE)


def test_every_listed_picture_stands_in_exactly_one_split(corpus):
    ids = [row["id"] for split in SPLITS for row in table(corpus.folder, split)]
    assert len(ids) == len(set(ids)) == 32


def test_no_caption_stands_in_two_splits(corpus):
    captions = {
        split: {
            normalise(caption["text"])
            for row in table(corpus.folder, split)
            for caption in row["captions"]
            if caption["language"] == "en"
        }
        for split in SPLITS
    }
    assert not captions["train"] & captions["test"]
    assert not captions["train"] & captions["val"]
    assert not captions["val"] & captions["test"]


def test_what_the_corpus_says_of_itself_is_what_it_holds(corpus):
    info = CorpusReader(corpus.folder, "train").info
    for split in SPLITS:
        counts, rows = info.splits[split], table(corpus.folder, split)
        assert counts.records == counts.pictures == len(rows)
        assert counts.captions == sum(len(row["captions"]) for row in rows)
        assert counts.clips == sum(len(row["speech"]) for row in rows)
    assert info.classes == ("living", "things")
    assert info.quarantined == {}
    assert corpus.facts["splits"] == json.loads((corpus.folder / "corpus.json").read_text())["splits"]


def test_only_the_wanted_languages_are_kept(corpus):
    languages = {c["language"] for row in every(corpus.folder).values() for c in row["captions"]}
    assert languages == {"en", "es"}


def test_progress_runs_to_the_number_of_units(corpus):
    steps = [event["step"] for event in corpus.recorder.of("progress")]
    assert steps == sorted(steps)
    assert steps[-1] == 32
    assert any("32 units" in event["message"] for event in corpus.recorder.of("log"))


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
    records = every(built.folder)
    captions, speech = ({name for name, row in records.items() if row[c]} for c in ("captions", "speech"))
    gone = {f"things/drum/{name}" for name in ("red.png", "blue.png", "gold.svg")}
    assert len(records) == 29
    assert not records.keys() & gone
    assert {"things/star/red.png", "things/star/blue.png"} <= records.keys() - captions
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
        build(stamps.spec(block_units=4))
    assert "not-an-image" in error.value.cause
    assert ".png: the content is no known picture" in error.value.cause
    assert "error_budget" in error.value.remedy


def test_too_many_bad_captions_stop_the_run(build, source_stamps, stamps):
    shutil.copytree(source_stamps.folder, stamps.folder, dirs_exist_ok=True)
    for path in stamps.folder.rglob("*.txt"):
        path.write_bytes(b"\xff")
    with pytest.raises(EaglerayError, match="caption-not-utf8"):
        build(stamps.spec())


def test_a_full_disk_is_one_error_that_says_so(build, source_stamps, tmp_path):
    def prepare(output: Path) -> None:
        (output / "records").mkdir()
        (output / "records/train-00000.arrow").symlink_to("/dev/full")

    with pytest.raises(EaglerayError, match="No space left on device") as error:
        build(source_stamps.spec(), prepare)
    assert "free some space" in error.value.remedy


def test_an_empty_folder_is_an_error_that_names_it(build, stamps):
    with pytest.raises(EaglerayError) as error:
        build(stamps.spec())
    assert "no tuxpaint records" in error.value.cause
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
