"""`eagleray edge`: a bundle on a device, in one process, with ONNX Runtime only."""

from __future__ import annotations

import fcntl
import os
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..workflows.errors import EaglerayError
from .common import err, out

if TYPE_CHECKING:
    from ..edge.delivery import Send
    from ..edge.signing import Trust
    from ..edge.trial import Options
    from ..pipelines.assessing.quality import Pixels

PATIENCE_S = 10.0
"""For delivery, at the end."""

edge = typer.Typer(
    no_args_is_help=True,
    help="Assess pictures on a device: of a folder or a camera, without Ray and torch.",
    epilog="Once: `keys`, and `sign` what is exported. On the device: `update` installs a bundle, `run` uses "
    "it; `update` again changes it while that runs, `rollback` goes back. docs/edge.md has the whole way.",
)

Device = Annotated[
    Path,
    typer.Option(
        "--device", envvar="EAGLERAY_DEVICE", help="The device's folder: its bundles, and results that wait."
    ),
]
Trusted = Annotated[
    list[Path] | None,
    typer.Option(
        "--trust",
        envvar="EAGLERAY_TRUST",
        help="Public key whose bundles are taken, PEM; repeatable.",
        show_default="anyone's",
    ),
]
FormOption = Annotated[
    Literal["int8", "int8-dynamic", "float16"] | None,
    typer.Option("--form", help="Of the bundle's graphs.", show_default="single precision"),
]
Threads = Annotated[int, typer.Option(min=1, help="Threads of a graph, and of a video's decoder.")]
DEFAULT_DEVICE = Path(".eagleray/edge")


@edge.command()
def keys(
    name: Annotated[
        Path, typer.Argument(help="Makes NAME.key, to be kept secret, and NAME.pub, for devices.")
    ],
) -> None:
    """Make a pair of keys: one signs bundles, with the other devices check them (Ed25519)."""
    from ..edge.signing import make_keys

    private, public = (name.with_name(f"{name.name}.{end}") for end in ("key", "pub"))
    make_keys(private, public)
    out.print(f"{private} signs, and is to be kept; {public} is for devices")


@edge.command()
def sign(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle's folder.")],
    key: Annotated[Path, typer.Option(help="The private key, PEM.")],
) -> None:
    """Sign a bundle: adds a file bundle.sig, which stands for all others as they are now."""
    from ..edge.signing import SIGNATURE
    from ..edge.signing import sign as sign_bundle

    sign_bundle(bundle, key)
    out.print(f"signed: {bundle / SIGNATURE}")


@edge.command()
def run(
    source: Annotated[
        str, typer.Option(help="A folder of pictures, /dev/video0, rtsp://HOST/PATH, or a file of video.")
    ],
    bundle: Annotated[
        Path | None,
        typer.Argument(
            metavar="[BUNDLE]", help="A bundle's folder.", show_default="what `edge update` installed"
        ),
    ] = None,
    device: Device = DEFAULT_DEVICE,
    trust: Trusted = None,
    deliver: Annotated[
        str | None, typer.Option(help="URL that results are posted to.", show_default="standard output")
    ] = None,
    token: Annotated[
        str | None,
        typer.Option("--deliver-token", envvar="EAGLERAY_DELIVER_TOKEN", help="Bearer token for that URL."),
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="How the pictures should look, for a bundle that compares.")
    ] = None,
    form: FormOption = None,
    threads: Threads = 1,
    overlap: Annotated[
        float, typer.Option(min=0.0, max=0.9, help="Share of a window that its neighbour sees too.")
    ] = 0.5,
    queue_mib: Annotated[int, typer.Option(min=1, help="Results that may wait, MiB.")] = 64,
    limit: Annotated[
        int | None, typer.Option(min=1, help="End after so many results.", show_default="never")
    ] = None,
) -> None:
    """Assess every picture that comes, until Ctrl-C or the video's end; a line of JSON for each.

    A folder's files are assessed the oldest first, each once, whatever happens in between. Of a camera the
    newest frame is assessed, and those that came meanwhile are dropped and counted. Each result is on the
    disk before the next picture is looked at, and is delivered as often as it takes: whoever receives it
    knows it by its `id`.

    Without BUNDLE a running process takes up what `eagleray edge update` installs.
    """
    _hold_threads(threads)
    from ..edge.delivery import Delivery
    from ..edge.queue import ResultQueue
    from ..edge.running import CurrentBundle, one_bundle
    from ..edge.running import run as assess
    from ..edge.shelf import Shelf
    from ..edge.sources import open_source

    ending = threading.Event()
    send, trusted, options = _send(deliver, token), _trust(trust), _options(form, threads, overlap)
    compared = _reference(reference) if reference is not None else None
    with _alone(device):
        if bundle is not None:
            latest = one_bundle(bundle, options, trusted)
        else:
            latest = CurrentBundle(Shelf(device), options, trusted, err.print)
        queue = ResultQueue(device / "results.db", queue_mib << 20)
        pictures = open_source(source, queue, threads, err.print)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: ending.set())
        delivery = Delivery(queue, send, err.print, ending.set)
        try:
            counts = assess(pictures, queue, latest, ending, limit, compared)
        finally:
            pictures.close()
            delivery.end(PATIENCE_S)
        if delivery.error is not None:
            raise delivery.error
        err.print(
            f"{counts.assessed} assessed, {counts.dropped} dropped for newer ones, {counts.refused} not kept "
            f"since the queue was full; {delivery.delivered} delivered, {len(queue)} wait"
        )
        queue.close()


