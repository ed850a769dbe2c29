"""Tux Paint's stamps: pictures with captions in many languages and spoken descriptions (GPL-2)."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Literal

from ..files import Files
from ..packages import Package
from ..quarantine import Refusal, Refuse, Refused
from ..source import Row, Source, SourceSpec, Unit, digest_field
from ..spec import Preparation

PACKAGE = Package(
    manager="apt",
    name="tuxpaint-stamps-default",
    version="2022.06.04-1",
    sha256="6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
    inside="usr/share/tuxpaint/stamps",
)
DIGEST = "2677de2e3c5dc79908680df3535896c65be5b2b124028f7a3cf805f14d5083b3"

QUESTION = "What is this?"
KIND = "object"
"""Type of the question, as `DecoderSpec` has it."""

_CAPTION = re.compile(r"(?P<language>[^.=\s]+)\.utf8=(?P<text>.*)")
_SPEECH = re.compile(r"(?P<stem>.+)_desc(?:_(?P<language>[A-Za-z_@]+))?\.(?:ogg|wav)", re.IGNORECASE)
_PICTURES = (".png", ".svg")


class TuxpaintSpec(SourceSpec):
    """Tux Paint's stamps: 1,033 pictures in 16 categories with captions and speech in many languages."""

    kind: Literal["tuxpaint"] = "tuxpaint"
    questions: bool = False
    """Ask of each picture with an English caption what it is, as a record more; the caption is the answer."""
    digest: str | None = digest_field(DIGEST)
    """Digest of the stamps folder; null takes a changed copy as it is."""


def list_units(spec: TuxpaintSpec, files: Files) -> Iterator[Unit | Refusal]:
    """One unit for each picture, with its captions and recordings.

    A picture `x.png` or `x.svg` goes with the captions `x.txt` (the first line is English, the others
    `language.utf8=caption`) and the recordings `x_desc_LANGUAGE.ogg` or `.wav`. Mirror images are left out.
    """
    speech: dict[str, dict[str, str]] = defaultdict(dict)
    for path in files.entries:
        match = _SPEECH.fullmatch(path)
        if match:
            speech[match["stem"]].setdefault(match["language"] or "en", path)
    for path in files.entries:
        stem, extension = os.path.splitext(path)
        if extension.lower() in _PICTURES and not stem.endswith("_mirror"):
            recordings = dict(sorted(speech.get(stem, {}).items()))
            yield Unit(path, (path, f"{stem}.txt", *recordings.values()), {"speech": recordings})


def read(
    spec: TuxpaintSpec, files: Files, unit: Unit, preparation: Preparation, refuse: Refuse
) -> Iterator[Row]:
    """The record of a picture; without captions or recordings where these can't be read."""
    from ..splitting import group_of

    picture, captions, *_ = unit.files
    wanted = sorted(preparation.languages)
    found = _captions(files, captions, refuse)
    recordings: list[Row] = []
    for language, path in unit.fields["speech"].items():
        if language in preparation.speech_languages:
            try:
                recordings.append({"language": language, "address": path, "content": files.read(path)})
            except OSError as error:
                refuse(Refused("unreadable-file", f"the file can't be read: {error.strerror}"), path)
    record: Row = {
        "id": picture,
        "category": picture.rpartition("/")[0].partition("/")[0] or "none",
        "captions": [{"language": one, "text": found[one]} for one in wanted if one in found],
        "picture": {"address": picture, "content": files.read(picture)},
        "recordings": recordings,
    }
    if not spec.questions:
        yield record
        return
    yield {**record, "answer": None}
    if "en" in found:
        yield {
            **record,
            "id": f"{picture}/{KIND}",
            "group": group_of(record, preparation.caption_languages[0]),  # in the picture's own split
            "category": KIND,
            "captions": [{"language": preparation.caption_languages[0], "text": QUESTION}],
            "answer": found["en"],
        }


def parse_captions(content: bytes) -> dict[str, str]:
    """Language → caption of a stamp's text file; `en` is its first line.

    Raises:
        UnicodeDecodeError: when it is not UTF-8.
    """
    first, *others = content.decode("utf-8-sig").splitlines() or [""]
    captions = {"en": first.strip()}
    for line in others:
        match = _CAPTION.fullmatch(line)
        if match:
            captions[match["language"]] = match["text"].strip()
    return {language: text for language, text in captions.items() if text}


def _captions(files: Files, path: str, refuse: Refuse) -> dict[str, str]:
    try:
        content = files.read(path)
    except FileNotFoundError:
        refuse(Refused("missing-caption", "there is no such file"), path)
        return {}
    except OSError as error:
        refuse(Refused("unreadable-file", f"the file can't be read: {error.strerror}"), path)
        return {}
    try:
        captions = parse_captions(content)
    except UnicodeDecodeError as error:
        found = f"byte 0x{content[error.start]:02x} at {error.start}"
        refuse(Refused("caption-not-utf8", f"the captions are not UTF-8: {found}"), path, content)
        return {}
    if "en" not in captions:
        missing = Refused("missing-caption", "the first line, the English caption, is empty")
        refuse(missing, path, content)
    return captions


SOURCE = Source(
    spec=TuxpaintSpec,
    summary="captioned, spoken-about pictures of Tux Paint, in many languages",
    columns=lambda spec: (
        *("category", "captions", "picture", "recordings"),
        *(("answer",) if spec.questions else ()),
    ),
    list_units=list_units,
    read=read,
    package=PACKAGE,
    licence="GPL-2; single files CC BY, CC BY-SA, GFDL or public domain (see docs/corpora.md)",
    size_bytes=161_000_000,
)
