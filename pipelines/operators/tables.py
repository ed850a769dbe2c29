"""Tables in documents, whose rows are lines with tabs between cells, as HTML is read."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Literal

from pydantic import Field

from ..operator import Apply, Operator, OperatorSpec
from ..quarantine import Refuse, Refused
from ..source import Row
from ..spec import Preparation


class FormatTablesSpec(OperatorSpec):
    """Write a document's tables as Markdown, or leave them out."""

    kind: Literal["format-tables"] = "format-tables"
    to: Literal["markdown", "nothing"] = "markdown"
    """Markdown rows, the first one as the heading; or nothing, for models of prose."""
    min_rows: int = Field(default=2, ge=1)
    """Rows below which lines with tabs are no table, and stay."""


class SplitTablesSpec(OperatorSpec):
    """Make each table of a document a record of its own, in Markdown below the line before it, its title."""

    kind: Literal["split-tables"] = "split-tables"
    min_rows: int = Field(default=2, ge=1)
    """Rows below which lines with tabs are no table, and stay in the text."""
    keep_text: bool = True
    """The document without its tables is a record, too."""


def pieces(text: str, min_rows: int) -> list[tuple[bool, list[str]]]:
    """A text's lines in runs, each with whether it is a table."""
    runs = [
        (is_table, list(lines)) for is_table, lines in groupby(text.split("\n"), lambda line: "\t" in line)
    ]
    return [(is_table and len(lines) >= min_rows, lines) for is_table, lines in runs]


def markdown(lines: Sequence[str]) -> list[str]:
    """Rows of a table in Markdown; a bar in a cell is escaped, all else as it is written."""
    rows = [[cell.replace("|", "\\|") for cell in line.split("\t")] for line in lines]
    width = max(len(row) for row in rows)
    written = ["| " + " | ".join([*row, *[""] * (width - len(row))]) + " |" for row in rows]
    return [written[0], "|" + " --- |" * width, *written[1:]]


def format_tables(spec: FormatTablesSpec, preparation: Preparation) -> Apply:
    """`text` with its tables in Markdown, or without them."""

    def apply(row: Row, refuse: Refuse) -> Row | None:
        if row["text"] is None:
            return None
        lines: list[str] = []
        for is_table, run in pieces(row["text"], spec.min_rows):
            if not is_table:
                lines += run
            elif spec.to == "markdown":
                lines += markdown(run)
        return {"text": "\n".join(lines)}

    return apply


def split_tables(spec: SplitTablesSpec, preparation: Preparation) -> Apply:
    """`text` → a record for the text without tables, and one for each table."""

    def apply(row: Row, refuse: Refuse) -> list[Row] | None:
        if row["text"] is None:
            return None
        prose: list[str] = []
        tables: list[Row] = []
        for is_table, run in pieces(row["text"], spec.min_rows):
            if is_table:
                title = next((line for line in reversed(prose) if line.strip()), "")
                tables.append({"text": "\n".join([*[title] * bool(title), *markdown(run)])})
            else:
                prose += run
        kept = [{"text": "\n".join(prose)}] if spec.keep_text and any(line.strip() for line in prose) else []
        if not kept and not tables:
            raise Refused("no-tables", "the document has no table", wanted=True)
        return [*kept, *tables]

    return apply


FORMAT = Operator(
    spec=FormatTablesSpec,
    summary="write a document's tables as Markdown, or leave them out",
    needs=lambda spec: ("text",),
    gives=lambda spec: ("text",),
    start=format_tables,
)
SPLIT = Operator(
    spec=SplitTablesSpec,
    summary="make each table of a document a record of its own",
    needs=lambda spec: ("text",),
    gives=lambda spec: ("text",),
    start=split_tables,
    splits=True,
)
