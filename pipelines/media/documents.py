"""Readable text of documents: plain text, HTML and PDF."""

from __future__ import annotations

import io
import logging
import re
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE, lookup

from ..quarantine import Refused

MAX_PAGES = 5_000
_BOMS = ((BOM_UTF8, "utf-8-sig"), (BOM_UTF16_LE, "utf-16"), (BOM_UTF16_BE, "utf-16"))
_CHARSET = re.compile(rb"""<meta[^>]+charset\s*=\s*["']?\s*([A-Za-z0-9_-]+)""", re.IGNORECASE)
_UNREADABLE = "script, style, noscript, template, nav, header, footer, svg, head, iframe"
_BLOCKS = (
    "p, div, br, li, tr, h1, h2, h3, h4, h5, h6, section, article, table, ul, ol, pre, blockquote, dt, dd"
)
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
    """Readable text of a page: no scripts, styles, navigation; a line for each block, tabs between cells.

    Raises:
        Refused: when it can't be decoded, or has no text.
    """
    from selectolax.lexbor import LexborHTMLParser

    declared = _CHARSET.search(data[:4096])
    if encoding is None and declared is not None:
        encoding = _known(declared[1].decode("ascii"))
    tree = LexborHTMLParser(plain_text(data, encoding))
    for node in tree.css(_UNREADABLE):
        node.decompose()
    for node in tree.css("td, th"):
        node.insert_after("\t")
    for node in tree.css(_BLOCKS):
        node.insert_before("\n")
        node.insert_after("\n")
    body = tree.body or tree.root
    text = body.text(deep=True) if body is not None else ""
    lines = (
        "\t".join(_SPACES.sub(" ", cell).strip() for cell in line.split("\t")) for line in text.split("\n")
    )
    text = _EMPTY_LINES.sub("\n\n", "\n".join(line.rstrip("\t") for line in lines)).strip()
    if not text:
        raise Refused("no-text", "the page has no readable text")
    return text


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


def _known(charset: str) -> str | None:
    try:
        return lookup(charset).name
    except LookupError:
        return None
