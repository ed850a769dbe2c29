"""`eagleray engines`: what graphs run on here, and engines that TensorRT makes of them ahead of serving."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..session import Session
from ..workflows.errors import EaglerayError
from .common import DEFAULT_HOME, Database, Home, Store, out
from .serving import bundle_of

Source = Annotated[
    str | None,
    typer.Argument(
        metavar="[RUN|FOLDER]", help="A bundle, or a run that made one; none tells of the machine."
    ),
]
Corpus = Annotated[
    Path | None, typer.Option(help="Folder of a corpus, on whose rows decisions are compared with the CPU's.")
]


def engines(
    source: Source = None,
    corpus: Corpus = None,
    form: Annotated[str | None, typer.Option(help="int8, int8-dynamic or float16.")] = None,
    accelerator: Annotated[str, typer.Option(help="auto, tensorrt, cuda or cpu.")] = "auto",
    folder: Annotated[
        Path | None, typer.Option("--engines", help="Where engines go.", show_default="beside the bundle")
    ] = None,
    max_rows: Annotated[int, typer.Option(min=1, help="Rows of a batch, as serve's max_batch_size.")] = 16,
    check_rows: Annotated[int, typer.Option(min=2, help="Rows of the corpus.")] = 64,
    max_flips: Annotated[
        float, typer.Option(min=0, max=1, help="Share of rows that may be decided otherwise.")
    ] = 0.0,
    commands: Annotated[
        bool, typer.Option("--commands", help="Print trtexec commands that make them, and make nothing.")
    ] = False,
    home: Home = DEFAULT_HOME,
    store: Store = None,
    database: Database = None,
) -> None:
    """Make the engines of a bundle's graphs, and hold what it decides with them to the CPU.

    Without a bundle, say what graphs would run on here.
    """
    from pydantic import TypeAdapter, ValidationError

    from ..pipelines.providers import choose, this_machine
    from ..pipelines.spec import Accelerator, Form

    try:
        wanted = TypeAdapter(Accelerator).validate_python(accelerator)
        given = TypeAdapter(Form | None).validate_python(form)
    except ValidationError as error:
        raise EaglerayError(
            f"{error.errors()[0]['input']}: {error.errors()[0]['msg']}", "name one of those"
        ) from None
    if source is None:
        machine = this_machine()
        out.print(f"ONNX Runtime {machine.version}: {', '.join(machine.available)}")
        out.print(f"GPU: {'none asked for or none answers' if machine.gpu is None else machine.gpu.name}")
        out.print(f"TensorRT: {machine.tensorrt or 'not installed'}")
        out.print(choose(wanted, machine).line)
        return
    from ..actors.serving.engines import EngineOptions, make_engines, trtexec_commands

    bundle = bundle_of(Session(home, store, database), source).path
    options = EngineOptions(given, wanted, folder, max_rows, check_rows, max_flips)
    if commands:
        for line in trtexec_commands(bundle, options):
            typer.echo(line)
        return
    if corpus is None:
        raise EaglerayError(
            "nothing to compare decisions on", "give --corpus, or --commands to make engines yourself"
        )
    made = make_engines(bundle, corpus, options, out.print)
    for name, count in made.decided.items():
        out.print(f"{name}: {made.flips[name]} of {count} decisions are others than the CPU's")
    for graph, where in made.engines.items():
        if where is not None:
            out.print(f"{graph}: {where}")
