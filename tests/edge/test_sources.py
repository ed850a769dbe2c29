"""Folders give each file once, the oldest first; cameras give the newest frame."""

from __future__ import annotations

import os
import time
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from edge_bundles import board, png
from files_server import files_server

from eagleray.edge import sources as sources_module
from eagleray.edge.queue import ResultQueue
from eagleray.edge.sources import CameraSource, FolderSource, open_source
from eagleray.workflows.errors import EaglerayError

FRAMES, RATE = 30, 10


@pytest.fixture
def queue(tmp_path):
    return ResultQueue(tmp_path / "q.db")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pictures").mkdir()
    return tmp_path / "pictures"


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    """Three seconds in which each frame is lighter than the one before; nothing is lost in it."""
    path = tmp_path_factory.mktemp("video") / "video.mkv"
    with av.open(path, "w") as container:
        stream = container.add_stream("ffv1", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "bgr0"
        for number in range(FRAMES):
            pixels = np.full((32, 48, 3), number * 8, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def drop(folder: Path, name: str, seed: int = 0, age_s: float = 0.0) -> None:
    (folder / name).write_bytes(png(board(seed)))
    moment = time.time() - age_s
    os.utime(folder / name, (moment, moment))


def taken(source, queue, count: int) -> list[str]:
    names = []
    for _ in range(count):
        picture = source.next(5)
        assert picture is not None
        names.append(picture.name)
        queue.put(f"{picture.of}", "line", picture.of)
    return names


def test_files_come_the_oldest_first_and_each_once(folder, queue):
    for name, age_s in (("b.png", 10), ("a.png", 5), ("c.png", 30)):
        drop(folder, name, age_s=age_s)
    (folder / ".hidden.png").write_bytes(b"")
    (folder / "below").mkdir()
    source = FolderSource(folder, queue)
    assert taken(source, queue, 3) == ["c.png", "b.png", "a.png"]
    assert source.next(0.5) is None
    drop(folder, "late.png")
    assert taken(source, queue, 1) == ["late.png"]
    assert FolderSource(folder, queue).next(0.5) is None


def test_a_file_that_was_changed_is_another(folder, queue):
    drop(folder, "a.png", age_s=10)
    source = FolderSource(folder, queue)
    taken(source, queue, 1)
    drop(folder, "a.png", seed=1)
    picture = source.next(5)
    assert picture is not None
    np.testing.assert_array_equal(picture.pixels(), board(1))


def test_a_file_that_is_still_written_is_waited_for(folder, queue):
    content = png(board())
    source = FolderSource(folder, queue)
    with (folder / "a.png").open("wb") as file:
        for start in range(0, len(content), len(content) // 4):
            file.write(content[start : start + len(content) // 4])
            file.flush()
            assert source.next(0.0) is None
    picture = source.next(5)
    assert picture is not None
    np.testing.assert_array_equal(picture.pixels(), board())


def test_a_folder_may_come_late(tmp_path, queue):
    source = FolderSource(tmp_path / "later", queue)
    assert source.next(0.1) is None
    (tmp_path / "later").mkdir()
    drop(tmp_path / "later", "a.png")
    assert taken(source, queue, 1) == ["a.png"]


def frame_number(picture) -> int:
    pixels = picture.pixels()
    assert pixels.shape == (32, 48, 3)
    assert pixels.dtype == np.uint8
    return int(pixels[0, 0, 0]) // 8


def test_a_video_is_played_at_its_own_pace_and_ends(video):
    begun, seen = time.monotonic(), []
    source = CameraSource(str(video), 1, lambda message: None)
    while not source.ended:
        picture = source.next(0.5)
        seen += [frame_number(picture)] if picture else []
    assert time.monotonic() - begun >= (FRAMES - 1) / RATE * 0.9
    assert seen == sorted(set(seen))
    assert len(seen) + source.dropped == FRAMES
    assert len(seen) > FRAMES / 2
    source.close()


def test_whoever_is_slow_gets_the_newest_frame_and_the_others_are_counted(video):
    source = CameraSource(str(video), 1, lambda message: None)
    seen = []
    while (picture := source.next(2)) is not None:
        seen.append(frame_number(picture))
        time.sleep(0.75)  # in which seven or eight frames come
    assert seen[-1] == FRAMES - 1
    assert len(seen) <= 6
    assert all(after - before >= 5 for before, after in pairwise(seen[:-1]))
    assert len(seen) + source.dropped == FRAMES


def test_a_stream_is_read_over_http_and_opened_again_when_it_ends(video, monkeypatch):
    monkeypatch.setattr(sources_module, "FIRST_WAIT_S", 0.05)
    said: list[str] = []
    with files_server(video.parent) as (url, asked):
        source = CameraSource(f"{url.replace('//', '//user:secret@')}/{video.name}", 1, said.append)
        first = source.next(10)
        until = time.monotonic() + 20
        while len(asked) < 2 and time.monotonic() < until:
            source.next(0.1)
        assert first is not None
        assert len(asked) >= 2
    source.close()
    assert "it ended" in said[0]
    assert "secret" not in source.name + "".join(said)


def test_what_is_no_source_is_told(tmp_path, queue):
    with pytest.raises(EaglerayError, match="no such folder"):
        open_source(str(tmp_path / "none"), queue, 1, lambda message: None)
    (tmp_path / "text.txt").write_text("no video")
    with pytest.raises(EaglerayError, match="no video"):
        open_source(str(tmp_path / "text.txt"), queue, 1, lambda message: None)
