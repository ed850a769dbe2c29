"""A bundle is loaded as it was written, or not at all."""

import shutil

import numpy as np
import pytest

from eagleray.pipelines.bundle import bundle_digest, load_bundle
from eagleray.workflows.errors import EaglerayError


@pytest.fixture
def copy(bundle_folder, tmp_path):
    return shutil.copytree(bundle_folder, tmp_path / "bundle")


@pytest.mark.parametrize("name", ["image.onnx", "tokenizer.json", "index.parquet"])
def test_a_changed_file_is_refused_by_name(copy, name):
    path = copy / name
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(EaglerayError, match=rf"{name} was changed") as caught:
        load_bundle(copy)
    assert caught.value.remedy


def test_a_missing_file_is_refused_by_name(copy):
    (copy / "text.onnx").unlink()
    with pytest.raises(EaglerayError, match=r"text.onnx is missing"):
        load_bundle(copy)


def test_a_folder_that_is_no_bundle_is_refused(tmp_path):
    with pytest.raises(EaglerayError, match="no bundle"):
        load_bundle(tmp_path)


def test_an_unreadable_description_is_refused(copy):
    (copy / "bundle.json").write_text("{}")
    with pytest.raises(EaglerayError, match=r"bundle.json can't be read"):
        load_bundle(copy)


def test_the_digest_covers_every_file(copy, bundle_folder):
    before = bundle_digest(copy)
    assert before == bundle_digest(bundle_folder)
    described = copy / "bundle.json"
    described.write_text(described.read_text().replace('"run_id": "', '"run_id": "other-'))
    assert bundle_digest(copy) != before


def test_a_row_has_the_same_embedding_alone_and_in_a_batch(loaded_bundle):
    rows = [loaded_bundle.prepare_text(text) for text in ("A frog.", "A boat on the sea.", "x" * 500)]
    together = loaded_bundle.embed("text", rows)
    alone = np.concatenate([loaded_bundle.embed("text", [row]) for row in rows])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)


def test_every_indexed_picture_finds_itself_first(loaded_bundle, corpus_pictures):
    for picture, data in corpus_pictures.items():
        (query,) = loaded_bundle.embed("image", [loaded_bundle.prepare_image(data)])
        first, second = loaded_bundle.search(query, 2)
        assert first.id == picture
        assert first.score == pytest.approx(1, abs=1e-4)
        assert first.score >= second.score


def test_search_ranks_and_cuts(loaded_bundle):
    (query,) = loaded_bundle.embed("text", [loaded_bundle.prepare_text("A frog.")])
    hits = loaded_bundle.search(query, 4)
    assert len(hits) == 4
    assert [h.score for h in hits] == sorted((h.score for h in hits), reverse=True)
    assert loaded_bundle.search(query, 1000)[:4] == hits
