"""Tux Paint's stamps: what is listed, and how they are fetched."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from eagleray.pipelines.source import tree_digest
from eagleray.pipelines.sources import tuxpaint
from eagleray.pipelines.sources.tuxpaint import (
    PACKAGE,
    STAMPS,
    TuxpaintSpec,
    fetch,
    list_records,
    parse_captions,
)
from eagleray.workflows.errors import EaglerayError


def listed(folder: Path) -> dict[str, dict]:
    rows = list_records(folder).records.to_pylist(maps_as_pydicts="strict")
    return {row["id"]: row for row in rows}


def test_a_picture_is_listed_with_its_captions_and_recordings(stamps):
    stamps.add(
        "animals/birds/owl",
        {
            ".png": b"1", ".txt": b"An owl.\nfr.utf8=Une chouette.\nca@valencia.utf8= Un mussol. \n",
            "_desc.ogg": b"2", "_desc_fr.ogg": b"3", "_desc_pt_BR.wav": b"4",
            ".ogg": b"sound effect", ".dat": b"",
            "_desc_da.ogg.ogg": b"misnamed",
        },
    )  # fmt: skip
    assert listed(stamps.folder) == {
        "animals/birds/owl.png": {
            "id": "animals/birds/owl.png",
            "picture": "animals/birds/owl.png",
            "category": "animals",
            "captions": {"en": "An owl.", "fr": "Une chouette.", "ca@valencia": "Un mussol."},
            "speech": {
                "en": "animals/birds/owl_desc.ogg",
                "fr": "animals/birds/owl_desc_fr.ogg",
                "pt_BR": "animals/birds/owl_desc_pt_BR.wav",
            },
        }
    }


def test_a_drawing_and_a_picture_of_one_name_are_two_records_with_the_same_captions(stamps):
    stamps.add("a/bee", {".png": b"1", ".svg": b"2", ".txt": b"A bee.", "_mirror.png": b"3"})
    records = listed(stamps.folder)
    assert list(records) == ["a/bee.png", "a/bee.svg"]
    assert records["a/bee.png"]["captions"] == records["a/bee.svg"]["captions"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "missing-caption"), (b"", "missing-caption"), (b"\nfr.utf8=Une abeille.", "missing-caption"),
     (b"A bee.\nfr.utf8=\xe9", "caption-not-utf8")],
)  # fmt: skip
def test_a_record_without_readable_captions_stays_without_any(stamps, content, reason):
    stamps.add("a/bee", {".png": b"1"} | ({} if content is None else {".txt": content}))
    listing = list_records(stamps.folder)
    assert listed(stamps.folder)["a/bee.png"]["captions"] == {}
    assert [(one.path, one.operator, one.reason) for one in listing.refusals] == [
        ("a/bee.txt", "caption", reason)
    ]


def test_captions_survive_marks_line_ends_and_empty_lines():
    content = "\ufeffA bee. \r\n\r\nfr.utf8=Une abeille = un insecte.\r\nes.utf8=\r\nnonsense\r\n".encode()
    assert parse_captions(content) == {"en": "A bee.", "fr": "Une abeille = un insecte."}


def test_the_digest_tells_names_and_contents_apart(stamps):
    stamps.add("a/x", {".png": b"1", ".txt": b"2"})
    before = tree_digest(stamps.folder)
    (stamps.folder / "a/x.png").rename(stamps.folder / "a/y.png")
    renamed = tree_digest(stamps.folder)
    (stamps.folder / "a/y.png").write_bytes(b"3")
    assert len({before, renamed, tree_digest(stamps.folder)}) == 3


def test_a_given_copy_is_checked_against_the_pinned_digest(stamps, tmp_path):
    stamps.add("a/x", {".png": b"1"})
    found = tree_digest(stamps.folder)
    with pytest.raises(EaglerayError) as error:
        fetch(TuxpaintSpec(path=stamps.folder), tmp_path, print)
    assert found in error.value.cause
    assert tuxpaint.DIGEST in error.value.cause
    assert f"source.digest to {found}" in error.value.remedy
    assert fetch(TuxpaintSpec(path=stamps.folder, digest=found), tmp_path, print) == stamps.folder


def test_a_given_copy_may_be_the_unpacked_package(tmp_path):
    folder = tmp_path / "package" / STAMPS
    (folder / "a").mkdir(parents=True)
    (folder / "a/x.png").write_bytes(b"1")
    spec = TuxpaintSpec(path=tmp_path / "package", digest=tree_digest(folder))
    assert fetch(spec, tmp_path / "cache", print) == folder


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(EaglerayError, match="there is no folder"):
        fetch(TuxpaintSpec(path=tmp_path / "nowhere"), tmp_path, print)


class Debian:
    """Stands for the machine's `apt-get` and `dpkg-deb`: shell scripts that note how they were called."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bin = folder / "bin"
        self.calls = folder / "calls"
        self.cache = folder / "cache"
        self.bin.mkdir()
        self.calls.touch()
        monkeypatch.setenv("PATH", f"{self.bin}:/usr/bin:/bin")

    def program(self, name: str, script: str) -> None:
        path = self.bin / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >> {self.calls}\n{script}\n')
        path.chmod(0o755)

    def unpacks(self) -> None:
        self.program("dpkg-deb", f'mkdir -p "$3/{STAMPS}/a" && printf 1 > "$3/{STAMPS}/a/x.png"')

    @property
    def log(self) -> list[str]:
        return self.calls.read_text().splitlines()


