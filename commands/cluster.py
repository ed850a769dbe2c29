"""`eagleray cluster`: who can reach a Ray cluster, and certificates that close it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from ..display import new_table
from ..workflows.hosts import address_of
from .common import DEFAULT_HOME, AsJson, Home, err, out

if TYPE_CHECKING:
    from ..cluster.doctor import Report

cluster = typer.Typer(no_args_is_help=True, help="Find out who can reach a Ray cluster, and close it.")

COLOURS = {"closed": "green", "guarded": "green", "unclear": "yellow", "exposed": "bold red"}


@cluster.command()
def doctor(
    address: Annotated[
        str | None,
        typer.Option(
            help="HOST:PORT of a head: what of it is reached from here; auto: all Ray of this machine.",
            show_default="this home's own cluster",
        ),
    ] = None,
    firewall: Annotated[
        bool, typer.Option("--firewall", help="Print rules for nftables that close what is exposed.")
    ] = False,
    allow: Annotated[
        list[str] | None,
        typer.Option(metavar="NETWORK", help="With --firewall: the cluster's machines; may be repeated."),
    ] = None,
    as_json: AsJson = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """Find every port of a Ray cluster that anyone may use, and every secret that others can read.

    Each port is asked, without a token, what it is and whether it wants one: nothing is changed by that.
    Fails if something is exposed. A firewall isn't seen on the machine itself: look from another one, with
    --address.
    """
    from ..cluster.doctor import examine_address, examine_home, examine_machine
    from ..cluster.doctor import firewall as rules

    home = home.expanduser().absolute()
    if address is not None and address != "auto":
        report = examine_address(address, home)
    else:
        own = examine_home(home) if address is None else None
        report = own or examine_machine(home)
    if as_json:
        typer.echo(json.dumps({**asdict(report), "exposed": report.exposed}, default=str, indent=2))
    elif firewall:
        typer.echo(rules(report, allow or []))
    else:
        _show(report)
    if report.exposed and not firewall:
        raise typer.Exit(1)


@cluster.command()
def certificates(
    folder: Annotated[
        Path | None, typer.Argument(help="Where they are put.", show_default="HOME/certificates")
    ] = None,
    host: Annotated[
        list[str] | None,
        typer.Option(help="Name or address of a machine of the cluster; may be repeated."),
    ] = None,
    days: Annotated[int, typer.Option(min=1, help="Days that they are valid.")] = 365,
    home: Home = DEFAULT_HOME,
) -> None:
    """Make certificates for TLS between the processes and machines of a Ray cluster.

    This home's own cluster uses those in HOME/certificates from its next start on. For a cluster of machines,
    name all of them, copy the folder without ca-key.pem to each, and read its ray.env before `ray start` and
    before any command that connects: `. FOLDER/ray.env`. Whoever has no certificate of them reaches nothing.
    """
    from ..cluster import local
    from ..cluster.certificates import make_certificates

    home = home.expanduser().absolute()
    where = (folder or home / local.CERTIFICATES).expanduser().absolute()
    environment = make_certificates(where, host or [], days)
    out.print(f"certificates in {where}, for {days} days; the environment is in {environment}")
    if where == home / local.CERTIFICATES and local.running(home) is not None:
        err.print("this home's cluster goes on as it was started: eagleray down ends it")


def _show(report: Report) -> None:
    if not report.ports:
        err.print(f"no Ray listens {report.cluster}")
    table = new_table()
    for column in ("address", "process", "what", "token", "TLS", "", "remedy"):
        table.add_column(column)
    remedies: dict[str, int] = {}
    for one in report.ports:
        number = remedies.setdefault(one.remedy, len(remedies) + 1) if one.remedy else None
        table.add_row(
            address_of(one.host, one.port),
            one.process,
            one.what,
            {True: "asked", False: "no", None: "?"}[one.token],
            "yes" if one.tls else "no",
            Text(one.verdict, style=COLOURS[one.verdict]),
            f"({number})" if number else "",
        )
    out.print(f"Ray {report.cluster}")
    if report.ports:
        out.print(table)
    for remedy, number in remedies.items():
        out.print(f"({number}) {remedy}")
    for path in report.files:
        out.print(
            Text.assemble(("exposed ", COLOURS["exposed"]), f"others can read {path}: chmod 600 {path}")
        )
    for line in report.unseen:
        out.print(f"not seen: {line}")
    count = sum(one.verdict == "exposed" for one in report.ports) + len(report.files)
    out.print(f"{count or 'nothing'} exposed")
