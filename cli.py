"""The `eagleray` command: parses, calls, prints."""

from __future__ import annotations

import json
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from .commands.access import tokens
from .commands.assessing import Beside, Page, Reference, Segmentation, assess_files
from .commands.cluster import cluster
from .commands.common import (
    DEFAULT_HOME,
    Address,
    AsJson,
    Database,
    Home,
    Overrides,
    RunId,
    SpecFile,
    Store,
    Uncertified,
    err,
    out,
    print_fields,
)
from .commands.data import corpora, ledger
from .commands.edge import edge
from .commands.engines import engines
from .commands.extras import extra_of
from .commands.lineage import lineage
from .commands.planning import plan
from .commands.serving import applications, bundle_of, rollback, serving_options
from .commands.training import certify
from .commands.watching import dashboard
from .display import (
    RunView,
    describe_event,
    moment,
    print_table,
    status_rows,
    status_table,
)
from .pipelines.assessing.spec import NotAssessable
from .session import Session
from .workflows.artifacts import Deployment
from .workflows.errors import EaglerayError
from .workflows.state import TABLE, State

if TYPE_CHECKING:
    from .actors.serving.running import Deployed
    from .cluster.connect import Connection
    from .session import PreparedRun
    from .workflows.loading import Workflow

DEBUG = "--debug"
CANCELLED_EXIT = 130  # as a shell reports a program that Ctrl-C ended
FOLLOW_EVERY_S = 1.0

app = typer.Typer(
    name="eagleray",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="One typed YAML file becomes a trained, evaluated and served multimodal model, on Ray.",
    epilog="Start with `eagleray plan examples/quickstart.yaml`, then `eagleray run` the same file.",
)
app.add_typer(cluster, name="cluster")
app.add_typer(corpora, name="corpora")
app.add_typer(edge, name="edge")
app.add_typer(ledger, name="ledger")
app.add_typer(tokens, name="tokens")
weights = typer.Typer(no_args_is_help=True, help="Take published weights over.")
app.add_typer(weights, name="weights")
app.command()(plan)
app.command()(certify)
app.command()(applications)
app.command()(rollback)
app.command()(lineage)
app.command()(dashboard)
app.command()(engines)


@app.callback()
def options(
    debug: Annotated[bool, typer.Option(DEBUG, help="Show the traceback of an error.")] = False,
) -> None:
    """Take the options that stand before a command; `main` reads `--debug` itself."""


@app.command()
def run(
    spec: SpecFile,
    overrides: Overrides = None,
    uncertified: Uncertified = False,
    address: Address = None,
    home: Home = DEFAULT_HOME,
    store: Store = None,
    database: Database = None,
) -> None:
    """Carry out a workflow: what is cached is skipped, every other stage runs as soon as it can.

    Killed at any moment, the run is taken up again by `eagleray resume`. It doesn't train on a mesh that no
    certificate stands for: see `eagleray certify`.
    """
    session = Session(home, store, database)
    again = _words(home, store, database, address)
    _, workflow = _load(session, spec, overrides, uncertified)
    _carry_out(session, session.prepare(workflow), address, again)


@weights.command("import")
def import_weights(
    folder: Annotated[
        Path, typer.Argument(help="Has *.safetensors and, in Hugging Face's naming, config.json.")
    ],
    image_size: Annotated[
        int | None, typer.Option(help="Side of the pictures, pixels.", show_default="the checkpoint's")
    ] = None,
    window_size: Annotated[
        int | None, typer.Option(help="Side of a window, patches.", show_default="the checkpoint's")
    ] = None,
    address: Address = None,
    home: Home = DEFAULT_HOME,
    store: Store = None,
    database: Database = None,
) -> None:
    """Make a checkpoint of a published Swin Transformer V2.

    It is a run of one stage. A workflow of its own has the same stage, and takes the checkpoint from there:
    `weights: {kind: import-weights, path: FOLDER}`, and in a later one `inputs: {checkpoint: weights}`.
    """
    fields = {"path": str(folder.absolute()), "image_size": image_size, "window_size": window_size}
    given = {name: value for name, value in fields.items() if value is not None}
    stages = {"weights": {"kind": "import-weights", **given}}
    session = Session(home, store, database)
    with tempfile.TemporaryDirectory() as work:
        spec = Path(work, "import-weights.yaml")
        spec.write_text(json.dumps({"version": 1, "name": "import-weights", "stages": stages}))
        prepared = session.prepare(session.load(spec, []))
    _carry_out(session, prepared, address, _words(home, store, database, address))