DOWNLOAD = f"touch {PACKAGE}_1.deb"


@pytest.fixture
def debian(tmp_path, monkeypatch):
    return Debian(tmp_path, monkeypatch)


@pytest.fixture
def digest(tmp_path):
    folder = tmp_path / "expected" / "a"
    folder.mkdir(parents=True)
    (folder / "x.png").write_bytes(b"1")
    return tree_digest(folder.parent)


def test_fetching_twice_downloads_once(debian, digest):
    debian.program("apt-get", DOWNLOAD)
    debian.unpacks()
    spec = TuxpaintSpec(digest=digest)
    first = fetch(spec, debian.cache, print)
    calls = debian.log
    assert (first / "a/x.png").read_bytes() == b"1"
    assert fetch(spec, debian.cache, print) == first
    assert debian.log == calls
    assert os.listdir(debian.cache) == [f"tuxpaint-{digest[:16]}"]


def test_without_package_lists_apt_makes_its_own_in_a_private_folder(debian, digest):
    lists = (
        'case "$*" in *Dir::State=*update*) ;; *Dir::State=*download*) '
        + DOWNLOAD
        + ";; *) echo E: no lists >&2; exit 100;; esac"
    )
    debian.program("apt-get", lists)
    debian.unpacks()
    fetch(TuxpaintSpec(digest=digest), debian.cache, print)
    assert debian.log[0].startswith("apt-get download")
    assert all(str(debian.cache) in call for call in debian.log[1:])


def test_a_package_from_an_unsigned_archive_must_be_the_pinned_one(debian, digest):
    debian.program(
        "apt-get",
        'case "$*" in *debian.list*download*) '
        + DOWNLOAD
        + ";; *debian.list*) ;; *) echo E: unknown package >&2; exit 100;; esac",
    )
    debian.unpacks()
    with pytest.raises(EaglerayError) as error:
        fetch(TuxpaintSpec(digest=digest), debian.cache, print)
    assert tuxpaint.DEB_DIGEST in error.value.cause
    assert not any("dpkg-deb" in call for call in debian.log)


def test_a_failed_download_says_why_and_what_to_do(debian):
    debian.program("apt-get", 'echo "E: no network" >&2; exit 100')
    debian.unpacks()
    with pytest.raises(EaglerayError) as error:
        fetch(TuxpaintSpec(), debian.cache, print)
    assert "E: no network" in error.value.cause
    assert "source.path=FOLDER" in error.value.remedy
    assert os.listdir(debian.cache) == []


def test_a_download_that_is_not_the_pinned_content_leaves_nothing_behind(debian):
    debian.program("apt-get", DOWNLOAD)
    debian.unpacks()
    with pytest.raises(EaglerayError, match="not the pinned ones"):
        fetch(TuxpaintSpec(), debian.cache, print)
    assert os.listdir(debian.cache) == []


def test_a_system_without_apt_is_told_to_take_a_copy(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EaglerayError) as error:
        fetch(TuxpaintSpec(), tmp_path / "cache", print)
    assert "no apt-get" in error.value.cause
    assert "source.path=FOLDER" in error.value.remedy
