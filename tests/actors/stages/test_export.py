"""Stage `export`, from a checkpoint on disk to a bundle that loads."""

import subprocess
import sys

import numpy as np
import torch

from eagleray.actors.stages.export import ExportSpec, export
from eagleray.pipelines.bundle import load_bundle
from eagleray.workflows.artifacts import Bundle, Checkpoint, Corpus


def test_importing_the_stages_loads_nothing_heavy():
    code = (
        "import sys, eagleray.actors.stages.export, eagleray.actors.stages.serve;"
        "print({'ray', 'torch', 'onnx', 'onnxruntime', 'numpy', 'fastapi'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_kind_declares_what_it_takes_and_gives():
    assert (export.name, export.gives, export.cached) == ("export", Bundle, True)
    assert export.takes == {"checkpoint": Checkpoint, "corpus": Corpus}


def test_a_checkpoint_becomes_a_bundle(stage_context, checkpoint_folder, corpus_folder, model):
    checkpoint = Checkpoint(checkpoint_folder, "c" * 64, "f", {})
    corpus = Corpus(corpus_folder, "d" * 64, "f", {})
    facts = export.function(stage_context, ExportSpec(check_rows=4), checkpoint=checkpoint, corpus=corpus)
    bundle = load_bundle(stage_context.output)
    assert bundle.info.lineage.model_dump() == {
        "run_id": stage_context.run_id,
        "checkpoint": "c" * 64,
        "corpus": "d" * 64,
    }
    assert max(facts["max_difference"].values()) <= 1e-4
    assert set(facts["size_bytes"]) == set(bundle.info.files)
    assert bundle.statistics is not None
    assert set(bundle.statistics.means) == {"image", "text", "speech"}
    assert sum(bundle.statistics.tokens) > 100
    assert not any(bundle.statistics.quantities.values())  # of a corpus as small as this
    row = bundle.prepare_text("A frog.")
    with torch.no_grad():
        expected = model.embed_text(*(torch.from_numpy(row[k][None]) for k in ("tokens", "token_mask")))
    np.testing.assert_allclose(bundle.embed("text", [row]), expected.numpy(), atol=1e-4)
