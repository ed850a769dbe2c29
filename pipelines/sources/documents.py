"""A folder of documents: plain text, Markdown, HTML and PDF."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from ..files import OUTSIDE, Files
from ..quarantine import Refusal, Refuse, Refused, link_outside
from ..source import Row, Source, SourceSpec, Unit
from ..spec import Preparation

TEXT = (".md", ".rst", ".text", ".txt")
PAGES = (".htm", ".html", ".xhtml")
PDF = (".pdf",)


class DocumentsSpec(SourceSpec):
    """A folder of documents: plain text, Markdown, HTML and PDF."""

    kind: Literal["documents"] = "documents"
    encoding: str | None = None
    """Of texts and pages; UTF-8, or what a page or its mark declares, by default."""
    max_bytes: int = Field(default=64 << 20, ge=1)
    """Size from which on a document is refused."""


def list_units(spec: DocumentsSpec, files: Files) -> Iterator[Unit | Refusal]:
    """One unit for each document."""
    for path, entry in files.entries.items():
        if not path.lower().endswith((*TEXT, *PAGES, *PDF)):
            continue
        if entry.version == OUTSIDE:
            yield link_outside("documents", path)
        elif entry.size_bytes > spec.max_bytes:
            message = f"the document has {entry.size_bytes:,} bytes, over {spec.max_bytes:,}"
            yield Refusal(path, path, "documents", "file-too-large", message, size_bytes=entry.size_bytes)
        else:
            yield Unit(path, (path,))


def read(
    spec: DocumentsSpec, files: Files, unit: Unit, preparation: Preparation, refuse: Refuse
) -> Iterator[Row]:
    """The record of a document; its category is its folder."""
    from ..media.documents import html_text, pdf_text, plain_text

    (path,) = unit.files
    data = files.read(path)
    if path.lower().endswith(PDF):
        text = pdf_text(data)
    elif path.lower().endswith(PAGES):
        text = html_text(data, spec.encoding)
    else:
        text = plain_text(data, spec.encoding)
    if not text.strip():
        raise Refused("no-text", "the document is empty")
    yield {"id": path, "category": path.rpartition("/")[0].rpartition("/")[2] or None, "text": text}


SOURCE = Source(
    spec=DocumentsSpec,
    summary="a folder of documents: plain text, Markdown, HTML and PDF",
    columns=lambda spec: ("category", "text"),
    list_units=list_units,
    read=read,
)
