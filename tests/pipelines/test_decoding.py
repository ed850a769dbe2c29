"""Decoding by Ray Data."""

from __future__ import annotations

import io
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import soundfile

from eagleray.pipelines import decoding
from eagleray.pipelines.operators import audio
from eagleray.pipelines.spec import Preparation

PREPARATION = Preparation(n_mels=12, max_frames=48, stored_image_size=20, image_size=16)


def dawdle(block: pa.Table, folder: Path, preparation: Preparation) -> pa.Table:
    """The earlier a block, the longer it takes."""
    time.sleep(0.6 - 0.3 * block["number"][0].as_py())
    return block


def test_blocks_come_back_in_order_though_later_ones_finish_first(ray_cluster, tmp_path):
    dawdle.__module__ = "__main__"  # so that the workers get the function itself: tests are no package
    files = pa.table({"number": list(range(3))})
    blocks = decoding.run(files, dawdle, tmp_path, PREPARATION, parallelism=3, block_rows=1)
    assert [block["number"].to_pylist() for block in blocks] == [[number] for number in range(3)]


def test_no_files_need_no_cluster(tmp_path):
    files = pa.table({"number": pa.array([], pa.int64())})
    assert list(decoding.run(files, dawdle, tmp_path, PREPARATION, None, 1)) == []


def test_a_file_that_cannot_be_read_is_a_row_with_a_reason(tmp_path):
    files = pa.table({"id": ["a", "b"], "path": ["gone.png", "."]})
    decoded = decoding.decode_pictures(files, tmp_path, PREPARATION)
    assert decoding.accepted(decoded).num_rows == 0
    assert [(one.path, one.reason, one.size_bytes) for one in decoding.refusals(decoded, "image")] == [
        ("gone.png", "unreadable-file", -1),
        (".", "unreadable-file", -1),
    ]


def test_a_recording_that_several_pictures_share_is_decoded_once(stamps, monkeypatch):
    buffer = io.BytesIO()
    soundfile.write(buffer, np.sin(np.arange(8000) / 5), 16_000, format="WAV")
    stamps.add("a/bee", {"_desc_es.wav": buffer.getvalue()})
    calls: list[int] = []
    read = audio.read
    monkeypatch.setattr(audio, "read", lambda *args: calls.append(1) or read(*args))
    path = "a/bee_desc_es.wav"
    files = pa.table({"id": ["a/bee.png", "a/bee.svg"], "path": [path, path], "language": ["es", "es"]})
    decoded = decoding.decode_speech(files, stamps.folder, PREPARATION)
    assert len(calls) == 1
    assert decoded["mel"][0] == decoded["mel"][1]
    assert decoded["id"].to_pylist() == ["a/bee.png", "a/bee.svg"]
    assert decoded["duration_s"][0].as_py() == 0.5


def test_a_picture_of_one_colour_is_refused(stamps):
    stamps.add("a/nothing", {".svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'})
    files = pa.table({"id": ["x"], "path": ["a/nothing.svg"]})
    (refusal,) = decoding.refusals(decoding.decode_pictures(files, stamps.folder, PREPARATION), "image")
    assert refusal.reason == "blank-image"
