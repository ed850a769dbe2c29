"""Small corpora of real files, and a stage context that records events."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image, ImageDraw

from eagleray.pipelines.spec import Preparation
from eagleray.pipelines.stages.preprocess import PreprocessSpec, preprocess
from eagleray.workflows.artifacts import Artifact, Corpus
from eagleray.workflows.stage import StageContext

NOUNS = ["frog", "rose", "truck", "lemon", "drum", "star", "house", "shoe"]
COLOURS = {"red": (220, 30, 30), "blue": (30, 60, 220), "green": (20, 160, 60), "gold": (230, 180, 20)}
SPANISH = dict(
    zip(NOUNS, ["rana", "rosa", "camión", "limón", "tambor", "estrella", "casa", "zapato"], strict=True)
)


def png(colour: tuple[int, int, int] = (220, 30, 30), size: tuple[int, int] = (40, 30)) -> bytes:
    """A PNG with transparency: a disc on nothing."""
    picture = Image.new("RGBA", size)
    ImageDraw.Draw(picture).ellipse(
        (4, 4, size[0] - 5, size[1] - 5), fill=(*colour, 255), outline=(0, 0, 0, 255)
    )
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def svg(colour: tuple[int, int, int] = (220, 30, 30)) -> bytes:
    """An SVG whose size is in points."""
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" width="30pt" height="60pt" viewBox="0 0 30 60">'
        f'<rect x="5" y="10" width="20" height="40" fill="rgb{colour}"/></svg>'
    ).encode()


def sound(pitch_hz: float, seconds: float, file_format: str, sample_rate: int = 22_050) -> bytes:
    """A stereo tone."""
    wave = 0.5 * np.sin(2 * np.pi * pitch_hz * np.arange(int(seconds * sample_rate)) / sample_rate)
    buffer = io.BytesIO()
    soundfile.write(buffer, np.stack([wave, wave], axis=1), sample_rate, format=file_format)
    return buffer.getvalue()


@dataclass
class Stamps:
    """A folder of stamps, as Tux Paint's package lays them out."""

    folder: Path

    def add(self, name: str, files: dict[str, bytes]) -> None:
        """Write `name` + suffix for each suffix."""
        for suffix, content in files.items():
            path = self.folder / f"{name}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def fill(self) -> Stamps:
        """Write 32 whole records; two of three have speech, some in two languages."""
        for i, noun in enumerate(NOUNS):
            for j, (colour, rgb) in enumerate(COLOURS.items()):
                number = i * len(COLOURS) + j
                captions = f"A {colour} {noun}.\nes.utf8=Una {SPANISH[noun]} {colour}.\nde.utf8=Ein {noun}\n"
                files = {(".svg" if j == 3 else ".png"): svg(rgb) if j == 3 else png(rgb, (40 + i, 30 + j))}
                files[".txt"] = captions.encode()
                if number % 3:
                    files["_desc_es.ogg"] = sound(200 + 40 * number, 0.3 + 0.02 * number, "OGG")
                if number % 3 == 2:
                    files["_desc_fr.wav"] = sound(300 + 40 * number, 0.2, "WAV")
                self.add(f"{'living' if i < 2 else 'things'}/{noun}/{colour}", files)
        return self

    def spec(self, **fields: Any) -> PreprocessSpec:
        """A spec that prepares this folder."""
        source = {"kind": "tuxpaint", "path": str(self.folder), "digest": None}
        return PreprocessSpec.model_validate({"source": source, "preparation": PREPARATION, **fields})


PREPARATION = Preparation(
    image_size=16, stored_image_size=20, n_mels=12, max_frames=48, max_tokens=12, vocab_size=300,
    speech_languages=("es", "fr"),
)  # fmt: skip


@dataclass
class Recorder:
    """An `Emit` that keeps what it is told."""

    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def __call__(self, event: str, /, **fields: Any) -> None:
        self.events.append((event, fields))

    def of(self, event: str) -> list[dict[str, Any]]:
        return [fields for name, fields in self.events if name == event]


@dataclass
class Built:
    """A corpus that was built, with the facts and events of its stage."""

    folder: Path
    source: Path
    facts: dict[str, Any]
    recorder: Recorder

    @property
    def contents(self) -> dict[str, bytes]:
        """Every file of the corpus."""
        paths = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in paths}

    @property
    def num_prepared(self) -> int:
        """Units that were read, not taken over."""
        return max((event["total"] for event in self.recorder.of("progress")), default=0)


@pytest.fixture
def stamps(tmp_path: Path) -> Stamps:
    """An empty folder of stamps."""
    folder = tmp_path / "stamps"
    folder.mkdir()
    return Stamps(folder)


@pytest.fixture(scope="session")
def build(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Built]:
    """Run the stage on a spec."""

    def run(
        spec: PreprocessSpec,
        prepare: Callable[[Path], None] = lambda output: None,
        earlier: Built | None = None,
        scratch: Path | None = None,
        inputs: Mapping[str, Artifact] | None = None,
    ) -> Built:
        work = tmp_path_factory.mktemp("build")
        recorder = Recorder()
        for name in ("output", "scratch", "cache"):
            (work / name).mkdir()
        prepare(work / "output")
        before = Corpus(earlier.folder, "0" * 64, "1" * 64, {}) if earlier else None
        ctx = StageContext(
            "run", "corpus", "0" * 64, work / "output", scratch or work / "scratch", work / "cache", recorder,
            lambda: before,
        )  # fmt: skip
        facts = preprocess.function(ctx, spec, **(inputs or {}))
        assert facts is not None
        return Built(work / "output", Path(str(spec.source.path)), dict(facts), recorder)

    return run


@pytest.fixture(scope="session")
def source_stamps(tmp_path_factory: pytest.TempPathFactory) -> Stamps:
    """A folder of 32 whole records; read only."""
    return Stamps(tmp_path_factory.mktemp("stamps")).fill()


@pytest.fixture(scope="session")
def corpus(build: Callable[..., Built], source_stamps: Stamps) -> Built:
    """The corpus of 32 whole records."""
    return build(source_stamps.spec())