@app.command()
def resume(
    run_id: RunId = "last",
    address: Address = None,
    home: Home = DEFAULT_HOME,
    store: Store = None,
    database: Database = None,
) -> None:
    """Take up a run that was killed, cancelled or failed; what was finished is not done again."""
    session = Session(home, store, database)
    _carry_out(session, session.prepare_again(run_id), address, _words(home, store, database, address))


@app.command()
def cancel(run_id: RunId = "last", home: Home = DEFAULT_HOME, database: Database = None) -> None:
    """End a run from another terminal; `eagleray resume` takes it up again."""
    log = Session(home, database=database).log
    info = log.find(run_id)
    state = log.status(info.id).state
    if state is not State.RUNNING:
        raise EaglerayError(f"run {info.id} does not run: it is {state}", "see `eagleray runs`")
    log.append(info.id, [(None, "cancel", {})])
    while log.status(info.id).state is State.RUNNING:
        time.sleep(FOLLOW_EVERY_S)
    out.print(f"run {info.id} is {log.status(info.id).state}")


@app.command()
def runs(as_json: AsJson = False, home: Home = DEFAULT_HOME, database: Database = None) -> None:
    """List the runs of this home, newest first."""
    log = Session(home, database=database).log
    rows: list[Mapping[str, Any]] = []
    for info in log.runs():
        status = log.status(info.id)
        done = sum(TABLE[stage.state].has_artifact for stage in status.stages.values())
        rows.append(
            {
                "run": info.id,
                "workflow": info.workflow,
                "state": status.state.value,
                "stages_done": f"{done}/{len(status.stages)}",
                "started": moment(info.created_s),
                "set": " ".join(info.overrides),
            }
        )
    print_table(out, rows, as_json, "no run yet: eagleray run SPEC")


@app.command()
def status(
    run_id: RunId = "last", as_json: AsJson = False, home: Home = DEFAULT_HOME, database: Database = None
) -> None:
    """Show where each stage of a run stands."""
    log = Session(home, database=database).log
    info = log.find(run_id)
    found = log.status(info.id)
    if as_json:
        rows = status_rows(found)
        typer.echo(
            json.dumps({"run": info.id, "workflow": info.workflow, "state": found.state, "stages": rows})
        )
        return
    out.print(f"run {info.id} of {info.workflow}: {found.state}{f', {found.reason}' if found.reason else ''}")
    out.print(status_table(found, out.width if out.is_terminal else 0))
    if found.state in (State.FAILED, State.CANCELLED, State.INTERRUPTED):
        out.print(f"take it up again: eagleray resume {info.id}{_words(home, database=database)}")


