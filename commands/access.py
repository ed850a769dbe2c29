"""`eagleray tokens`: who may ask a service."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from ..display import moment, print_table
from ..workflows.errors import EaglerayError
from .common import DEFAULT_HOME, AsJson, Home, err, out

tokens = typer.Typer(no_args_is_help=True, help="Create, list and revoke tokens that requests must have.")

Folder = Annotated[
    str | None,
    typer.Option(
        "--folder",
        envvar="EAGLERAY_TOKENS",
        help="Where they lie: a folder, s3://… or gs://…",
        show_default="HOME/tokens",
    ),
]


@tokens.command()
def create(
    name: Annotated[str, typer.Argument(help="Whose it is.")],
    scope: Annotated[
        list[str] | None, typer.Option(help="What it may ask; may be repeated.", show_default="everything")
    ] = None,
    days: Annotated[
        int | None, typer.Option(min=1, help="Days until it expires.", show_default="never")
    ] = None,
    requests_per_s: Annotated[float | None, typer.Option(min=0.001, help="Requests a second.")] = None,
    requests_per_day: Annotated[int | None, typer.Option(min=1, help="Requests a day.")] = None,
    folder: Folder = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Create a token, and print it, once: only a hash of it is kept.

    A service asks for tokens that is told where they lie: `tokens: FOLDER` in its stage, or
    `eagleray serve --tokens FOLDER`. It knows a new one, and refuses a revoked one, within two seconds.
    """
    from ..actors.serving.tokens import SCOPES, TokenFolder, issue

    unknown = sorted(set(scope or ()) - set(SCOPES))
    if unknown:
        raise EaglerayError(f"there is no scope {', '.join(unknown)}", f"there are: {', '.join(SCOPES)}")
    where = _where(folder, home)
    token, sent = issue(
        name,
        tuple(one for one in SCOPES if scope is None or one in scope),
        expires=datetime.now(UTC) + timedelta(days=days) if days else None,
        requests_per_s=requests_per_s,
        requests_per_day=requests_per_day,
    )
    TokenFolder(where).add(token)
    err.print(f"token {token.id} of {name}, kept in {where}; this is shown once:")
    out.print(sent)


@tokens.command("list")
def list_tokens(folder: Folder = None, as_json: AsJson = False, home: Home = DEFAULT_HOME) -> None:
    """List the tokens there are."""
    from ..actors.serving.tokens import TokenFolder

    rows = [
        {
            "id": one.id,
            "name": one.name,
            "scopes": ", ".join(one.scopes),
            "created": moment(one.created.timestamp()),
            "expires": moment(one.expires.timestamp()) if one.expires else "",
            "requests_per_s": one.requests_per_s or "",
            "requests_per_day": one.requests_per_day or "",
        }
        for one in sorted(TokenFolder(_where(folder, home)).all().values(), key=lambda one: one.created)
    ]
    print_table(out, rows, as_json, "no tokens")


@tokens.command()
def revoke(
    number: Annotated[str, typer.Argument(metavar="ID", help="A token's id.")],
    folder: Folder = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Revoke a token: services refuse it within two seconds."""
    from ..actors.serving.tokens import TokenFolder

    token = TokenFolder(_where(folder, home)).revoke(number)
    out.print(f"revoked {token.id} of {token.name}")


def _where(folder: str | None, home: Path) -> str:
    return folder or str((home / "tokens").absolute())
