"""Duplicates, within and across splits."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from eagleray.pipelines.operators.duplicates import (
    EXACT,
    NEAR_IMAGES,
    ExactDuplicatesSpec,
    NearDuplicateImagesSpec,
    NearDuplicateTextsSpec,
    digest,
    sign_text,
)
from eagleray.pipelines.shards import open_split
from eagleray.pipelines.spec import Preparation
from eagleray.pipelines.stages.preprocess import PreprocessSpec

from ..conftest import PREPARATION
from ..media.test_similarity import scene


def left_out(spec, splits: list[str], digests: list[bytes | None]) -> dict[int, str]:
    assert EXACT.decide is not None
    table = pa.table(
        {
            "id": [f"r{i}" for i in range(len(splits))],
            "split": splits,
            "picture_digest": pa.array(digests, pa.binary()),
        }
    )
    return {one.position: one.message for one in EXACT.decide(spec, table)}


def test_what_is_evaluated_on_is_kept():
    splits = ["train", "val", "test", "train", "train", "test"]
    digests = [b"a", b"a", b"a", b"b", b"b", None]
    assert left_out(ExactDuplicatesSpec(), splits, digests) == {
        0: "r2 in test is the same",
        1: "r2 in test is the same",
        4: "r3 in train is the same",
    }
    assert left_out(ExactDuplicatesSpec(across="within-split"), splits, digests) == {
        4: "r3 in train is the same"
    }


@given(
    st.lists(st.tuples(st.sampled_from(["train", "val", "test"]), st.sampled_from([b"a", b"b", b"c", None])))
)
def test_one_of_each_is_left_and_never_in_a_split_that_is_learned_from_when_another_is_not(rows):
    splits, digests = [split for split, _ in rows], [digest for _, digest in rows]
    gone = left_out(ExactDuplicatesSpec(), splits, digests)
    for value in {b"a", b"b", b"c"} & set(digests):
        (kept,) = [i for i, found in enumerate(digests) if found == value and i not in gone]
        alike = [split for split, found in zip(splits, digests, strict=True) if found == value]
        assert splits[kept] == next(split for split in ("test", "val", "train") if split in alike)
    assert all(digests[row] is not None for row in gone)


@pytest.mark.parametrize("text", [None, "", " \n"])
def test_a_record_without_text_is_compared_with_none(text):
    apply = sign_text(NearDuplicateTextsSpec(), Preparation())
    assert apply({"text": text}, lambda *args, **kwargs: None) == {"text_minhash": None}
    apply = digest(ExactDuplicatesSpec(of="text"), Preparation())
    assert apply({"text": text}, lambda *args, **kwargs: None) == {"text_digest": None}


def test_within_splits_a_picture_of_another_split_joins_none():
    """The second looks like the first and the third, which don't look like each other."""
    table = pa.table(
        {
            "id": ["a", "b", "c"],
            "split": ["train", "test", "train"],
            "perceptual_hash": pa.array([0, 0b1111, 0b11111111], pa.uint64()),
        }
    )
    assert NEAR_IMAGES.decide is not None
    gone = {
        across: [one.position for one in NEAR_IMAGES.decide(NearDuplicateImagesSpec(across=across), table)]
        for across in ("keep-held-out", "within-split")
    }
    assert gone == {"keep-held-out": [0, 2], "within-split": []}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(24):
        scene(i).save(folder / f"{i:02d}.png")
    (folder / "copy.png").write_bytes((folder / "03.png").read_bytes())
    buffer = io.BytesIO()
    scene(5, 200).resize((150, 150)).save(buffer, "JPEG", quality=60)
    (folder / "small.jpg").write_bytes(buffer.getvalue())
    Image.open(folder / "07.png").point(lambda value: min(255, int(value * 1.1))).save(folder / "bright.png")
    return folder


def test_planted_duplicates_are_left_out_of_a_corpus_with_the_one_that_was_kept(pictures, build):
    spec = {
        "source": {"kind": "pictures", "path": str(pictures)},
        "preparation": PREPARATION.model_copy(update={"stored_image_size": 64}),
        "operators": [{"kind": "exact-duplicates"}, {"kind": "near-duplicate-images"}],
        "splits": {"train": 0.6, "val": 0.2, "test": 0.2},
    }
    built = build(PreprocessSpec.model_validate(spec))
    rows = pq.read_table(built.folder / "quarantine.parquet").to_pylist()
    pairs = {
        (frozenset((row["id"], row["message"].split()[0])), row["operator"], row["wanted"]) for row in rows
    }
    assert pairs == {
        (frozenset(("03.png", "copy.png")), "exact-duplicates", True),
        (frozenset(("05.png", "small.jpg")), "near-duplicate-images", True),
        (frozenset(("07.png", "bright.png")), "near-duplicate-images", True),
    }
    assert built.facts["quarantined"] == {"exact-duplicate": 1, "near-duplicate-image": 2}
    assert sum(len(open_split(built.folder, split)) for split in ("train", "val", "test")) == 24