@edge.command()
def update(
    bundle: Annotated[
        str,
        typer.Argument(metavar="BUNDLE|URL", help="A bundle's folder, or the URL below which its files lie."),
    ],
    device: Device = DEFAULT_DEVICE,
    trust: Trusted = None,
    form: FormOption = None,
    threads: Threads = 1,
) -> None:
    """Install a bundle, and let the running process take it up between two pictures.

    Its signature is checked, its files are copied beside those in use, and in a process of its own it must
    say of its sample what it said when it was exported. Until all that went well nothing changes.
    """
    _hold_threads(threads)
    from ..edge.origin import WebOrigin, open_origin
    from ..edge.shelf import Shelf
    from ..edge.updating import update as install

    origin, trusted = open_origin(bundle), _trust(trust)
    if isinstance(origin, WebOrigin) and trusted is None:
        raise EaglerayError("what comes over a network must be signed", "give --trust PUBLIC_KEY", "--trust")
    pointer = install(Shelf(device), origin, trusted, _options(form, threads))
    out.print(f"bundle {pointer.current} is used")


@edge.command()
def rollback(device: Device = DEFAULT_DEVICE) -> None:
    """Go back to the bundle from before; the running process takes it up between two pictures."""
    from ..edge.shelf import Shelf

    out.print(f"bundle {Shelf(device).go_back().current} is used")


def _hold_threads(threads: int) -> None:
    """Hold numpy's products to so many threads, too; they are started when it is imported."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", str(threads))


def _options(form: str | None, threads: int, overlap: float = 0.5) -> Options:
    from ..edge.trial import Options

    return Options(form, threads, overlap)  # pyright: ignore[reportArgumentType]


def _trust(keys: list[Path] | None) -> Trust | None:
    from ..edge.signing import Trust

    return Trust(keys) if keys else None


def _reference(path: Path) -> Pixels:
    from ..pipelines.media.image import whole
    from ..pipelines.quarantine import Refused

    try:
        return whole(path.read_bytes())
    except (OSError, Refused) as error:
        raise EaglerayError(f"the reference can't be read: {error}", where=str(path)) from error


def _send(url: str | None, token: str | None) -> Send:
    from ..edge.delivery import post_to

    if url is not None:
        return post_to(url, token)
    return lambda lines: typer.echo("\n".join(lines))


@contextmanager
def _alone(device: Path) -> Generator[None]:
    """Be the only one that runs in a device's folder."""
    device.mkdir(parents=True, exist_ok=True)
    with (device / "running").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EaglerayError(
                "another `eagleray edge run` works in this folder",
                "end it, or give --device FOLDER",
                str(device),
            ) from None
        yield
