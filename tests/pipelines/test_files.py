"""Files: what there is, and whether it is the same as before."""

from __future__ import annotations

import os
import pickle
import sqlite3
from pathlib import Path

import pytest

from eagleray.pipelines import files as files_module
from eagleray.pipelines.files import OUTSIDE, UNREADABLE, Files
from eagleray.workflows.errors import EaglerayError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    (folder / "a").mkdir(parents=True)
    (folder / "a/x.png").write_bytes(b"1")
    (folder / "b.txt").write_bytes(b"22")
    return folder


@pytest.fixture
def digest(tmp_path):
    return lambda folder: Files(str(folder), tmp_path / "cache").digest()


def test_the_digest_tells_names_and_contents_apart(folder, digest):
    found = [digest(folder)]
    (folder / "a/x.png").rename(folder / "a/y.png")
    found.append(digest(folder))
    (folder / "a/y.png").write_bytes(b"3")
    found.append(digest(folder))
    (folder / "c").touch()
    found.append(digest(folder))
    assert len(set(found)) == 4


def test_the_digest_is_that_of_a_copy_elsewhere(folder, digest, tmp_path):
    copy = tmp_path / "copy"
    (copy / "a").mkdir(parents=True)
    (copy / "b.txt").write_bytes(b"22")
    (copy / "a/x.png").write_bytes(b"1")
    assert digest(copy) == digest(folder)


def test_settled_files_are_hashed_once(folder, tmp_path, monkeypatch):
    hashed: list[str] = []
    real = files_module._sha256
    monkeypatch.setattr(files_module, "_sha256", lambda path: hashed.append(path.name) or real(path))
    for path in (folder / "a/x.png", folder / "b.txt"):
        os.utime(path, (1_000_000, 1_000_000))
    for _ in range(3):
        entries = Files(str(folder), tmp_path / "cache").entries
    assert sorted(hashed) == ["b.txt", "x.png"]
    assert [(one.path, one.size_bytes) for one in entries.values()] == [("a/x.png", 1), ("b.txt", 2)]
    os.utime(folder / "b.txt", (1_000_001, 1_000_001))
    _ = Files(str(folder), tmp_path / "cache").entries
    assert sorted(hashed) == ["b.txt", "b.txt", "x.png"]


def test_a_file_just_written_is_not_remembered(folder, tmp_path):
    """Within one tick of the clock its content could change again."""
    _ = Files(str(folder), tmp_path / "cache").entries
    with sqlite3.connect(tmp_path / "cache/digests.db") as database:
        assert database.execute("SELECT count(*) FROM digests").fetchone() == (0,)


def test_links_are_followed_within_the_folder_only(folder, tmp_path):
    (tmp_path / "secret").write_bytes(b"key")
    (folder / "in.txt").symlink_to("b.txt")
    (folder / "out.txt").symlink_to(tmp_path / "secret")
    (folder / "up").symlink_to(tmp_path)
    (folder / "gone.txt").symlink_to("nowhere")
    entries = Files(str(folder), tmp_path / "cache").entries
    assert entries["in.txt"].version == entries["b.txt"].version
    assert entries["out.txt"].version == OUTSIDE
    assert entries["up"].version == OUTSIDE
    assert set(entries) == {"a/x.png", "b.txt", "in.txt", "out.txt", "up"}


def test_what_cannot_be_read_is_listed_as_such(folder, tmp_path, monkeypatch):
    real = Path.open

    def denied(self, *args, **kwargs):
        if self.name == "b.txt":
            raise PermissionError(13, "Permission denied")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", denied)  # root may read anything
    assert Files(str(folder), tmp_path / "cache").entries["b.txt"].version == UNREADABLE


def test_a_name_of_any_bytes_is_a_name(folder, digest):
    (folder / os.fsdecode(b"caf\xe9.txt")).write_bytes(b"3")
    os.utime(folder / os.fsdecode(b"caf\xe9.txt"), (1_000_000, 1_000_000))
    assert digest(folder) == digest(folder)


def test_ranges_are_read(folder, tmp_path):
    found = Files(str(folder), tmp_path)
    (folder / "long").write_bytes(b"0123456789")
    assert found.read("long", 3, 4) == b"3456"
    with pickle.loads(pickle.dumps(found)).open("long") as file:
        file.seek(8)
        assert file.read() == b"89"


def test_a_missing_folder_is_one_error(tmp_path):
    with pytest.raises(EaglerayError, match="there is no folder"):
        _ = Files(str(tmp_path / "nowhere"), tmp_path).entries
