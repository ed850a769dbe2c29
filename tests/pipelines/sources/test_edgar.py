"""Filings as EDGAR gives them: a submission's main document, its company, its tables."""

from __future__ import annotations

from pathlib import Path

import pytest

from eagleray.pipelines.media.documents import html_text, tidy_table
from eagleray.pipelines.operators.tables import (
    FormatTablesSpec,
    SplitTablesSpec,
    format_tables,
    split_tables,
)
from eagleray.pipelines.quarantine import Refused
from eagleray.pipelines.sources.edgar import SOURCE, EdgarSpec
from eagleray.pipelines.spec import Preparation
from eagleray.pipelines.stages.preprocess import PreprocessSpec

HEADER = """\
<SEC-DOCUMENT>{accession}.txt : 20231103
<SEC-HEADER>{accession}.hdr.sgml : 20231102
<ACCEPTANCE-DATETIME>20231102180827
ACCESSION NUMBER:\t\t{accession}
CONFORMED SUBMISSION TYPE:\t{form}
PUBLIC DOCUMENT COUNT:\t\t3
CONFORMED PERIOD OF REPORT:\t20230930
FILED AS OF DATE:\t\t20231103

FILER:

\tCOMPANY DATA:\t
\t\tCOMPANY CONFORMED NAME:\t\t\tEXAMPLE WORKS INC.
\t\tCENTRAL INDEX KEY:\t\t\t{cik}
\t\tSTANDARD INDUSTRIAL CLASSIFICATION:\tELECTRONIC COMPUTERS [3571]
</SEC-HEADER>
"""
DOCUMENT = """\
<DOCUMENT>
<TYPE>{kind}
<SEQUENCE>{number}
<FILENAME>{name}
<TEXT>
{text}
</TEXT>
</DOCUMENT>
"""
PAGE = """\
<XBRL>
<?xml version='1.0' encoding='ASCII'?>
<html xmlns="http://www.w3.org/1999/xhtml" xmlns:ix="http://www.xbrl.org/2013/inlineXBRL">
<head><title>ex-20230930</title></head>
<body>
<div style="display:none"><ix:header><ix:hidden>
<ix:nonNumeric contextRef="c-1" name="dei:EntityCentralIndexKey" id="f-1">0000012345</ix:nonNumeric>
</ix:hidden></ix:header></div>
<p>UNITED STATES SECURITIES AND EXCHANGE COMMISSION</p>
<p>FORM <ix:nonNumeric contextRef="c-1" name="dei:DocumentType" id="f-2">10-K</ix:nonNumeric></p>
<p>Net sales by segment, in millions:</p>
<table>
<tr><td colspan="3"></td><td colspan="3">2023</td>
<td colspan="3"></td><td colspan="3">2022</td></tr>
<tr><td colspan="3"><p>Boards</p></td><td>$</td>
<td><ix:nonFraction name="a:b">1,234.5</ix:nonFraction></td><td></td>
<td colspan="3"></td><td>$</td><td>(98</td><td>)</td></tr>
<tr><td colspan="3">Margin</td><td></td><td>41.2</td><td>%</td>
<td colspan="3"></td><td></td><td>—</td><td></td></tr>
<tr><td colspan="3">Total</td><td colspan="2">7</td><td></td>
<td colspan="3"></td><td colspan="2">12</td><td></td></tr>
</table>
<p>It rose.</p>
</body></html>
</XBRL>"""
TABLE = ["\t2023\t2022", "Boards\t$1,234.5\t$(98)", "Margin\t41.2%\t—", "Total\t7\t12"]


def submission(
    form: str = "10-K", cik: str = "0000012345", accession: str = "0000012345-23-000106", text: str = PAGE
) -> str:
    documents = [(form, 1, "ex-20230930.htm", text), ("EX-31.1", 2, "ex31.htm", "<html>certification</html>")]
    parts = [
        DOCUMENT.format(kind=kind, number=number, name=name, text=body)
        for kind, number, name, body in documents
    ]
    return HEADER.format(form=form, cik=cik, accession=accession) + "".join(parts) + "</SEC-DOCUMENT>\n"


