"""Tux Paint's stamps."""

from __future__ import annotations

import pytest

from eagleray.pipelines.source import content_digest, open_source
from eagleray.pipelines.sources.tuxpaint import DIGEST, SOURCE, TuxpaintSpec, parse_captions
from eagleray.pipelines.splitting import group_of
from eagleray.workflows.errors import EaglerayError


def test_a_picture_comes_with_its_captions_and_recordings_in_the_wanted_languages(stamps, read_source):
    stamps.add(
        "animals/birds/owl",
        {
            ".png": b"1", ".txt": b"An owl.\nfr.utf8=Une chouette.\nca@valencia.utf8= Un mussol. \n",
            "_desc.ogg": b"2", "_desc_fr.ogg": b"3", "_desc_pt_BR.wav": b"4",
            ".ogg": b"sound effect", ".dat": b"",
            "_desc_da.ogg.ogg": b"misnamed",
        },
    )  # fmt: skip
    owl = "animals/birds/owl"
    reading = read_source(SOURCE, TuxpaintSpec(), stamps.folder, speech_languages=("pt_BR", "fr"))
    assert reading.records == {
        f"{owl}.png": {
            "id": f"{owl}.png",
            "category": "animals",
            "captions": [
                {"language": "en", "text": "An owl."},
                {"language": "fr", "text": "Une chouette."},
            ],
            "picture": {"address": f"{owl}.png", "content": b"1"},
            "recordings": [
                {"language": "fr", "address": f"{owl}_desc_fr.ogg", "content": b"3"},
                {"language": "pt_BR", "address": f"{owl}_desc_pt_BR.wav", "content": b"4"},
            ],
        }
    }
    assert reading.refusals == []


def test_a_picture_is_asked_about_in_its_own_split(stamps, read_source):
    stamps.add("animals/owl", {".png": b"1", ".txt": b"An owl.\nfr.utf8=Une chouette.", "_desc_fr.ogg": b"3"})
    stamps.add("animals/bee", {".png": b"2", ".txt": b"\nfr.utf8=Une abeille."})  # no English caption
    spec = TuxpaintSpec(questions=True)
    records = read_source(SOURCE, spec, stamps.folder, speech_languages=("fr",)).records
    assert list(records) == ["animals/bee.png", "animals/owl.png", "animals/owl.png/object"]
    described, asked = records["animals/owl.png"], records["animals/owl.png/object"]
    assert described["answer"] is None
    assert asked["answer"] == "An owl."
    assert asked["captions"] == [{"language": "en", "text": "What is this?"}]
    assert asked["group"] == group_of(described, "en")
    assert asked["category"] == "object"
    assert asked["picture"] == described["picture"]
    assert asked["recordings"] == described["recordings"]


def test_a_drawing_and_a_picture_of_one_name_are_two_records_with_the_same_captions(stamps, read_source):
    stamps.add("a/bee", {".png": b"1", ".svg": b"2", ".txt": b"A bee.", "_mirror.png": b"3"})
    records = read_source(SOURCE, TuxpaintSpec(), stamps.folder).records
    assert list(records) == ["a/bee.png", "a/bee.svg"]
    assert records["a/bee.png"]["captions"] == records["a/bee.svg"]["captions"] != []


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "missing-caption"), (b"", "missing-caption"), (b"\nfr.utf8=Une abeille.", "missing-caption"),
     (b"A bee.\nfr.utf8=\xe9", "caption-not-utf8")],
)  # fmt: skip
def test_a_record_without_readable_captions_stays_without_english_ones(stamps, read_source, content, reason):
    stamps.add("a/bee", {".png": b"1"} | ({} if content is None else {".txt": content}))
    reading = read_source(SOURCE, TuxpaintSpec(), stamps.folder)
    assert not [one for one in reading.records["a/bee.png"]["captions"] if one["language"] == "en"]
    assert reading.refusals == [("a/bee.txt", reason)]


def test_captions_survive_marks_line_ends_and_empty_lines():
    content = "\ufeffA bee. \r\n\r\nfr.utf8=Une abeille = un insecte.\r\nes.utf8=\r\nnonsense\r\n".encode()
    assert parse_captions(content) == {"en": "A bee.", "fr": "Une abeille = un insecte."}


def test_a_given_copy_is_checked_against_the_pinned_digest(stamps, tmp_path):
    stamps.add("a/x", {".png": b"1"})
    found = content_digest(SOURCE, TuxpaintSpec(path=str(stamps.folder), digest=None), tmp_path)
    with pytest.raises(EaglerayError) as error:
        open_source(SOURCE, TuxpaintSpec(path=str(stamps.folder)), tmp_path, print)
    assert found in error.value.cause
    assert DIGEST in error.value.cause
    assert f"source.digest to {found}" in error.value.remedy
    spec = TuxpaintSpec(path=str(stamps.folder), digest=found)
    assert open_source(SOURCE, spec, tmp_path, print).local == stamps.folder


def test_a_given_copy_may_be_the_unpacked_package(tmp_path):
    assert SOURCE.package is not None
    folder = tmp_path / "package" / SOURCE.package.inside
    (folder / "a").mkdir(parents=True)
    (folder / "a/x.png").write_bytes(b"1")
    spec = TuxpaintSpec(path=str(tmp_path / "package"), digest=None)
    assert list(open_source(SOURCE, spec, tmp_path / "cache", print).entries) == ["a/x.png"]


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(EaglerayError, match="there is no folder"):
        open_source(SOURCE, TuxpaintSpec(path=str(tmp_path / "nowhere")), tmp_path, print)
