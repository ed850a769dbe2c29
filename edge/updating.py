"""From a bundle somewhere to the one that a device uses: checked, tried, and only then switched to."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from ..pipelines.bundle import MANIFEST, parse_info
from ..workflows.errors import EaglerayError
from .origin import Origin
from .shelf import Chunks, Pointer, Shelf
from .signing import SIGNATURE, Trust
from .trial import Options, Try, try_apart


def update(
    shelf: Shelf, origin: Origin, trust: Trust | None, options: Options, trial: Try = try_apart
) -> Pointer:
    """Make a bundle the one that is used.

    What is trusted is decided by its signature before any other file is fetched. A running device takes it up
    between two pictures.

    Args:
        shelf: the device's.
        origin: of the bundle.
        trust: whose bundles are taken; None for anyone's.
        options: how the device runs bundles.
        trial: raises when the bundle doesn't answer as it should.

    Raises:
        EaglerayError: when it isn't taken; the device goes on with what it has.
    """
    try:
        manifest = b"".join(origin.chunks(MANIFEST))
    except FileNotFoundError:
        raise EaglerayError(
            "there is no bundle: it has no bundle.json", "give a bundle's folder or URL", origin.where
        ) from None
    try:
        signature = b"".join(origin.chunks(SIGNATURE))
    except FileNotFoundError:
        signature = None
    if trust is not None:
        trust.check(manifest, signature, origin.where)
    info, digest = parse_info(manifest, origin.where), sha256(manifest).hexdigest()
    files: dict[str, tuple[str | None, Chunks]] = {MANIFEST: (digest, iter([manifest]))}
    if signature is not None:
        files[SIGNATURE] = (None, iter([signature]))
    for name, wanted in info.files.items():
        if Path(name).name != name or name in files:
            raise EaglerayError(f"{name!r} can't be a bundle's file", where=origin.where)
        files[name] = (wanted, origin.chunks(name))
    with shelf.locked():
        pointer, is_there = shelf.pointer(), shelf.path(digest).is_dir()
        if is_there and signature is not None:  # it may have come unsigned
            shelf.add(digest, SIGNATURE, signature)
        if pointer is not None and pointer.current == digest:
            return pointer
        if is_there:
            trial(shelf.path(digest), options)
        else:
            try:
                with shelf.staged(files) as staging:
                    trial(staging, options)
                    shelf.keep(staging, digest)
            except FileNotFoundError as error:
                raise EaglerayError(
                    f"the bundle's {Path(str(error.filename or error)).name} is missing",
                    "export the bundle again",
                    origin.where,
                ) from error
        pointer = Pointer(current=digest, before=pointer.current if pointer else None)
        shelf.point(pointer)
        shelf.sweep()
    return pointer
