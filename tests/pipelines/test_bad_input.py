"""A corpus of 2,000 files of which 200 are broken, in 20 ways."""

from __future__ import annotations

import gzip
import io
import os
import struct
import subprocess
import sys
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from PIL import Image

from eagleray.pipelines.shards import open_split
from eagleray.pipelines.stages.preprocess import PreprocessSpec

from .conftest import PREPARATION, png, sound
from .volume_files import ct, encoded, slices

MEMORY_LIMIT_MB = 700
EACH = 10


def jpeg(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def huge_png() -> bytes:
    """A whole PNG of 40,000×40,000 black pixels: 1.6 GB decoded, 1 bit each in the file."""
    packer = zlib.compressobj(9)
    row = bytes(1 + 40_000 // 8)
    data = b"".join(packer.compress(row * 1000) for _ in range(40)) + packer.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 40_000, 40_000, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def bomb_in_png() -> bytes:
    """A small picture with a compressed comment of 256 MB."""
    whole = png()
    comment = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(256 << 20), 9))
    return whole[:33] + comment + whole[33:]


def wav(samples: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, 16_000, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


def three_hours() -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(3 * 3600 * 4000, np.int16), 4000, format="FLAC")
    return buffer.getvalue()


def corrupt_png(number: int) -> bytes:
    """Its header says other colours than its pixels have."""
    content = bytearray(png((number, 9, 9)))
    content[25] = 7
    return bytes(content)


def slice_of(series: str, spacing: tuple[float, float, float] = (2.0, 0.5, 0.5)) -> bytes:
    return encoded(slices(ct((1, 6, 7)), series=series, spacing=spacing)[0])


SVGZ_BOMB = gzip.compress(b"<svg xmlns='http://www.w3.org/2000/svg'>" + b" " * (64 << 20) + b"</svg>", 9)
NAN = np.full(1600, np.nan, np.float32)

BROKEN: dict[str, tuple[str, str, Callable[[int], bytes]]] = {
    # way → (ending of the file, reason, content)
    "pictures/cut-jpeg": (".jpg", "truncated-image", lambda i: jpeg(i)[: 700 + i]),
    "pictures/cut-png": (".png", "truncated-image", lambda i: png((i, 0, 0))[: 60 + i]),
    "pictures/text": (".png", "not-an-image", lambda i: b"an error page"),
    "pictures/empty": (".jpg", "empty-image", lambda i: b""),
    "pictures/huge": (".png", "image-too-large", lambda i, content=huge_png(): content),
    "pictures/svg-bomb": (".svgz", "image-too-large", lambda i: SVGZ_BOMB),
    "pictures/comment-bomb": (".png", "corrupt-image", lambda i, content=bomb_in_png(): content),
    "pictures/other-colours": (".png", "truncated-image", corrupt_png),
    "pictures/one-colour": (".png", "blank-image", lambda i: _one_colour(i)),
    "pictures/link": (".png", "link-outside", lambda i: b""),
    "speech/not-finite": (".wav", "not-finite-audio", lambda i: wav(NAN)),
    "speech/no-samples": (".wav", "empty-audio", lambda i: wav(NAN[:0])),
    "speech/three-hours": (".flac", "audio-too-long", lambda i, content=three_hours(): content),
    "speech/garbage": (".ogg", "undecodable-audio", lambda i: b"OggS" + os.urandom(500)),
    "texts/latin": (".txt", "text-not-utf8", lambda i: f"Ein schöner Text {i}".encode("latin-1")),
    "texts/binary": (".txt", "not-text", lambda i: b"MZ\0\0" + bytes([i])),
    "texts/no-pdf": (".pdf", "corrupt-pdf", lambda i: b"%PDF-1.7\nbroken"),
    "volumes/wrong-spacing": (".dcm", "wrong-spacing", lambda i: slice_of(f"1.3.{i}", (2.0, -0.5 * i, 0.5))),
}
IN_TARS = {"path-traversal": EACH, "duplicate-id": EACH}


