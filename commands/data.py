"""`eagleray corpora` and `eagleray ledger`: what can be read, what was read, and what came of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from ..display import moment, print_table
from ..session import Session
from ..workflows.artifacts import Checkpoint, Corpus
from ..workflows.errors import EaglerayError
from .common import DEFAULT_HOME, AsJson, Database, Home, RunId, Store, err, out, print_fields

corpora = typer.Typer(no_args_is_help=True, help="List, fetch and inspect corpora.")
ledger = typer.Typer(no_args_is_help=True, help="Check what trainings have read.")


@corpora.command("list")
def list_corpora(
    kind: Annotated[str | None, typer.Argument(metavar="[KIND]", help="Show this kind's fields.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the kinds of source that a spec can name, or the fields of one with their defaults."""
    from ..pipelines.catalog import sources

    if kind is not None:
        print_fields({one.name: one.spec for one in sources().values()}, kind, "source", as_json)
        return
    rows = [
        {
            "source": one.name,
            "fetches": ", ".join(package.shown for package in one.fetched),
            "size_mb": one.size_bytes // 1_000_000 if one.fetched else "",
            "licence": one.licence,
            "summary": one.summary,
        }
        for one in sources().values()
    ]
    print_table(out, rows, as_json, "no sources")


@corpora.command("operators")
def list_operators(
    kind: Annotated[str | None, typer.Argument(metavar="[KIND]", help="Show this kind's fields.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the operators that a spec can name, or the fields of one with their defaults."""
    from ..pipelines.catalog import operators

    if kind is not None:
        print_fields({one.name: one.spec for one in operators().values()}, kind, "operator", as_json)
        return
    rows = [
        {
            "operator": one.name,
            "needs": ", ".join(one.needs(one.spec(kind=one.name))),
            "summary": one.summary,
        }
        for one in operators().values()
    ]
    print_table(out, rows, as_json, "no operators")


@corpora.command("fetch")
def fetch_corpus(
    name: Annotated[str, typer.Argument(metavar="CORPUS", help="One of `eagleray corpora list`.")],
    home: Home = DEFAULT_HOME,
) -> None:
    """Fetch a corpus, verify its digest and print the folder of the unpacked copy."""
    from ..pipelines.catalog import fetch

    typer.echo(fetch(name, Session(home).home / "downloads", err.print))


@corpora.command("inspect")
def inspect_corpus(
    source: Annotated[
        str, typer.Argument(metavar="[RUN|FOLDER]", help="A run, or a corpus's folder.")
    ] = "last",
    stage: Annotated[str | None, typer.Option(help="The stage, if the run made several corpora.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The page.", show_default="HOME/inspect/….html")
    ] = None,
    samples: Annotated[int, typer.Option(min=0, help="Records shown of each split and each reason.")] = 12,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers and write no page.")] = False,
    home: Home = DEFAULT_HOME,
    store: Store = None,
    database: Database = None,
) -> None:
    """Show what a corpus holds and what was refused, on one HTML page.

    Counts and samples of records and refusals; lengths, sizes, durations, languages and categories of each
    split; duplicates, and whether anything stands in two splits. The page needs no network.
    """
    from ..pipelines.inspecting import inspect
    from ..pipelines.page import render

    session = Session(home, store, database)
    folder, title, about, spec = _corpus(session, source, stage)
    found = inspect(folder, 0 if as_json else samples)
    if as_json:
        typer.echo(json.dumps(found.numbers(), ensure_ascii=False))
        return
    page = output or session.home / "inspect" / f"{title.replace(' ', '-')}.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    html = render(found, title, about, spec.get("error_budget"), spec.get("error_budgets"))
    page.write_text(html, encoding="utf-8")
    rows: list[Mapping[str, Any]] = [
        {"split": name, **split.model_dump()} for name, split in found.info.splits.items()
    ]
    print_table(out, rows, False, "no splits")
    for one in found.refusals:
        out.print(f"{one.count:,} refused: {one.reason}, {one.broken:,} of them broken")
    for leak in found.leaks:
        out.print(Text.assemble(("leakage: ", "bold red"), leak))
    if not found.leaks:
        out.print("nothing stands in two splits")
    out.print(f"the page: {page}")


def _corpus(
    session: Session, source: str, stage: str | None
) -> tuple[Path, str, list[str], Mapping[str, Any]]:
    """A corpus's folder, its title, lines about it, and the spec of its stage as far as it is known."""
    folder = Path(source)
    if (folder / "corpus.json").is_file():
        return folder, folder.absolute().name, [], {}
    made = [one for one in session.made(source, Corpus) if stage in (None, one.stage)]
    run = session.log.find(source)
    if not made:
        raise EaglerayError(
            f"run {run.id} has made no corpus{f' in {stage!r}' if stage else ''}", "resume it"
        )
    if len(made) > 1:
        names = ", ".join(one.stage for one in made)
        raise EaglerayError(f"run {run.id} has made several corpora: {names}", "name one with --stage")
    record = made[0]
    about = [f"stage {record.stage} of {run.workflow}, run {run.id}, made {moment(record.created_s)}"]
    return session.store.open(record).path, f"{run.workflow} {record.stage}", about, record.spec


@ledger.command("verify")
def verify_ledger(
    run_id: RunId = "last",
    as_json: AsJson = False,
    home: Home = DEFAULT_HOME,
    store: Store = None,
    database: Database = None,
) -> None:
    """Recompute from the corpus what each of a run's trainings has read, in which order, and how often.

    A ledger lies in every checkpoint. It fails here when a record was used twice in an epoch, left out, or
    taken from another corpus, or when the ledger was changed.
    """
    from ..pipelines.ledger import verify_checkpoint

    session = Session(home, store, database)
    rows: list[Mapping[str, Any]] = []
    for record in session.made(run_id, Checkpoint):
        if "corpus" not in record.parents:  # imported weights: nothing was read
            continue
        checked = verify_checkpoint(session.store.open(record).path, session.parent(record, "corpus").path)
        rows.append({"stage": record.stage, **checked})
    print_table(out, rows, as_json, "the run has made no checkpoint")
