"""Several sources as one corpus."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from eagleray.pipelines.reading import CorpusReader
from eagleray.pipelines.source import content_digest, open_source
from eagleray.pipelines.sources.mixture import SOURCE, MixtureSpec
from eagleray.pipelines.stages.preprocess import PreprocessSpec
from eagleray.workflows.fingerprint import identity

from ..conftest import PREPARATION, png, sound


@pytest.fixture
def spec(tmp_path: Path) -> MixtureSpec:
    """Pictures, and speech, with the same names in both."""
    for i in range(20):
        for part in ("p", "s"):
            (tmp_path / part).mkdir(exist_ok=True)
        (tmp_path / f"p/{i}.png").write_bytes(png((200, 10 * i, 0)))
        (tmp_path / f"s/{i}.wav").write_bytes(sound(200 + 10 * i, 0.2, "WAV"))
        (tmp_path / f"s/{i}.txt").write_text(f"Number {i}.")
    return MixtureSpec.model_validate(
        {
            "parts": {
                "pictures": {"kind": "pictures", "path": str(tmp_path / "p"), "category": "none"},
                "speech": {"kind": "transcripts", "path": str(tmp_path / "s")},
            }
        }
    )


def test_every_part_comes_below_its_name(spec, build):
    built = build(PreprocessSpec.model_validate({"source": spec, "preparation": PREPARATION}))
    ids: list[str] = []
    for split in ("train", "val", "test"):
        reader = CorpusReader(built.folder, split)
        batch = reader.examples(np.arange(len(reader)), None)
        for name, present in zip(reader.ids, batch["present"].tolist(), strict=True):
            assert present == ([True, False, False] if name.startswith("pictures/") else [False, True, True])
        ids += reader.ids
    expected = {f"pictures/{i}.png" for i in range(20)} | {f"speech/{i}.wav" for i in range(20)}
    assert set(ids) == expected
    assert len(ids) == len(expected)


def test_refusals_name_the_part(spec, tmp_path, build):
    (tmp_path / "p/3.png").write_bytes(b"no picture")
    (tmp_path / "s/4.txt").write_bytes(b"\xff")
    built = build(
        PreprocessSpec.model_validate({"source": spec, "preparation": PREPARATION, "error_budget": 2})
    )
    import pyarrow.parquet as pq

    rows = pq.read_table(built.folder / "quarantine.parquet").to_pylist()
    assert {row["address"]: row["reason"] for row in rows} == {
        "pictures/3.png": "not-an-image",
        "speech/4.txt": "caption-not-utf8",
    }


def test_its_digest_changes_with_any_part_and_not_with_a_place(spec, tmp_path):
    before = content_digest(SOURCE, spec, tmp_path)
    (tmp_path / "p").rename(tmp_path / "q")
    parts = {name: part.model_dump() for name, part in spec.parts.items()}
    moved = MixtureSpec.model_validate(
        {"parts": parts | {"pictures": parts["pictures"] | {"path": str(tmp_path / "q")}}}
    )
    assert content_digest(SOURCE, moved, tmp_path) == before
    assert identity(moved) == identity(spec)
    (tmp_path / "s/7.txt").write_text("Another.")
    assert content_digest(SOURCE, moved, tmp_path) != before


def test_a_spec_survives_being_written(spec):
    assert MixtureSpec.model_validate(spec.model_dump()) == spec
    assert MixtureSpec.model_validate_json(spec.model_dump_json()) == spec


def test_its_files_travel_to_workers(spec, tmp_path):
    files = pickle.loads(pickle.dumps(open_source(SOURCE, spec, tmp_path, print)))
    assert files.read("speech/7.txt") == b"Number 7."
    assert files.entries["pictures/0.png"].size_bytes == len(png((200, 0, 0)))


@pytest.mark.parametrize(
    "parts",
    [{}, {"a/b": {"kind": "pictures"}}, {"a": {"kind": "nothing"}}, {"a": {"kind": "mixture", "parts": {}}}],
)
def test_what_is_no_part_is_refused(parts):
    with pytest.raises(ValidationError):
        MixtureSpec.model_validate({"parts": parts})
