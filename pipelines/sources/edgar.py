"""Filings of the SEC's EDGAR system: whole submissions, and lone HTML documents."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Literal

from pydantic import Field

from ..files import OUTSIDE, Files
from ..quarantine import Refusal, Refuse, Refused, link_outside
from ..source import Row, Source, SourceSpec, Unit
from ..spec import Preparation

PAGES = (".htm", ".html")
HEAD_BYTES = 1 << 16
_FIELDS = {
    "accession": rb"ACCESSION NUMBER",
    "form": rb"CONFORMED SUBMISSION TYPE",
    "period": rb"CONFORMED PERIOD OF REPORT",
    "filed": rb"FILED AS OF DATE",
    "cik": rb"CENTRAL INDEX KEY",
    "sic": rb"STANDARD INDUSTRIAL CLASSIFICATION",
}
_XBRL = {
    "form": rb"dei:DocumentType",
    "period": rb"dei:DocumentPeriodEndDate",
    "cik": rb"dei:EntityCentralIndexKey",
}
_TAG = re.compile(rb"<[^>]*>")
# What old text documents have in them: pages, and tables whose columns are spaces.
_SGML_LINE = re.compile(r"^\s*</?(?:PAGE|TABLE|CAPTION|S|C|FN|F\d+)>[^\n]*$", re.MULTILINE)
_SUBMISSION = re.compile(r"(?:^|/)(?:full-submission|\d{10}-\d{2}-\d{6})\.txt$")
_ARCHIVE = re.compile(r"(?:^|/)data/(?P<cik>\d{1,10})/(?P<accession>\d{18})/")
_DOWNLOADED = re.compile(r"(?:^|/)(?P<cik>[^/]+)/(?P<form>10-[KQ][^/]*)/(?P<accession>\d{10}-\d{2}-\d{6})/")


class EdgarSpec(SourceSpec):
    """A folder of SEC filings: EDGAR's full submission texts, or HTML documents of reports."""

    kind: Literal["edgar"] = "edgar"
    forms: tuple[str, ...] = ("10-K", "10-K405", "10-Q")
    """Forms that are kept; an amendment is another form, such as 10-K/A."""
    category: Literal["none", "form", "sic", "year"] = "form"
    """What a filing's category is: its form, the company's industry code, or the year of the period."""
    max_bytes: int = Field(default=256 << 20, ge=1)
    """Size from which on a filing is refused."""


def list_units(spec: EdgarSpec, files: Files) -> Iterator[Unit | Refusal]:
    """One unit for each submission, and for each HTML document that doesn't lie beside its submission."""
    whole = {path.rpartition("/")[0] for path in files.entries if _SUBMISSION.search(path)}
    for path, entry in files.entries.items():
        lower = path.lower()
        alone = lower.endswith(PAGES) and path.rpartition("/")[0] not in whole
        if not (lower.endswith(".txt") or alone):
            continue
        if entry.version == OUTSIDE:
            yield link_outside("edgar", path)
        elif entry.size_bytes > spec.max_bytes:
            message = f"the filing has {entry.size_bytes:,} bytes, over {spec.max_bytes:,}"
            yield Refusal(path, path, "edgar", "file-too-large", message, size_bytes=entry.size_bytes)
        else:
            yield Unit(path, (path,))


def read(
    spec: EdgarSpec, files: Files, unit: Unit, preparation: Preparation, refuse: Refuse
) -> Iterator[Row]:
    """The record of a filing: the text of its main document."""
    (path,) = unit.files
    data = files.read(path)
    known = _path_fields(path)
    if path.lower().endswith(".txt"):
        known |= _header_fields(data)
        _check_form(spec, known)
        document = _main_document(data, known["form"])
    else:
        known |= _xbrl_fields(data)
        _check_form(spec, known)
        document = data
    if not known.get("cik"):
        raise Refused("no-company", "nothing says which company the filing is of")
    year = known.get("period", known.get("filed", ""))[:4]
    sic = re.search(r"\d{4}", known.get("sic", ""))
    categories = {"none": None, "form": known["form"], "sic": sic and sic[0], "year": year or None}
    yield {
        "id": known.get("accession") or path,
        "group": f"company {known['cik'].lstrip('0')}",
        "category": categories[spec.category],
        "text": _readable(document),
    }