def _one_colour(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (30, 30), (number, 200, 30)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whole: 1,000 pictures, 360 recordings, 230 texts, 10 volumes, 200 members of tars. Broken: 200."""
    root = tmp_path_factory.mktemp("bad")
    data = root / "data"
    (root / "secret.png").write_bytes(png())
    for part in ("pictures", "speech", "texts", "tars", "volumes"):
        (data / part).mkdir(parents=True)
    for i in range(1000):
        picture = png((i % 250, i // 250 * 60, 90), (40 + i % 7, 30)) if i % 2 else jpeg(i)
        (data / f"pictures/whole-{i}.{'png' if i % 2 else 'jpg'}").write_bytes(picture)
    for i in range(360):
        (data / f"speech/whole-{i}.wav").write_bytes(sound(100 + i, 0.1, "WAV"))
    for i in range(10):
        (data / f"volumes/whole-{i}.dcm").write_bytes(slice_of(f"1.2.{i}"))
    for i in range(230):
        (data / f"texts/whole-{i}.txt").write_text(f"Text {i} ist schön.", encoding="utf-8")
    for way, (ending, reason, content) in BROKEN.items():
        for i in range(EACH):
            path = data / f"{way}-{i}{ending}"
            if reason == "link-outside":
                path.symlink_to(root / "secret.png")
            else:
                path.write_bytes(content(i))
    lines = ["path,text", *(f"{path.name},Said." for path in sorted((data / "speech").iterdir()))]
    (data / "speech/table.csv").write_text("\n".join(lines))
    for i in range(EACH):
        with tarfile.open(data / f"tars/{i}.tar", "w") as archive:
            names = [f"{j}.png" for j in range(20)]
            for name in [*names[:10], "../../../evil.png", *names[10:], "3.png"]:
                content = png((i * 20, len(name), 7))
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return data


@pytest.fixture(scope="module")
def spec(folder: Path) -> PreprocessSpec:
    parts = {
        "pictures": {"kind": "pictures", "path": str(folder / "pictures")},
        "speech": {"kind": "transcripts", "path": str(folder / "speech"), "table": "table.csv"},
        "texts": {"kind": "documents", "path": str(folder / "texts")},
        "tars": {"kind": "webdataset", "path": str(folder / "tars")},
        "volumes": {"kind": "dicom", "path": str(folder / "volumes")},
    }
    source = {"kind": "mixture", "parts": parts}
    return PreprocessSpec.model_validate({"source": source, "preparation": PREPARATION, "error_budget": 200})


def listing(folder: Path) -> dict[str, tuple[int, float]]:
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime) for path in folder.rglob("*")}


def test_each_broken_file_is_refused_for_its_reason_and_each_whole_one_comes_through(build, folder, spec):
    assert len(BROKEN) + len(IN_TARS) == 20
    before = listing(folder.parent)
    built = build(spec)
    assert listing(folder.parent) == before  # nothing was written there
    assert not list(folder.parent.rglob("evil.png"))

    rows = pq.read_table(built.folder / "quarantine.parquet").to_pylist()
    assert all(row["whole"] and not row["wanted"] and row["message"] for row in rows)
    found = {row["address"]: row["reason"] for row in rows if not row["address"].startswith("tars/")}
    assert found == {
        f"{way}-{i}{ending}": reason for way, (ending, reason, _) in BROKEN.items() for i in range(EACH)
    }
    assert Counter(row["reason"] for row in rows if row["address"].startswith("tars/")) == IN_TARS
    assert len(rows) == 200

    ids = [
        name
        for split in ("train", "val", "test")
        for name in open_split(built.folder, split).column("id")["id"].to_pylist()
    ]
    expected = {f"pictures/whole-{i}.{'png' if i % 2 else 'jpg'}" for i in range(1000)}
    expected |= {f"speech/whole-{i}.wav" for i in range(360)} | {f"texts/whole-{i}.txt" for i in range(230)}
    expected |= {f"volumes/1.2.{i}" for i in range(10)}
    expected |= {f"tars/{i}.tar/{j}" for i in range(EACH) for j in range(20)}
    assert len(ids) == 1800
    assert set(ids) == expected

    intake = pq.read_table(built.folder / "intake.parquet").to_pydict()
    assert sum(intake["kept"]) == 1800
    assert sum(intake["records"]) == sum(intake["kept"]) + sum(intake["refused"])


PREPARE = """
import resource, sys, tempfile
from pathlib import Path

resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
from eagleray.pipelines import preparing
from eagleray.pipelines.catalog import source_of
from eagleray.pipelines.corpus import list_units
from eagleray.pipelines.preparing import Recipe
from eagleray.pipelines.source import open_source
from eagleray.pipelines.stages.preprocess import PreprocessSpec, chain_of

spec = PreprocessSpec.model_validate_json(sys.argv[1])
source = source_of(spec.source)
with tempfile.TemporaryDirectory() as cache:
    files = open_source(source, spec.source, Path(cache), print)
    recipe = Recipe(source, spec.source, files, chain_of(spec), spec.preparation)
    for block in preparing.prepare(list_units(recipe)[0], recipe):
        pass
status = Path("/proc/self/status").read_text()  # getrusage's is that of whoever began it
print(int(status.partition("VmHWM:")[2].split()[0]) // 1024)
"""


def test_memory_stays_under_its_limit(spec):
    """All of it in one process, as a task would read it."""
    done = subprocess.run(
        [sys.executable, "-c", PREPARE, spec.model_dump_json()], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-1]) < MEMORY_LIMIT_MB