@app.command()
def logs(
    run_id: RunId = "last",
    stage: Annotated[str | None, typer.Option(help="Only this stage.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run ends.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
    home: Home = DEFAULT_HOME,
    database: Database = None,
) -> None:
    """Print a run's events: states, progress with metrics, and what the stages had to say."""
    log = Session(home, database=database).log
    info = log.find(run_id)
    seen = 0
    while True:
        going = follow and log.status(info.id).state is State.RUNNING
        for event in log.events(info.id, after=seen):
            seen = event.number
            if stage not in (None, event.stage):
                continue
            if as_json:
                line = {"time_s": event.time_s, "stage": event.stage, "event": event.event, **event.fields}
                typer.echo(json.dumps(line, ensure_ascii=False))
            else:
                clock = time.strftime("%H:%M:%S", time.localtime(event.time_s))
                text = describe_event(event.event, event.fields)
                out.print(Text.assemble((f"{clock} {event.stage or '':>10} ", "dim"), text))
        if not going:
            return
        time.sleep(FOLLOW_EVERY_S)


@app.command()
def schema() -> None:
    """Print the JSON Schema of workflow files, with which editors complete and check them.

    For VS Code and others with the YAML language server: `eagleray schema > eagleray.schema.json`, and
    `# yaml-language-server: $schema=eagleray.schema.json` as the file's first line.
    """
    from .workflows.schema import schema as make_schema

    typer.echo(json.dumps(make_schema(Session(DEFAULT_HOME).kinds), indent=2, ensure_ascii=False))


@app.command()
def stages(
    kind: Annotated[str | None, typer.Argument(metavar="[KIND]", help="Show this kind's fields.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the stage kinds, or the fields of one with their defaults."""
    kinds = Session(DEFAULT_HOME).kinds
    if kind is None:
        rows = [
            {
                "kind": found.name,
                "takes": ", ".join(f"{name}: {given.__name__}" for name, given in found.inputs.items()),
                "gives": found.gives.__name__,
                "summary": found.summary,
            }
            for found in kinds.values()
        ]
        print_table(out, rows, as_json, "no stage kinds")
    else:
        print_fields({one.name: one.spec for one in kinds.values()}, kind, "stage kind", as_json)


@app.command()
def serve(
    source: Annotated[
        str, typer.Argument(metavar="[RUN|FOLDER]", help="A run, or a bundle's folder.")
    ] = "last",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    grpc_port: Annotated[
        int | None,
        typer.Option(help="Port for the Open Inference Protocol over gRPC; without, there is none."),
    ] = None,
    route_prefix: Annotated[str, typer.Option(help="Path below which it answers.")] = "/",
    tokens: Annotated[
        str | None, typer.Option(help="Where the tokens lie that requests must have; see `eagleray tokens`.")
    ] = None,
    open_to_all: Annotated[bool, typer.Option("--open", help="Let anyone ask, from any machine.")] = False,
    tls_certificate: Annotated[
        Path | None, typer.Option(help="Serve over https: PEM file of the certificate, and --tls-key.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file of the certificate's key.")] = None,
    plaintext: Annotated[
        bool, typer.Option("--plaintext", help="Let tokens cross a network: something before it encrypts.")
    ] = False,
    audit: Annotated[
        Path | None, typer.Option(help="Folder for a line of each request: who, what, when; no contents.")
    ] = None,
    moderate: Annotated[bool, typer.Option(help="Judge what is asked and answered.")] = False,
    beside: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=RUN|FOLDER", help="Another bundle, which answers at /models/NAME; repeatable."
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="FIELD=VALUE", help="Any field of `eagleray stages serve`; repeatable."
        ),
    ] = None,
    address: Address = None,
    home: Home = DEFAULT_HOME,
    store: Store = None,
    database: Database = None,
) -> None:
    """Serve a run's bundle, or a bundle's folder, until Ctrl-C.

    A cluster's Serve has one port: beside what a run of this home serves already, give --route-prefix /NAME.
    """
    from .actors.serving.spec import ModerationSpec, TlsSpec
    from .cluster.connect import connect

    session = Session(home, store, database)
    opened = bundle_of(session, source)
    application = f"serve-{port}{route_prefix.replace('/', '-').rstrip('-')}"
    if (tls_certificate is None) != (tls_key is None):
        raise EaglerayError("TLS needs a certificate and its key", "give --tls-certificate and --tls-key")
    tls = None
    if tls_certificate and tls_key:
        tls = TlsSpec(certificate=str(tls_certificate.absolute()), key=str(tls_key.absolute()))
    fields: dict[str, Any] = {
        "host": host,
        "port": port,
        "grpc_port": grpc_port,
        "route_prefix": route_prefix,
        "application": application,
        "tokens": tokens if tokens is None or "://" in tokens else str(Path(tokens).absolute()),
        "open": open_to_all,
        "tls": tls,
        "plaintext": plaintext,
        "audit": str(audit.absolute()) if audit else None,
        "moderation": ModerationSpec() if moderate else None,
        "beside": dict(_named(session, one) for one in beside or ()),
    }
    options = serving_options(fields, overrides or ())
    needed = 1 + options.autoscaling.min_replicas * options.cpus_per_replica
    with connect(address, session.home, needed, out.print) as connection:
        from .actors.serving.running import serve_until_interrupted

        _show_dashboard(connection)
        _end_by_terminate()

        def announce(deployed: Deployed) -> None:
            _announce(deployed.url, deployed.request, deployed.answer, deployed.command)
            if deployed.grpc is not None:
                out.print(f"over gRPC: {deployed.grpc}")
            out.print("Ctrl-C ends it.")

        serve_until_interrupted(opened.path, options, opened.digest or None, announce)


@app.command()
def submit(
    spec: SpecFile,
    address: Annotated[str, typer.Option(help="The cluster's dashboard: http://HEAD:8265")],
    overrides: Overrides = None,
    uncertified: Uncertified = False,
    home: Annotated[
        str, typer.Option(help="Folder for runs and artifacts, on the cluster; all its machines must see it.")
    ] = "~/.eagleray",
    store: Annotated[str | None, typer.Option(help="Where artifacts lie: a folder, s3://… or gs://…")] = None,
    database: Annotated[str | None, typer.Option(help="URL of the run log.")] = None,
    wait: Annotated[bool, typer.Option(help="Print the job's log until it ends.")] = True,
) -> None:
    """Run a workflow as a job of a cluster: it stands in the Ray dashboard, and outlives this terminal.

    This code travels with it; what it requires, Ray first of all, must be there for the head's `python`. A
    cluster with a token takes it from RAY_AUTH_MODE=token and RAY_AUTH_TOKEN. What the file refers to as
    ${env:NAME} must be set here and on the head: secrets don't travel.
    """
    from .cluster.jobs import follow, submit

    # refused here before anything travels
    overrides, _ = _load(Session(DEFAULT_HOME), spec, overrides, uncertified)
    given = {"--home": home, "--store": store, "--database": database}
    for name, value in given.items():
        if value and _holds_key(value):
            raise EaglerayError(
                f"{name} holds a key or password, which the dashboard would show with the job",
                f"set EAGLERAY_{name[2:].upper()} in the cluster's environment instead",
            )
    words = [word for name, value in given.items() if value for word in (name, value)]
    job = submit(spec, overrides, address, words)
    out.print(f"job {job} at {address}")
    if wait and not follow(job, address, typer.echo):
        raise typer.Exit(1)


@app.command()
def down(home: Home = DEFAULT_HOME) -> None:
    """Stop this home's own Ray cluster, and with it what it serves."""
    from .cluster import local

    out.print("stopped" if local.shut_down(Session(home).home) else "no cluster of this home is running")


def main() -> None:
    """Run a command; an error is shown once, without a traceback unless `--debug`."""
    words = [word for word in sys.argv[1:] if word != DEBUG]
    debug = len(words) < len(sys.argv) - 1
    try:
        app(words)
    except EaglerayError as error:
        if debug:
            raise
        err.print(Text.assemble(("error: ", "bold red"), str(error)))
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(CANCELLED_EXIT)
    except Exception as error:
        if debug:
            raise
        extra = extra_of(error) if isinstance(error, ModuleNotFoundError) else None
        if extra is not None:
            text, remedy = f"{error.name} isn't installed", f"pip install 'eagleray[{extra}]'"  # pyright: ignore[reportAttributeAccessIssue]
            err.print(
                Text.assemble(("error: ", "bold red"), f"this needs more than is here: {text}\n  → {remedy}")
            )
            sys.exit(1)
        text = f"{type(error).__name__}: {error}"
        remedy = "this is a fault of Eagleray: run again with --debug, and report what it prints"
        err.print(Text.assemble(("error: ", "bold red"), f"{text}\n  → {remedy}"))
        sys.exit(1)


def _words(
    home: Path, store: str | None = None, database: str | None = None, address: str | None = None
) -> str:
    """The options that a printed command needs to reach the same runs; a URL with a key in it is left out."""
    shown = None if home.absolute() == DEFAULT_HOME.absolute() else str(home)
    given = {"--home": shown, "--store": store, "--database": database, "--address": address}
    told = {name: value for name, value in given.items() if value and not _holds_key(value)}
    return "".join(f" {name} {shlex.quote(value)}" for name, value in told.items())


def _load(
    session: Session, spec: Path, overrides: Sequence[str] | None, uncertified: bool
) -> tuple[list[str], Workflow]:
    """A workflow, and the overrides that it was loaded with: those given, and of every training that it needs
    no certificate, as far as that is wanted.

    Raises:
        EaglerayError: when it can't be loaded with them.
    """
    given = list(overrides or [])
    workflow = session.load(spec, given)
    if uncertified:
        names = [name for name, stage in workflow.stages.items() if hasattr(stage, "uncertified")]
        given += [f"{name}.uncertified=true" for name in names]
        workflow = session.load(spec, given)
    return given, workflow


def _holds_key(url: str) -> bool:
    return "://" in url and "@" in url


def _end_by_terminate() -> None:
    """Take SIGTERM as Ctrl-C. Ray's own handler, set when it connected, would leave what runs running."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def _carry_out(session: Session, run: PreparedRun, address: str | None, again: str) -> None:
    connections: list[Connection] = []
    names = [stage.name for stage in run.plan.stages]
    out.print(f"run {run.id} of {run.workflow.name}")

    def on_connected(connection: Connection) -> None:
        connections.append(connection)
        _show_dashboard(connection)
        _end_by_terminate()

    with RunView(out, names) as view:
        try:
            state = session.carry_out(run, address, out.print, on_connected, view.show)
        except KeyboardInterrupt:  # before the cluster was up, or while it was being stopped
            state = State.CANCELLED
    found = session.log.status(run.id)
    for name, stage in found.stages.items():
        if stage.state is State.FAILED:
            err.print(Text.assemble(("error: ", "bold red"), f"{name}: {stage.reason}"))
            if DEBUG in sys.argv:
                err.print(stage.details)
        elif TABLE[stage.state].has_artifact and issubclass(run.plan[name].kind.gives, Deployment):
            _announce(*(stage.facts[key] for key in ("url", "request", "answer", "command")))
            for connection in connections:
                _show_dashboard(connection)
            if address is None:
                out.print(f"to end what is served: eagleray down{_words(session.home)}")
    if state is not State.SUCCEEDED:
        err.print(f"run {run.id} {state}; what was finished is kept: eagleray resume {run.id}{again}")
        raise typer.Exit(CANCELLED_EXIT if state is State.CANCELLED else 1)
    out.print(f"run {run.id} succeeded")


def _show_dashboard(connection: Connection) -> None:
    token = f", which asks for the token in {connection.token}" if connection.token else ""
    out.print(f"Ray's dashboard: {connection.dashboard or connection.address}{token}")


def _announce(url: str, request: Mapping[str, Any], answer: Mapping[str, Any], command: str) -> None:
    asked = repr(str(request["text"])[:80]) if "text" in request else f"a sample {next(iter(request))}"
    out.print(f"serving at {url}, its pages at {url}/docs; asked for {asked}, it found")
    for hit in answer.get("results", ()):
        out.print(f"  {hit['score']:.3f}  {hit['caption']}  ({hit['id']})")
    if document := answer.get("document"):
        found = document["category"]
        out.print(f"  {document['probabilities'][found]:.3f}  {found}")
        for one in document["evidence"][:2]:
            out.print(f"    {one['share']:.0%} by {one['text'][:80]!r}")
    if problem := answer.get("problem"):
        out.print(f"  nothing that can be assessed: {problem['message']}")
    for seen in (answer.get("picture"), answer.get("volume")):
        if seen:
            out.print(f"  {len(seen['findings'])} findings")
    out.print(f"ask it yourself:\n  {command}")


@app.command()
def assess(
    source: Annotated[str, typer.Argument(metavar="RUN|FOLDER", help="A bundle, or a run that made one.")],
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="What is to be assessed.")],
    page: Page = None,
    segmentation: Segmentation = None,
    reference: Reference = None,
    text: Beside = None,
    home: Home = DEFAULT_HOME,
    store: Store = None,
    database: Database = None,
) -> None:
    """Assess documents, pictures or CT scans with a bundle, in this process: a line of JSON for each file.

    It needs no cluster and no accelerator, and says what /v1/assess of the same bundle says. A folder is a
    series of DICOM slices.
    """
    from .pipelines.bundle import load_bundle

    bundle = load_bundle(bundle_of(Session(home, store, database), source).path)
    found_all = assess_files(bundle, files, page, segmentation, reference, text)
    for path, found in zip(files, found_all, strict=True):
        assessable = not isinstance(found, NotAssessable)
        told = {"file": str(path), "assessable": assessable, **found.model_dump(mode="json")}
        typer.echo(json.dumps(told, ensure_ascii=False))


def _named(session: Session, told: str) -> tuple[str, str]:
    """Name and folder of a bundle that NAME=RUN or NAME=FOLDER tells."""
    name, sign, source = told.partition("=")
    if not sign or not source:
        raise EaglerayError(f"{told} names no bundle", "write NAME=RUN or NAME=FOLDER", "--beside")
    return name, str(bundle_of(session, source).path)


if __name__ == "__main__":
    main()
