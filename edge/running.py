"""What a device does all day: take a picture, assess it, keep the result; and take up a new bundle."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ..pipelines.assessing.quality import Pixels
from ..pipelines.assessing.spec import Assessment, NotAssessable, not_assessable
from ..pipelines.quarantine import Refused
from ..workflows.errors import EaglerayError
from .queue import ResultQueue
from .shelf import Shelf
from .signing import Trust
from .sources import Picture, Source
from .trial import Opened, Options, open_tried

LOOK_EVERY_S = 0.5
"""Whether there is another bundle, or an end, while no picture comes."""

Latest = Callable[[], Opened]
"""The bundle that is to be used now."""


@dataclass
class Counts:
    """What became of pictures.

    Attributes:
        assessed: each has a result in the queue.
        dropped: frames that weren't looked at, since newer ones came first.
        refused: frames whose result wasn't taken, since the queue was full.
    """

    assessed: int = 0
    dropped: int = 0
    refused: int = 0


def one_bundle(folder: Path, options: Options, trust: Trust | None) -> Latest:
    """The bundle in a folder, always.

    Raises:
        EaglerayError: when it isn't trusted, or doesn't answer.
    """
    opened = _open(folder, options, trust)
    return lambda: opened


class CurrentBundle:
    """The bundle that a shelf's pointer names; one that can't be opened is gone back from.

    Args:
        shelf: the device's.
        options: how bundles are run.
        trust: whose are taken; None for anyone's.
        say: is told of changes.

    Raises:
        EaglerayError: when there is none, or none that opens.
    """

    def __init__(
        self, shelf: Shelf, options: Options, trust: Trust | None, say: Callable[[str], None]
    ) -> None:
        self._shelf, self._options, self._trust, self._say = shelf, options, trust, say
        self._opened: Opened | None = None
        self()

    def __call__(self) -> Opened:
        """The one to use now."""
        pointer = self._shelf.pointer()
        if self._opened is None or (pointer is not None and pointer.current != self._opened.digest):
            self._opened = self._change()
        return self._opened

    def _change(self) -> Opened:
        pointer = self._shelf.attempt()
        if self._opened is not None and pointer.current == self._opened.digest:
            return self._opened
        try:
            opened = _open(self._shelf.path(pointer.current), self._options, self._trust)
        except Exception as error:  # also whatever ONNX Runtime makes of a graph
            if pointer.before is None and self._opened is None:
                raise
            self._say(f"bundle {pointer.current[:12]} can't be used, going back: {error}")
            if pointer.before is None:  # the pointer was put there by hand; what is open goes on
                assert self._opened is not None
                return self._opened
            self._shelf.go_back(pointer.current)
            return self._change()
        self._shelf.prove(pointer.current)
        self._say(f"bundle {pointer.current[:12]} assesses from now on")
        return opened


def run(
    source: Source,
    queue: ResultQueue,
    latest: Latest,
    ending: threading.Event,
    limit: int | None = None,
    reference: Pixels | None = None,
) -> Counts:
    """Assess pictures until the source ends, or it is told to.

    Args:
        source: of pictures.
        queue: takes results.
        latest: the bundle to use, asked once a picture is there.
        ending: set from outside.
        limit: results after which it ends.
        reference: how pictures should look, for bundles that compare.
    """
    counts = Counts()
    while not ending.is_set() and (limit is None or counts.assessed < limit):
        picture, opened = source.next(LOOK_EVERY_S), latest()
        if picture is not None:
            _keep(picture, _assess(opened, picture, reference), opened, source, queue, ending, counts)
        elif source.ended:
            break
        counts.dropped = source.dropped
    return counts


def _assess(opened: Opened, picture: Picture, reference: Pixels | None) -> Assessment | None:
    """What is said of a picture; None when its file is gone."""
    try:
        return opened.assessor.assess(picture.pixels(), reference)
    except Refused as refused:
        return not_assessable(refused)
    except FileNotFoundError:
        return None
    except Exception as error:  # one picture must not stand in the way of all that follow
        return NotAssessable(reason="failed", message=f"{type(error).__name__}: {error}")


def _keep(
    picture: Picture,
    found: Assessment | None,
    opened: Opened,
    source: Source,
    queue: ResultQueue,
    ending: threading.Event,
    counts: Counts,
) -> None:
    if found is None:
        return
    id, line = _told(picture, found, opened.digest, source.name, queue.device)
    while not queue.put(id, line, picture.of):
        if not source.keeps:
            counts.refused += 1
            return
        if ending.wait(LOOK_EVERY_S):  # the file is found again by the next run
            return
    counts.assessed += 1


def _told(picture: Picture, found: Assessment, bundle: str, source: str, device: str) -> tuple[str, str]:
    """Id and line of a result; the same picture has the same id, whoever assesses it again."""
    version = picture.of.version if picture.of else ""
    id = hashlib.sha256("\0".join((device, source, picture.name, version)).encode()).hexdigest()[:32]
    told = {
        "id": id,
        "device": device,
        "source": source,
        "picture": picture.name,
        "taken": datetime.fromtimestamp(picture.taken_s, UTC).isoformat(),
        "bundle": bundle,
        "assessable": not isinstance(found, NotAssessable),
        **found.model_dump(mode="json"),
    }
    return id, json.dumps(told, ensure_ascii=False)


def _open(folder: Path, options: Options, trust: Trust | None) -> Opened:
    if trust is not None:
        trust.check_folder(folder)
    try:
        return open_tried(folder, options)
    except FileNotFoundError as error:
        raise EaglerayError("the bundle is no longer there", where=str(folder)) from error
