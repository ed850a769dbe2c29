"""Documents: plain text, HTML and PDF."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from eagleray.pipelines.media.documents import html_text, pdf_text
from eagleray.pipelines.quarantine import Refused
from eagleray.pipelines.shards import open_split
from eagleray.pipelines.sources.documents import SOURCE, DocumentsSpec
from eagleray.pipelines.stages.preprocess import PreprocessSpec

PAGE = b"""<!DOCTYPE html><html><head><meta charset="utf-8">
<title>T</title><script>var a = "<p>no</p>";</script>
<style>p { color: red }</style></head><body><nav>Home | About</nav><h1>Item 1A. Risk Factors</h1>
<p>One  <b>bold</b>\n word.</p><table><tr><td>a</td><td>b</td></tr><tr><td>1</td><td>2</td></tr></table>
<footer>Imprint</footer></body></html>"""


def pdf(text: str) -> bytes:
    """A PDF of one page with a line of text, written by hand."""
    stream = f"BT /F1 12 Tf 72 700 Td ({text}) Tj ET".encode()
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R"
        b" /Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    content, offsets = b"%PDF-1.4\n", []
    for number, one in enumerate(objects, 1):
        offsets.append(len(content))
        content += b"%d 0 obj\n%s\nendobj\n" % (number, one)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    start = len(content)
    content += b"xref\n0 %d\n0000000000 65535 f \n%s" % (len(objects) + 1, table)
    return content + b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (
        len(objects) + 1,
        start,
    )


def test_a_page_is_read_as_people_read_it():
    assert html_text(PAGE, None) == "Item 1A. Risk Factors\n\nOne bold word.\n\na\tb\n1\t2"


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("<meta charset=iso-8859-1><p>café".encode("latin-1"), "café"),
        ("<p>café".encode("utf-16"), "café"),
        ("\ufeff<p>café".encode(), "café"),
        ("<meta charset=nonsense><p>café".encode(), "café"),
    ],
)
def test_a_page_may_say_its_encoding(page, text):
    assert html_text(page, None) == text


def test_a_pdf_gives_its_text():
    assert pdf_text(pdf("Annual report 2024")) == "Annual report 2024"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GIF89a", "not-a-pdf"),
        (b"%PDF-1.4\nnonsense", "corrupt-pdf"),
        (pdf("")[:300], "corrupt-pdf"),
        (pdf(""), "no-text"),
    ],
)
def test_a_pdf_that_can_not_be_used_says_why(data, reason):
    with pytest.raises(Refused) as refused:
        pdf_text(data)
    assert refused.value.reason == reason


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    contents = {
        "a.txt": b"Plain.", "news/b.md": b"# Head\n\nText.", "news/c.html": PAGE,
        "d.pdf": pdf("In a PDF"), "e.txt": b"\xe9t\xe9", "f.txt": b" \n", "g.txt": b"MZ\x00\x01",
        "h.html": b"<script>1</script>", "i.jpg": b"no document", "j.txt": b"x" * 200,
    }  # fmt: skip
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (tmp_path / "secret").write_bytes(b"")
    (folder / "k.txt").symlink_to(tmp_path / "secret")
    return folder


def test_documents_of_all_kinds_are_read_and_the_others_are_refused(folder, read_source):
    reading = read_source(SOURCE, DocumentsSpec(max_bytes=900), folder)
    assert {name: row["text"].split()[0] for name, row in reading.records.items()} == {
        "a.txt": "Plain.",
        "d.pdf": "In",
        "j.txt": "x" * 200,
        "news/b.md": "#",
        "news/c.html": "Item",
    }
    assert {row["category"] for row in reading.records.values()} == {None, "news"}
    assert dict(reading.refusals) == {
        "e.txt": "text-not-utf8",
        "f.txt": "no-text",
        "g.txt": "not-text",
        "h.html": "no-text",
        "k.txt": "link-outside",
    }
    assert ("j.txt", "file-too-large") in read_source(SOURCE, DocumentsSpec(max_bytes=100), folder).refusals
    assert "e.txt" in read_source(SOURCE, DocumentsSpec(encoding="latin-1"), folder).records


def test_a_corpus_of_documents_is_cleaned_and_deduplicated(tmp_path, build):
    folder = tmp_path / "documents"
    folder.mkdir()
    for i in range(30):
        words = np.random.default_rng(i).choice([f"word{j}" for j in range(100)], 120)
        (folder / f"{i:02d}.txt").write_text(f"Report {i}. " + " ".join(words) + f" mail{i}@example.org")
    copy = (folder / "04.txt").read_text().replace("word", "word", 1) + " The end."
    (folder / "copy.txt").write_text(copy)
    spec = {
        "source": {"kind": "documents", "path": str(folder)},
        "operators": [
            {"kind": "normalise-text", "of": "text"},
            {"kind": "remove-pii", "of": "text"},
            {"kind": "near-duplicate-texts"},
        ],
    }
    built = build(PreprocessSpec.model_validate(spec))
    (refused,) = pq.read_table(built.folder / "quarantine.parquet").to_pylist()
    assert {refused["id"], refused["message"].split()[0]} == {"04.txt", "copy.txt"}
    rows = [
        row
        for split in ("train", "val", "test")
        for row in open_split(built.folder, split).column("text", "text_pii").to_pylist()
    ]
    assert len(rows) == 30
    assert all(row["text"].endswith(("[EMAIL]", "[EMAIL] The end.")) and row["text_pii"] == 1 for row in rows)
