"""The exported graphs compute what torch computes, for any batch, and the index holds every picture."""

import dataclasses
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from eagleray.actors.serving.describing import describe_corpora
from eagleray.actors.serving.exporting import ExportOptions, export_bundle
from eagleray.actors.serving.indexing import open_splits, sample_rows
from eagleray.pipelines.bundle import EMBEDDING, GRAPH_INPUTS, Lineage, load_bundle, open_graph
from eagleray.pipelines.reading import CorpusReader
from eagleray.workflows.errors import EaglerayError

LINEAGE = Lineage(run_id="run", checkpoint="c" * 64, corpus="d" * 64)
OPTIONS = ExportOptions(tolerance=1e-4, check_rows=8, batch_rows=4, described_rows=16)


@pytest.fixture(scope="module")
def rows(corpus_folder):
    return sample_rows(open_splits(corpus_folder), 8)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_every_batch_size_agrees_with_torch(bundle_folder, model, rows, size):
    image, tokens, mel = (torch.from_numpy(rows[k][:size]) for k in ("image", "tokens", "mel"))
    token_mask, mel_mask = (torch.from_numpy(rows[k][:size]) for k in ("token_mask", "mel_mask"))
    with torch.no_grad():
        expected = {
            "image": model.embed_image(image),
            "text": model.embed_text(tokens, token_mask),
            "speech": model.embed_speech(mel, mel_mask),
        }
        logits = model.classify(image)
    bundle = load_bundle(bundle_folder)
    valid = rows["present"][:size, 2]
    for modality, vectors in expected.items():
        ours = bundle.embed_batch(modality, {name: array[:size] for name, array in rows.items()})
        keep = valid if modality == "speech" else np.ones(size, bool)
        np.testing.assert_allclose(ours[keep], vectors.numpy()[keep], atol=1e-4)
    (ours,) = open_graph(bundle_folder / "image.onnx").run(["class_logits"], {"image": rows["image"][:size]})
    np.testing.assert_allclose(ours, logits.numpy(), atol=1e-4)


def test_the_signature_frees_the_batch_and_fixes_the_rest(bundle_folder):
    info = load_bundle(bundle_folder).info
    assert set(info.graphs) == {"image", "text", "speech", "evidence", "step"}
    for name, graph in info.graphs.items():
        for tensor in (*graph.inputs, *graph.outputs):
            assert isinstance(tensor.shape[0], str)
            assert all(isinstance(dim, int) for dim in tensor.shape[1:])
        if name in GRAPH_INPUTS:
            assert graph.outputs[0].name == EMBEDDING
            assert graph.outputs[0].shape[1] == info.embed_dim
        assert 0 <= graph.max_difference <= 1e-4
        assert graph.rows_checked >= 2


def test_a_graph_too_far_from_torch_is_refused(model, corpus_folder, tmp_path):
    strict = dataclasses.replace(OPTIONS, tolerance=1e-12)
    with pytest.raises(EaglerayError, match="away from torch") as caught:
        export_bundle(model, corpus_folder, tmp_path, LINEAGE, strict)
    assert "--set STAGE.tolerance" in caught.value.remedy
    assert not (tmp_path / "bundle.json").exists()


def test_the_index_holds_every_picture_of_every_split(bundle_folder, corpus_folder, model):
    index = pq.read_table(bundle_folder / "index.parquet")
    readers = open_splits(corpus_folder)
    ids = [i for reader in readers.values() for i in reader.ids]
    assert index["id"].to_pylist() == sorted(ids)
    assert all(index["caption"].to_pylist())
    reader = next(iter(readers.values()))
    images = reader.examples(np.arange(len(reader)), None)["image"]
    with torch.no_grad():
        expected = model.embed_image(torch.from_numpy(images)).numpy()
    ours = {row["id"]: row["embedding"] for row in index.to_pylist()}
    np.testing.assert_allclose([ours[i] for i in reader.ids], expected, atol=1e-4)


def test_the_description_holds_lineage_and_preparation(bundle_folder, corpus_folder):
    described = json.loads((bundle_folder / "bundle.json").read_text())
    assert described["lineage"] == LINEAGE.model_dump()
    corpus = json.loads((corpus_folder / "corpus.json").read_text())
    assert described["preparation"] == corpus["preparation"]
    assert set(described["files"]) == {p.name for p in bundle_folder.iterdir()} - {"bundle.json"}


def test_a_corpus_is_described_by_all_its_texts(questions_folder, bundle_folder, tmp_path):
    reader = CorpusReader(questions_folder, "train")
    shutil.copyfile(questions_folder / "tokenizer.json", tmp_path / "tokenizer.json")
    for modality in GRAPH_INPUTS:
        shutil.copyfile(bundle_folder / f"{modality}.onnx", tmp_path / f"{modality}.onnx")
    found = describe_corpora([reader], tmp_path, 1000, 4)
    texts = reader.examples(np.arange(len(reader)), None)["token_mask"].sum()
    assert sum(found.tokens) == texts
    assert "speech" not in found.means
