"""Readable text of documents: plain text, HTML and PDF."""

from __future__ import annotations

import io
import logging
import re
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE, lookup
from collections.abc import Iterator, Sequence
from itertools import groupby

from ..quarantine import Refused

MAX_PAGES = 5_000
MAX_COLSPAN = 100
MAX_CELL = 1_000
"""Characters from which on a cell is a part of the page."""
MAX_COLUMNS = 1_000
"""A table with more is left as it is laid out."""
_OPENING = ("$", "€", "£", "¥", "(", "$(", "€(", "£(")
_CLOSING = (")", "%", ")%", "% )", ") %")
_BOMS = ((BOM_UTF8, "utf-8-sig"), (BOM_UTF16_LE, "utf-16"), (BOM_UTF16_BE, "utf-16"))
_CHARSET = re.compile(rb"""<meta[^>]+charset\s*=\s*["']?\s*([A-Za-z0-9_-]+)""", re.IGNORECASE)
_UNREADABLE = (
    "script, style, noscript, template, nav, header, footer, svg, head, iframe, [hidden], "
    "[style*='display:none'], [style*='display: none'], ix\\:header"
)
_PREFORMATTED = re.compile(r"(<pre\b.*?</pre>)", re.IGNORECASE | re.DOTALL)
_BLOCKS = "p, div, br, li, h1, h2, h3, h4, h5, h6, section, article, table, ul, ol, pre, blockquote, dt, dd"
_HTML = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype html|\?xml|html|head|body)\b", re.IGNORECASE)
_SPACES = re.compile(r"[^\S\n]+")
_EMPTY_LINES = re.compile(r"\n\s*\n+")


def plain_text(data: bytes, encoding: str | None) -> str:
    """Decode text; UTF-8, or what its mark says, unless an encoding is named.

    Raises:
        Refused: when it is in another encoding, or no text.
    """
    encoding = encoding or next((name for mark, name in _BOMS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        found = f"byte 0x{data[error.start]:02x} at {error.start}"
        raise Refused("text-not-utf8", f"the text is not {encoding}: {found}") from error
    if "\0" in text:
        raise Refused("not-text", "the content is no text: it has characters of value 0")
    return text


def html_text(data: bytes, encoding: str | None) -> str:
    """Readable text of a page: no scripts, styles, navigation, nothing hidden; a line for each block.

    A table is a line for each row, with tabs between cells; see `tidy_table`.

    Raises:
        Refused: when it can't be decoded, or has no text.
    """
    from selectolax.lexbor import LexborHTMLParser

    declared = _CHARSET.search(data[:4096])
    if encoding is None and declared is not None:
        encoding = _known(declared[1].decode("ascii"))
    parts = _PREFORMATTED.split(plain_text(data, encoding))  # every second one is preformatted
    parts[::2] = [part.replace("\r", " ").replace("\n", " ") for part in parts[::2]]
    tree = LexborHTMLParser("".join(parts))
    for node in tree.css(_UNREADABLE):
        node.decompose()
    for node in tree.css("td, th"):
        if node.css_first("table") is not None or len(node.text(deep=True)) > MAX_CELL:
            node.insert_after("\n")  # a table that only lays the page out
            continue
        span = str(node.attributes.get("colspan") or "1")
        node.insert_after("\t" * (min(int(span), MAX_COLSPAN) if span.isdecimal() else 1))
        for block in node.css(_BLOCKS):  # a cell is one line
            block.insert_before(" ")
            block.unwrap()
    for node in tree.css("tr"):
        node.insert_after("\n")
    for node in tree.css(_BLOCKS):
        node.insert_before("\n")
        node.insert_after("\n")
    body = tree.body or tree.root
    text = body.text(deep=True) if body is not None else ""
    lines = [[_SPACES.sub(" ", cell).strip() for cell in line.split("\t")] for line in text.split("\n")]
    text = _EMPTY_LINES.sub("\n\n", "\n".join(_with_tidy_tables(lines))).strip()
    if not text:
        raise Refused("no-text", "the page has no readable text")
    return text


def tidy_table(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """A table as it is read, from one as it is laid out.

    Currency signs join the number after them, closing brackets and percent signs the one before. Then
    neighbouring columns become one where no row has something in both: a heading over several columns and
    the numbers below it, and columns that only hold space. The first, of labels, stays apart from columns
    that say something. What cells say stays as it is written.
    """
    width = max(len(row) for row in rows)
    if width > MAX_COLUMNS:
        return [list(row) for row in rows]
    table = [[*row, *[""] * (width - len(row))] for row in rows]
    for row in table:
        for place in range(width - 1):
            if row[place] in _OPENING and row[place + 1]:
                row[place], row[place + 1] = row[place] + row[place + 1], ""
        for place in range(width - 1, 0, -1):
            before = next((i for i in range(place - 1, -1, -1) if row[i]), 0)
            if row[place] in _CLOSING and before > 0:
                row[before], row[place] = row[before] + row[place], ""
    columns = [list(column) for column in zip(*table, strict=True)]
    kept = [columns[0]]
    for column in columns[1:]:
        labels = len(kept) == 1 and any(kept[0]) and any(column)
        if labels or any(left and right for left, right in zip(kept[-1], column, strict=True)):
            kept.append(column)
        else:
            kept[-1] = [left or right for left, right in zip(kept[-1], column, strict=True)]
    return [list(row) for row in zip(*kept, strict=True)]


def _with_tidy_tables(lines: Sequence[list[str]]) -> Iterator[str]:
    """Lines of cells as text, each run of rows as a tidy table."""
    for is_table, run in groupby(lines, key=lambda cells: len(cells) > 1):
        rows = [cells for cells in run if not is_table or any(cells)]
        for cells in tidy_table(rows) if is_table and rows else rows:
            yield "\t".join(cells).rstrip("\t")


def pdf_text(data: bytes, max_pages: int = MAX_PAGES) -> str:
    """Text of a PDF, pages separated by empty lines.

    Raises:
        Refused: when it is encrypted, broken, too long, or has pictures of text only.
    """
    from pypdf import PdfReader
    from pypdf.errors import PyPdfError

    logging.getLogger("pypdf").setLevel(logging.ERROR)  # it warns of every small fault
    if not data.startswith(b"%PDF-"):
        raise Refused("not-a-pdf", f"the content is no PDF: it starts with {data[:8]!r}")
    try:
        reader = PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise Refused("encrypted-pdf", "the PDF asks for a password")
        if len(reader.pages) > max_pages:
            raise Refused("pdf-too-long", f"the PDF has {len(reader.pages):,} pages, over {max_pages:,}")
        text = "\n\n".join(page.extract_text().strip() for page in reader.pages).strip()
    except Refused:
        raise
    except (PyPdfError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise Refused("corrupt-pdf", f"the PDF can't be read: {error}") from error
    if not text:
        raise Refused("no-text", "the PDF has no text, perhaps pictures of it")
    return text


def document_text(data: bytes) -> str:
    """Text of a PDF, an HTML page or plain text, whichever it is by its content.

    Raises:
        Refused: see `pdf_text`, `html_text` and `plain_text`.
    """
    if data.startswith(b"%PDF-"):
        return pdf_text(data)
    if _HTML.match(data[:4096]):
        return html_text(data, None)
    text = plain_text(data, None).strip()
    if not text:
        raise Refused("no-text", "the text holds nothing but spaces")
    return text


def _known(charset: str) -> str | None:
    try:
        return lookup(charset).name
    except LookupError:
        return None
