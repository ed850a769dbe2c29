"""Captions are judged by the model of a bundle, in the stage that prepares a corpus."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eagleray.pipelines.contracts import shard_paths
from eagleray.pipelines.spec import SPLITS
from eagleray.pipelines.stages.preprocess import PreprocessSpec, preprocess
from eagleray.workflows.artifacts import Bundle
from eagleray.workflows.errors import EaglerayError


@pytest.fixture
def folder(corpus_pictures, tmp_path) -> Path:
    """Pictures, each with a caption in two languages that the model reads and one in another."""
    place = tmp_path / "pictures"
    place.mkdir()
    rows: list[dict[str, str]] = []
    for number, content in enumerate(corpus_pictures.values()):
        (place / f"{number:02}.png").write_bytes(content)
        rows.append(
            {
                "path": f"{number:02}.png",
                "caption": f"A red thing, number {number}.",
                "tr": f"Kırmızı {number}",
            }
        )
    with (place / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["path", "caption", "tr"])
        writer.writeheader()
        writer.writerows(rows)
    return place


def run(make_context, folder, name, min_similarity, bundle, columns=(("en", "caption"), ("tr", "tr"))):
    spec = PreprocessSpec.model_validate(
        {
            "source": {
                "kind": "pictures",
                "path": str(folder),
                "captions": "captions.csv",
                "caption_columns": columns,
            },
            "preparation": {"image_size": 16, "stored_image_size": 20, "vocab_size": 300,
                            "caption_languages": ["en", "tr"], "speech_languages": []},
            "operators": [{"kind": "caption-similarity", "min_similarity": min_similarity}],
            "inputs": {"bundle": "export"},
        }
    )  # fmt: skip
    context = make_context(name)
    preprocess.function(context, spec, bundle=bundle)
    tables = [
        pa.ipc.open_file(str(path)).read_all() for one in SPLITS for path in shard_paths(context.output, one)
    ]
    return pa.concat_tables(tables).to_pylist(), pq.read_table(
        context.output / "quarantine.parquet"
    ).to_pylist()


def cosines(loaded_bundle, folder: Path) -> dict[str, float]:
    found: dict[str, float] = {}
    for number, path in enumerate(sorted(folder.glob("*.png"))):
        picture = loaded_bundle.embed("image", [loaded_bundle.prepare_image(path.read_bytes())])[0]
        text = loaded_bundle.embed("text", [loaded_bundle.prepare_text(f"A red thing, number {number}.")])[0]
        found[path.name] = float(picture @ text)
    return found


def test_captions_below_the_threshold_go_and_others_stay(make_context, folder, bundle_folder, loaded_bundle):
    expected = cosines(loaded_bundle, folder)
    threshold = float(np.median(list(expected.values())))
    bundle = Bundle(bundle_folder, "b" * 64, "f" * 64, {})
    rows, refused = run(make_context, folder, "both", threshold, bundle)
    assert {row["id"] for row in rows} == set(expected)
    far = {name for name, cosine in expected.items() if cosine < threshold}
    assert 0 < len(far) < len(expected)
    for row in rows:
        languages = [one["language"] for one in row["captions"]]
        assert languages == (["tr"] if row["id"] in far else ["en", "tr"])
        assert row["caption_similarity"] == pytest.approx(expected[row["id"]], abs=1e-5)
    assert {(one["address"], one["reason"], one["wanted"]) for one in refused} == {
        (name, "caption-unlike-picture", True) for name in far
    }

    rows, refused = run(make_context, folder, "english", threshold, bundle, (("en", "caption"),))
    assert {row["id"] for row in rows} == set(expected) - far
    assert {one["id"] for one in refused if one["whole"]} == far


def test_without_a_model_the_plan_says_what_is_missing():
    spec = PreprocessSpec.model_validate(
        {
            "source": {"kind": "pictures", "path": "/nowhere", "captions": "captions.csv"},
            "operators": [{"kind": "caption-similarity"}],
        }
    )
    assert preprocess.check is not None
    with pytest.raises(EaglerayError, match="given none"):
        preprocess.check("corpus", spec)