def _header_fields(data: bytes) -> dict[str, str]:
    """What the header of a submission says; of several filers, the first."""
    start = re.search(rb"<(?:SEC|IMS)-HEADER>", data[:HEAD_BYTES])
    end = re.search(rb"</(?:SEC|IMS)-HEADER>|<DOCUMENT>", data[: 16 * HEAD_BYTES])
    if start is None or end is None:
        raise Refused("not-a-filing", f"the content is no submission: it starts with {data[:24]!r}")
    header = data[start.end() : end.start()]
    found: dict[str, str] = {}
    for name, label in _FIELDS.items():
        line = re.search(rb"^\s*" + label + rb":[ \t]*(\S[^\r\n]*)", header, re.MULTILINE)
        if line:
            found[name] = line[1].decode("latin-1").strip()
    if "form" not in found:
        raise Refused("not-a-filing", "the submission's header names no form")
    return found


def _xbrl_fields(page: bytes) -> dict[str, str]:
    """What inline XBRL in a document says of itself."""
    found: dict[str, str] = {}
    for name, fact in _XBRL.items():
        tagged = re.search(
            rb"<ix:nonNumeric\b[^>]*\bname=[\"']" + fact + rb"[\"'][^>]*>(.*?)</ix:nonNumeric>",
            page,
            re.DOTALL,
        )
        if tagged:
            found[name] = _TAG.sub(b"", tagged[1]).decode("latin-1").strip()
    return found


def _path_fields(path: str) -> dict[str, str]:
    """What the folders say in which EDGAR's archive, or a downloader, keeps filings."""
    found: dict[str, str] = {}
    for layout in (_ARCHIVE, _DOWNLOADED):
        match = layout.search(path)
        if match:
            found |= match.groupdict()
    number = found.get("accession", "")
    if len(number) == 18:
        found["accession"] = f"{number[:10]}-{number[10:12]}-{number[12:]}"
    return found


def _check_form(spec: EdgarSpec, known: Mapping[str, str]) -> None:
    if "form" not in known:
        raise Refused("not-a-filing", "neither the document nor its folders say which form it is")
    if known["form"] not in spec.forms:
        message = f"the filing is a {known['form']}, kept are {', '.join(spec.forms)}"
        raise Refused("other-form", message, wanted=True)


def _main_document(data: bytes, form: str) -> bytes:
    """The text of the first document whose type is the submission's form."""
    place = 0
    while (start := data.find(b"<DOCUMENT>", place)) >= 0:
        body = data.find(b"<TEXT>", start)
        kind = re.search(rb"<TYPE>([^\r\n<]+)", data[start : body if body >= 0 else start + HEAD_BYTES])
        end = data.find(b"</DOCUMENT>", start)
        if kind and kind[1].decode("latin-1").strip() == form and body >= 0:
            close = data.rfind(b"</TEXT>", body, end if end >= 0 else len(data))
            if end < 0 or close < 0:
                raise Refused("truncated-filing", "the main document breaks off")
            return data[body + len(b"<TEXT>") : close]
        if end < 0:
            break
        place = end
    if b"<DOCUMENT>" in data and not re.search(
        rb"</(?:SEC|IMS)-DOCUMENT>\s*(?:-----END[^\n]*)?\s*$", data[-200:]
    ):
        raise Refused("truncated-filing", "the submission breaks off before its main document")
    raise Refused("no-main-document", f"none of the submission's documents is of the type {form}")


def _readable(document: bytes) -> str:
    """Text of HTML or plain text; UTF-8 where it is that, else Windows-1252, which old filings are in."""
    try:
        return _decoded(document, "utf-8")
    except Refused as refused:
        if refused.reason != "text-not-utf8":
            raise
        return _decoded(document, "cp1252")


def _decoded(document: bytes, encoding: str) -> str:
    from ..media.documents import html_text, plain_text

    if re.search(rb"<html|<body|<div|<p\b|<font", document[: 4 * HEAD_BYTES], re.IGNORECASE):
        return html_text(document, encoding)
    text = _SGML_LINE.sub("", plain_text(document, encoding)).strip()
    if not text:
        raise Refused("no-text", "the main document is empty")
    return text


SOURCE = Source(
    spec=EdgarSpec,
    summary="SEC filings from EDGAR: full submissions, or HTML documents of annual and quarterly reports",
    columns=lambda spec: ("category", "text"),
    list_units=list_units,
    read=read,
)
