"""Tar shards."""

from __future__ import annotations

import gzip
import io
import json
import tarfile

import pytest

from eagleray.pipelines.sources.webdataset import SOURCE, WebdatasetSpec

from ..conftest import png, sound

PICTURE, RECORDING = png(), sound(300, 0.1, "WAV")


def tar(*members: tuple[str, bytes] | tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return buffer.getvalue()


@pytest.fixture
def read(tmp_path, read_source):
    """Read tars, given by name."""

    def run(spec: WebdatasetSpec | None = None, **tars: bytes):
        folder = tmp_path / "tars"
        folder.mkdir(exist_ok=True)
        for name, content in tars.items():
            (folder / name.replace("_", ".")).write_bytes(content)
        return read_source(SOURCE, spec or WebdatasetSpec(), folder)

    return run


WHOLE = tar(
    ("a/0.png", PICTURE), ("a/0.txt", b"A disc.\n"), ("a/0.cls", b"7"),
    ("a/1.png", PICTURE), ("a/1.json", b"{}"), ("a/1.wav", RECORDING),
)  # fmt: skip


def test_members_of_one_name_are_one_record(read):
    records = read(x_tar=WHOLE).records
    assert records == {
        "x.tar/a/0": {
            "id": "x.tar/a/0", "group": None, "category": "7",
            "captions": [{"language": "en", "text": "A disc."}],
            "picture": {"address": "x.tar/a/0.png", "content": PICTURE}, "recordings": [],
        },
        "x.tar/a/1": {
            "id": "x.tar/a/1", "group": None, "category": None, "captions": [],
            "picture": {"address": "x.tar/a/1.png", "content": PICTURE},
            "recordings": [{"language": "en", "address": "x.tar/a/1.wav", "content": RECORDING}],
        },
    }  # fmt: skip


def test_a_compressed_tar_holds_the_same(read):
    plain, packed = read(x_tar=WHOLE).records, read(y_tar_gz=gzip.compress(WHOLE)).records
    assert [row["captions"] for row in plain.values()] * 2 == [row["captions"] for row in packed.values()]


def test_captions_and_groups_may_stand_in_json(read):
    said = json.dumps({"text": "Un disque", "patient": 12}).encode()
    spec = WebdatasetSpec(caption="json", caption_key="text", group_key="patient", language="fr")
    (record,) = read(spec, x_tar=tar(("0.png", PICTURE), ("0.json", said))).records.values()
    assert record["captions"] == [{"language": "fr", "text": "Un disque"}]
    assert record["group"] == "12"


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (("../../evil.png", PICTURE), "path-traversal"),
        (("/etc/evil.png", PICTURE), "path-traversal"),
        (link("evil.png", "/etc/passwd"), "link-outside"),
        (link("evil.png", "0.png", tarfile.LNKTYPE), "link-outside"),
        (link("evil.png", "", tarfile.FIFOTYPE), "link-outside"),
        (("evil.png", bytes(5000)), "file-too-large"),
        (("0.txt", b"again"), "duplicate-id"),
    ],
)
def test_a_hostile_member_is_refused_and_the_others_are_kept(read, member, reason):
    content = tar(("0.png", PICTURE), ("1.png", PICTURE), member, ("2.png", PICTURE))
    reading = read(WebdatasetSpec(max_member_bytes=4000), x_tar=content)
    assert list(reading.records) == ["x.tar/0", "x.tar/1", "x.tar/2"]
    assert [found for _, found in reading.refusals] == [reason]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (WHOLE[:2500], "truncated-archive"),
        (gzip.compress(WHOLE)[:-600], "truncated-archive"),
        (WHOLE[:1536] + b"garbage" * 300, "corrupt-archive"),
        (b"no tar at all" * 100, "corrupt-archive"),
    ],
)
def test_a_broken_tar_keeps_what_came_before(read, content, reason):
    reading = read(x_tar=content)
    assert len(reading.records) < 2
    assert [found for _, found in reading.refusals] == [reason]


def test_a_caption_that_is_not_utf8_leaves_the_record(read):
    reading = read(x_tar=tar(("0.png", PICTURE), ("0.txt", b"\xe9t\xe9")))
    assert reading.records["x.tar/0"]["captions"] == []
    assert reading.refusals == [("x.tar/0.txt", "caption-not-utf8")]


def test_a_bomb_is_not_unpacked(read):
    """A gibibyte of zeros in a megabyte of gzip: the member's header says its size."""
    info = tarfile.TarInfo("0.png")
    info.size = 1 << 30
    head = info.tobuf()
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=1) as file:
        file.write(head)
        for _ in range(64):
            file.write(bytes(1 << 20))
    reading = read(x_tar_gz=buffer.getvalue())
    assert reading.refusals[0][1] == "truncated-archive"
    assert not reading.records
