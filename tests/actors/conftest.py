"""A tiny corpus made by the real preprocessing, a tiny real model, and the bundle of both."""

from __future__ import annotations

import io
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eagleray.models.multimodal import MultimodalModel
from eagleray.models.spec import AudioSpec, DecoderSpec, ModelSpec, TextSpec, VisionSpec
from eagleray.pipelines.ledger import Ledger, corpus_digest
from eagleray.pipelines.reading import read_info
from eagleray.pipelines.spec import Preparation
from eagleray.pipelines.stages.preprocess import PreprocessSpec, preprocess
from eagleray.workflows.stage import StageContext

from ..pipelines.conftest import Recorder, sound

NUM_PICTURES = 24
NOUNS = ("frog", "rose", "truck", "lemon", "drum", "star", "house", "shoe")
CATEGORIES = ("living", "things")
COLOURS = ("red", "blue", "green")
PREPARATION = Preparation(
    image_size=32, stored_image_size=36, n_mels=16, max_frames=64, max_tokens=16, vocab_size=300
)
MODEL = ModelSpec(
    vision=VisionSpec(image_size=32, window_size=4, embed_dim=16, depths=(2, 2), num_heads=(2, 4)),
    audio=AudioSpec(n_mels=16, max_frames=64, d_model=16, num_layers=2, num_heads=2),
    text=TextSpec(d_model=32, num_layers=2, num_heads=4, max_tokens=16),
    decoder=DecoderSpec(d_model=32, num_layers=2, num_heads=4),
    embed_dim=16,
)

TASKS = ("contrastive", "answer", "transcription", "classification")

MakeContext = Callable[[str], StageContext]


@pytest.fixture(scope="session")
def corpus_pictures() -> dict[str, bytes]:
    """Id → PNG of every picture of the corpus; no two are alike."""
    return {f"{CATEGORIES[i % 2]}/{i:02}.png": _png(i) for i in range(NUM_PICTURES)}


@pytest.fixture(scope="session")
def png() -> bytes:
    """A picture that is not in the corpus."""
    return _png(NUM_PICTURES)


@pytest.fixture(scope="session")
def wav() -> bytes:
    """Half a second of sound."""
    return sound(330, 0.5, "WAV")


@pytest.fixture(scope="session")
def corpus_folder(
    ray_cluster: None, corpus_pictures: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A corpus of captioned pictures, three of four with speech."""
    source, work = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("corpus")
    for i, (name, data) in enumerate(corpus_pictures.items()):
        path = source / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        colour, noun = COLOURS[i % len(COLOURS)], NOUNS[i % len(NOUNS)]
        caption = "A frog." if i == 0 else f"A {colour} {noun}."
        path.with_suffix(".txt").write_text(f"{caption}\nes.utf8=Un {noun} ({colour}).\n")
        if i % 4:
            path.with_name(f"{path.stem}_desc_es.wav").write_bytes(sound(150 + 20 * i, 0.3, "WAV"))
    spec = PreprocessSpec.model_validate(
        {
            "source": {"kind": "tuxpaint", "path": str(source), "digest": None},
            "preparation": PREPARATION,
        }
    )
    preprocess.function(_context(work, "corpus"), spec)
    return work / "corpus"


@pytest.fixture(scope="session")
def questions_folder(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of composed scenes with questions and answers, all in one split."""
    source, work = tmp_path_factory.mktemp("stamps"), tmp_path_factory.mktemp("questions")
    for i, noun in enumerate(NOUNS):
        (source / f"{noun}.png").write_bytes(_png(i))
        (source / f"{noun}.txt").write_text(f"A {noun}.\n")
    return _corpus(work, {"kind": "scenes", "path": str(source), "scenes": 12})


@pytest.fixture(scope="session")
def documents_folder(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of four texts of some hundred words, all in one split."""
    source, work = tmp_path_factory.mktemp("texts"), tmp_path_factory.mktemp("documents")
    for i in range(4):
        words = np.random.default_rng(i).choice([*NOUNS, *COLOURS, "the", "of"], 200 + 40 * i)
        (source / f"{i}.txt").write_text(" ".join(words))
    return _corpus(work, {"kind": "documents", "path": str(source)})


@pytest.fixture(scope="session")
def model(corpus_folder: Path) -> MultimodalModel:
    """A model for the corpus, at its random weights."""
    info = read_info(corpus_folder)
    torch.manual_seed(0)
    return MultimodalModel(MODEL, info.vocab_size, len(info.classes), TASKS).eval()


@pytest.fixture(scope="session")
def checkpoint_folder(
    corpus_folder: Path, model: MultimodalModel, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A checkpoint artifact's content: that model."""
    import torch.distributed.checkpoint as dcp

    from eagleray.actors.training.checkpoint import CheckpointInfo, write_artifact

    work = tmp_path_factory.mktemp("checkpoint")
    dcp.save(model.state_dict(), checkpoint_id=work / "trained" / "weights", no_dist=True)
    info = read_info(corpus_folder)
    ledger = Ledger(corpus=corpus_digest(corpus_folder), split="train", num_records=1, seed=0)
    (work / "trained" / "ledger.json").write_text(ledger.model_dump_json())
    described = CheckpointInfo(
        model=MODEL,
        tasks=TASKS,
        vocab_size=info.vocab_size,
        classes=info.classes,
        preparation=info.preparation,
        step=1,
    )
    (work / "artifact").mkdir()
    write_artifact(work / "artifact", work / "trained", corpus_folder, described)
    return work / "artifact"


@pytest.fixture(scope="session")
def bundle_folder(
    corpus_folder: Path, model: MultimodalModel, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """That model as a bundle; read only."""
    from eagleray.actors.serving.exporting import ExportOptions, export_bundle
    from eagleray.pipelines.bundle import Lineage

    folder = tmp_path_factory.mktemp("bundle")
    lineage = Lineage(run_id="run", checkpoint="c" * 64, corpus="d" * 64)
    export_bundle(model, corpus_folder, folder, lineage, ExportOptions(1e-4, 8, 4, 0))
    return folder


@pytest.fixture(scope="session")
def loaded_bundle(bundle_folder: Path):
    """That bundle in memory."""
    from eagleray.pipelines.bundle import load_bundle

    return load_bundle(bundle_folder)


@pytest.fixture(scope="module")
def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def make_context(tmp_path: Path) -> MakeContext:
    """Make a stage context with an empty output folder of that name."""
    return lambda name: _context(tmp_path, name)


@pytest.fixture
def stage_context(make_context: MakeContext) -> StageContext:
    """A stage context with an empty output folder."""
    return make_context("output")


def _context(work: Path, name: str) -> StageContext:
    for folder in (name, "scratch", "cache"):
        (work / folder).mkdir(exist_ok=True)
    return StageContext("run", name, "0" * 64, work / name, work / "scratch", work / "cache", Recorder())


def _corpus(work: Path, source: dict[str, object]) -> Path:
    fields = {"source": source, "preparation": PREPARATION, "splits": {"train": 1, "val": 0, "test": 0}}
    preprocess.function(_context(work, "corpus"), PreprocessSpec.model_validate(fields))
    return work / "corpus"


def _png(seed: int) -> bytes:
    """Six by six coloured squares."""
    squares = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(squares).resize((36, 36), Image.Resampling.NEAREST).save(buffer, "PNG")
    return buffer.getvalue()
