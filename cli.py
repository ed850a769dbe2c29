"""The `eagleray` command: finds the stages, parses, calls, prints."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from .workflows.errors import EaglerayError

STAGE_PACKAGES = ("eagleray.pipelines.stages", "eagleray.actors.stages")

app = typer.Typer(
    name="eagleray",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="One typed YAML file becomes a trained, evaluated and served multimodal model, on Ray.",
    epilog="Start with: eagleray plan examples/quickstart.yaml, then eagleray run examples/quickstart.yaml",
)
corpora = typer.Typer(no_args_is_help=True, help="The corpora that a spec can name as a source.")
app.add_typer(corpora, name="corpora")
console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)

SpecFile = Annotated[Path, typer.Argument(metavar="SPEC", help="The workflow's YAML file.")]
RunId = Annotated[str, typer.Argument(metavar="RUN", help="The run's id, or `last`.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="STAGE.FIELD=VALUE", help="Override a field; may be repeated."),
]
Home = Annotated[
    Path, typer.Option(envvar="EAGLERAY_HOME", help="Folder of runs, artifacts, downloads and scratch.")
]
Store = Annotated[
    str | None,
    typer.Option(
        envvar="EAGLERAY_STORE", help="Where artifacts lie: a folder, s3://… or gs://… [default: HOME/store]"
    ),
]
Database = Annotated[
    str | None,
    typer.Option(envvar="EAGLERAY_DATABASE", help="URL of the run log [default: SQLite in HOME]"),
]
Address = Annotated[
    str | None,
    typer.Option(help="A Ray cluster that runs (HOST:PORT, ray://…, auto); without it, one on this machine."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

DEFAULT_HOME = Path(".eagleray")


@app.command()
def run(
    spec: SpecFile,
    overrides: Overrides = None,
    address: Address = None,
    home: Home = DEFAULT_HOME,
    store: Store = None,
    database: Database = None,
) -> None:
    """Carry out a workflow: stages whose result exists are skipped, the others run as soon as they can.

    Killed at any moment, it is taken up again by `eagleray resume`.
    """
    from .session import Session

    session = Session(home, store, database)
    workflow = session.load(spec, overrides or [])
    raise typer.Exit(session.carry_out(workflow, address, console))


@app.command()
def plan(
    spec: SpecFile,
    overrides: Overrides = None,
    as_json: AsJson = False,
    home: Home = DEFAULT_HOME,
    store: Store = None,
) -> None:
    """Show what `run` would do, and why: which stages are cached, which would run. Allocates nothing."""
    from .display import print_table
    from .session import Session, plan_rows

    session = Session(home, store, None)
    print_table(console, plan_rows(session.plan(session.load(spec, overrides or []))), as_json, "no stages")


@app.command()
def resume(
    run_id: RunId = "last",
    address: Address = None,
    home: Home = DEFAULT_HOME,
    store: Store = None,
    database: Database = None,
) -> None:
    """Take up a run that was killed, cancelled or failed; what was finished is not done again."""
    from .session import Session

    session = Session(home, store, database)
    raise typer.Exit(session.resume(run_id, address, console))