def write(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def test_a_submissions_main_document_is_the_record(read_source, tmp_path):
    write(tmp_path / "f/12345/10-K/0000012345-23-000106/full-submission.txt", submission())
    write(tmp_path / "f/12345/10-K/0000012345-23-000106/primary-document.html", "<html>the same again</html>")
    reading = read_source(SOURCE, EdgarSpec(), tmp_path / "f")
    assert reading.refusals == []
    (record,) = reading.records.values()
    assert record["id"] == "0000012345-23-000106"
    assert record["group"] == "company 12345"
    assert record["category"] == "10-K"
    lines = record["text"].split("\n")
    assert "certification" not in record["text"]
    assert not any("12345" in line for line in lines)  # the hidden header
    start = lines.index(TABLE[0])
    assert lines[start : start + 4] == TABLE
    assert lines[-1] == "It rose."


@pytest.mark.parametrize(
    ("category", "expected"), [("none", None), ("sic", "3571"), ("year", "2023"), ("form", "10-K")]
)
def test_a_category_is_what_is_asked_for(read_source, tmp_path, category, expected):
    write(tmp_path / "f/a.txt", submission())
    (record,) = read_source(SOURCE, EdgarSpec(category=category), tmp_path / "f").records.values()
    assert record["category"] == expected


def test_a_document_alone_says_itself_what_it_is(read_source, tmp_path):
    write(tmp_path / "f/reports/ex-20230930.htm", PAGE)
    write(tmp_path / "f/reports/notes.txt", "some notes")
    reading = read_source(SOURCE, EdgarSpec(), tmp_path / "f")
    assert reading.refusals == [("reports/notes.txt", "not-a-filing")]
    (record,) = reading.records.values()
    assert (record["id"], record["group"]) == ("reports/ex-20230930.htm", "company 12345")


def test_a_document_without_xbrl_is_known_by_its_folders(read_source, tmp_path):
    page = "<html><body><p>Item 1. Business</p></body></html>"
    write(tmp_path / "f/AAPL/10-Q/0000320193-05-000012/primary-document.html", page)
    write(tmp_path / "f/edgar/data/777/000077712301000009/page.htm", page.replace("<body>", "<body>10"))
    reading = read_source(SOURCE, EdgarSpec(), tmp_path / "f")
    assert reading.refusals == [("edgar/data/777/000077712301000009/page.htm", "not-a-filing")]  # no form
    (record,) = reading.records.values()
    assert (record["id"], record["group"]) == ("0000320193-05-000012", "company AAPL")


def test_an_old_text_loses_its_marks_and_keeps_its_words(read_source, tmp_path):
    text = (
        "ANNUAL REPORT\n<PAGE>\n<TABLE>\n<CAPTION>\nYear\n<S>   <C>\nSales  12\n</TABLE>\nCaf\xe9 \x97 done"
    )
    whole = submission(text=text).replace("SEC-DOCUMENT", "IMS-DOCUMENT").replace("SEC-HEADER", "IMS-HEADER")
    write(tmp_path / "f/old.txt", whole.encode("latin-1"))
    (record,) = read_source(SOURCE, EdgarSpec(), tmp_path / "f").records.values()
    assert " ".join(record["text"].split()) == "ANNUAL REPORT Year Sales 12 Café — done"


def test_what_is_no_whole_filing_is_refused_with_its_reason(read_source, tmp_path):
    good = submission()
    cases = {
        "amended.txt": (submission(form="10-K/A"), "other-form"),
        "cut-in-document.txt": (good[: good.index("It rose")], "truncated-filing"),
        "cut-in-header.txt": (good[:200], "not-a-filing"),
        "cut-before.txt": (good.replace("<TYPE>10-K\n", "<TYPE>EX-1\n")[:-30], "truncated-filing"),
        "notes.txt": ("some notes", "not-a-filing"),
        "no-main.txt": (good.replace("<TYPE>10-K\n", "<TYPE>EX-1\n"), "no-main-document"),
        "nobody.txt": (good.replace("CENTRAL INDEX KEY:\t\t\t0000012345", ""), "no-company"),
        "empty.txt": (submission(text="<html><body></body></html>"), "no-text"),
        "large.txt": (good + " " * 20_000, "file-too-large"),
    }
    for name, (content, _) in cases.items():
        write(tmp_path / "f" / name, content)
    reading = read_source(SOURCE, EdgarSpec(max_bytes=20_000), tmp_path / "f")
    assert reading.records == {}
    assert dict(reading.refusals) == {name: reason for name, (_, reason) in cases.items()}


def test_no_company_stands_in_two_splits(build, tmp_path):
    for company in range(12):
        for year in range(3):
            accession = f"{company:010d}-{year:02d}-000001"
            text = PAGE.replace("It rose.", f"Company {company} in year {year}.")
            write(
                tmp_path / f"{accession}.txt",
                submission(cik=f"{company + 1:010d}", accession=accession, text=text),
            )
    spec = {
        "source": {"kind": "edgar", "path": str(tmp_path)},
        "operators": [{"kind": "split-tables"}],
        "preparation": {"vocab_size": 300},
        "packing": {"length": 256},
        "splits": {"train": 0.6, "val": 0.2, "test": 0.2},
    }
    built = build(PreprocessSpec.model_validate(spec))
    assert sum(split["documents"] for split in built.facts["splits"].values()) == 12 * 3 * 2

    import pyarrow as pa

    from eagleray.pipelines.contracts import shard_paths

    split_of: dict[str, str] = {}
    for split in built.facts["splits"]:
        for path in shard_paths(built.folder, split):
            for group in pa.ipc.open_file(str(path)).read_all()["group"].to_pylist():
                assert split_of.setdefault(group, split) == split
    assert len(split_of) == 12


# ── tables ─────────────────────────────────────────────────────────────────────────────────────────


def test_columns_that_are_space_or_never_meet_are_one():
    rows = [
        ["", "2023", "", "", "2022"],
        ["a", "$", "1", "", "5"],
        ["b", "", "2", "", "6"],
        ["c", "", "(3", ")", "7"],
    ]
    assert tidy_table(rows) == [["", "2023", "2022"], ["a", "$1", "5"], ["b", "2", "6"], ["c", "(3)", "7"]]


def test_cells_with_several_paragraphs_are_one_line():
    first = "<tr><td><p>Cash</p><p>and more</p></td><td><div>5</div></td></tr>"
    page = f"<table>{first}<tr><td>x</td><td>6</td></tr></table>"
    assert html_text(page.encode(), None).split("\n") == ["Cash and more\t5", "x\t6"]


def test_a_table_that_lays_the_page_out_is_no_table():
    inner = "<table><tr><td>Sales</td><td>5</td></tr><tr><td>Costs</td><td>6</td></tr></table>"
    body = f"<p>First.</p><p>Second.</p>{inner}<p>{'long ' * 300}</p>"
    page = f"<table><tr><td>Menu</td><td>{body}</td></tr></table>"
    lines = [line for line in html_text(page.encode(), None).split("\n") if line]
    assert lines == ["Menu", "First.", "Second.", "Sales\t5", "Costs\t6", ("long " * 300).strip()]


def test_a_hostile_table_is_left_as_it_is_laid_out():
    page = "<table>" + "<tr>" + "<td colspan=99999999>1</td>" * 30 + "</tr></table>"
    assert html_text(page.encode(), None).split() == ["1"] * 30


TEXT = "Intro\n\nSales by year\n" + "\n".join(TABLE) + "\n\nOne\tline\n\nThe end"


def test_tables_become_markdown_or_nothing():
    (markdown, nothing) = (
        format_tables(FormatTablesSpec(to=to), Preparation())({"text": TEXT}, None)["text"]  # pyright: ignore
        for to in ("markdown", "nothing")
    )
    assert "|  | 2023 | 2022 |\n| --- | --- | --- |\n| Boards | $1,234.5 | $(98) |" in markdown
    assert "One\tline" in markdown
    assert nothing == "Intro\n\nSales by year\n\nOne\tline\n\nThe end"


def test_each_table_is_a_record_below_its_title():
    found = split_tables(SplitTablesSpec(), Preparation())({"text": TEXT}, None)  # pyright: ignore
    assert isinstance(found, list)
    text, table = (one["text"] for one in found)
    assert table.split("\n")[0] == "Sales by year"
    assert table.split("\n")[-1] == "| Total | 7 | 12 |"
    assert "1,234.5" not in text
    with pytest.raises(Refused) as caught:
        split_tables(SplitTablesSpec(keep_text=False), Preparation())({"text": "no table"}, None)  # pyright: ignore
    assert caught.value.reason == "no-tables"
