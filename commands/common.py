"""What commands have in common: where they print, and the options that most of them take."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel
from rich.console import Console

from ..display import field_rows, print_table
from ..workflows.errors import EaglerayError

FILE_WIDTH = 1000  # columns of a table that no one sees wrapped


def make_console(stderr: bool, width: int | None = None) -> Console:
    """A console that prints what it is given, of any width if none is told."""
    return Console(stderr=stderr, width=width, highlight=False, markup=False, emoji=False, soft_wrap=True)


out = make_console(stderr=False, width=None if sys.stdout.isatty() else FILE_WIDTH)
err = make_console(stderr=True)

SpecFile = Annotated[Path, typer.Argument(metavar="SPEC", help="The workflow's YAML file.")]
RunId = Annotated[str, typer.Argument(metavar="[RUN]", help="A run's id, its beginning, or `last`.")]
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
        envvar="EAGLERAY_STORE",
        help="Where artifacts lie: a folder, s3://… or gs://…",
        show_default="HOME/store",
    ),
]
Database = Annotated[
    str | None,
    typer.Option(
        envvar="EAGLERAY_DATABASE",
        help="URL of the run log: sqlite:///… or postgresql+psycopg://…",
        show_default="SQLite in HOME",
    ),
]
Address = Annotated[
    str | None,
    typer.Option(help="A Ray cluster: HOST:PORT, ray://… or auto.", show_default="one on this machine"),
]
Uncertified = Annotated[
    bool,
    typer.Option("--uncertified", help="Train without certificates all the same; checkpoints will say so."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
DEFAULT_HOME = Path(".eagleray")


def print_fields(specs: Mapping[str, type[BaseModel]], kind: str, what: str, as_json: bool) -> None:
    """Print a kind's fields with their defaults."""
    if kind not in specs:
        raise EaglerayError(f"there is no {what} {kind!r}", f"there are: {', '.join(specs)}")
    print_table(out, field_rows(specs[kind]), as_json, "no fields")
