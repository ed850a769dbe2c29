"""`eagleray lineage`: from an answer's header back to weights, corpus and spec."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text
from rich.tree import Tree

from ..display import moment
from ..session import Session
from ..workflows.errors import EaglerayError
from ..workflows.events import RunInfo
from ..workflows.hosts import is_loopback
from ..workflows.lineage import Origin, find, trace, trace_digests
from .common import DEFAULT_HOME, Database, Home, Store, out

TIMEOUT_S = 10.0


def lineage(
    source: Annotated[
        str,
        typer.Argument(
            metavar="DIGEST|URL|FOLDER",
            help="What a response's header x-eagleray-bundle says, a service, or a bundle's folder.",
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a tree.")] = False,
    home: Home = DEFAULT_HOME,
    store: Store = None,
    database: Database = None,
) -> None:
    """Show what a bundle, or any artifact, was made of: checkpoints, corpora, runs and their specs.

    A digest's first six digits are enough if no other begins so.
    """
    session = Session(home, store, database)
    origin, run_ids = _origin(session, source)
    runs = {one: _run(session, one) for one in run_ids}
    if as_json:
        told = {"artifact": _told(origin), "runs": {name: _told_run(run) for name, run in runs.items()}}
        typer.echo(json.dumps(told, indent=2, ensure_ascii=False))
        return
    out.print(_grow(Tree(_line("", origin)), origin))
    for name, run in runs.items():
        out.print()
        if run is None:
            out.print(f"run {name} is not in this home's run log")
            continue
        said = f"run {name} of {run.workflow}, {moment(run.created_s)}, by {run.filename}"
        out.print(Text(" ".join((said, *(f"--set {one}" for one in run.overrides))), style="bold"))
        out.print(run.text.rstrip())


def _origin(session: Session, source: str) -> tuple[Origin, list[str]]:
    """What a source was made of, and the runs that did it."""
    records = session.store.list()
    folder = Path(source)
    if source.startswith(("http://", "https://")):
        source = _served(source)
    elif (folder / "bundle.json").is_file():
        from ..pipelines.bundle import bundle_digest, read_info

        source = bundle_digest(folder)
        known = any(entry.sha256 == source for record in records for entry in record.files)
        if not known:  # a copy of another store's: it tells itself what it was made of
            about = read_info(folder).lineage
            parents = {"checkpoint": about.checkpoint, "corpus": about.corpus}
            origin = trace_digests(records, source, parents)
            return origin, list(dict.fromkeys((about.run_id, *origin.runs)))
    elif folder.is_dir():
        raise EaglerayError("this folder is no bundle: it has no bundle.json", where=source)
    origin = trace(records, find(records, source))
    return origin, origin.runs


def _served(url: str) -> str:
    """Digest of the bundle that a service serves."""
    address = f"{url.rstrip('/')}/healthz"
    opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if _is_here(url) else []))
    try:
        with opener.open(address, timeout=TIMEOUT_S) as response:
            return str(json.load(response)["bundle"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        said = f"status {error.code}" if isinstance(error, urllib.error.HTTPError) else str(error)
        raise EaglerayError(
            f"it doesn't say which bundle it serves: {said}",
            "give the URL that /healthz stands below",
            address,
        ) from None


def _is_here(url: str) -> bool:
    """Whether a URL is this machine's own, which no proxy reaches."""
    return is_loopback(urllib.parse.urlsplit(url).hostname or "")


def _run(session: Session, run_id: str) -> RunInfo | None:
    try:
        return session.log.find(run_id)
    except EaglerayError:
        return None


def _grow(tree: Tree, origin: Origin) -> Tree:
    record = origin.record
    source = record.spec.get("source") if record else None
    if isinstance(source, dict):
        fields = ", ".join(f"{name}: {value}" for name, value in source.items() if value is not None)
        tree.add(Text(f"source {{{fields}}}", style="dim"))
    for name, parent in origin.made_of.items():
        _grow(tree.add(_line(name, parent)), parent)
    return tree


def _line(name: str, origin: Origin) -> Text:
    record = origin.record
    begin = Text(f"{name}: " if name else "")
    if record is None:
        return begin + Text.assemble((origin.digest[:12], "bold"), (" not in this store", "dim"))
    return begin + Text.assemble(
        f"{record.type} ",
        (origin.digest[:12], "bold"),
        (f"  by {record.kind} {record.stage!r} of run {record.run_id}, {moment(record.created_s)}", "dim"),
    )


def _told(origin: Origin) -> dict[str, Any]:
    record = origin.record
    about = {} if record is None else record.model_dump(exclude={"digest", "parents", "inputs"})
    made_of = {name: _told(parent) for name, parent in origin.made_of.items()}
    return {"digest": origin.digest, "in_store": record is not None, **about, "made_of": made_of}


def _told_run(run: RunInfo | None) -> dict[str, Any] | None:
    if run is None:
        return None
    return {
        "workflow": run.workflow,
        "filename": run.filename,
        "overrides": run.overrides,
        "created_s": run.created_s,
        "spec": run.text,
    }
