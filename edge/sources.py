"""Where pictures come from: a folder that they are put into, or a camera."""

from __future__ import annotations

import os
import threading
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..pipelines.assessing.quality import Pixels
from ..pipelines.media.image import whole
from ..workflows.errors import EaglerayError
from .queue import ResultQueue, Seen

LOOK_EVERY_S = 0.2
"""At a folder; a file is taken that was the same the last time."""
CAMERA_TIMEOUT_S = (10.0, 10.0)
"""To open a camera, and between two frames."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
"""Before a camera is opened again."""
HIDDEN = (".", "~")


@dataclass(frozen=True)
class Picture:
    """A picture that is to be assessed.

    Attributes:
        name: of the file; of a frame when it was taken.
        taken_s: seconds since the epoch.
        pixels: decodes it to (H, W, 3); raises Refused when that can't be done.
        of: the file; None for a frame.
    """

    name: str
    taken_s: float
    pixels: Callable[[], Pixels]
    of: Seen | None = None


class Source(Protocol):
    """Gives pictures."""

    name: str
    """For results."""
    dropped: int
    """Pictures that were not assessed, since newer ones came first."""
    ended: bool
    """Whether no more will come."""
    keeps: bool
    """Whether a picture is given again that nothing was made of."""

    def next(self, timeout_s: float) -> Picture | None:
        """The next picture, or None when there is none in that time."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


class FolderSource:
    """Files that appear in a folder, the oldest first, each once.

    Args:
        folder: theirs; what is in folders below it, and hidden files, are left alone.
        queue: knows what was done.
    """

    dropped, ended, keeps = 0, False, True

    def __init__(self, folder: Path, queue: ResultQueue) -> None:
        self.name, self._folder, self._queue = str(folder), folder, queue
        self._before: dict[str, str] = {}
        self._ready: list[tuple[int, str, str]] = []

    def next(self, timeout_s: float) -> Picture | None:
        """See `Source`."""
        until = time.monotonic() + timeout_s
        while not self._ready:
            self._look()
            left = until - time.monotonic()
            if self._ready or left <= 0:
                break
            time.sleep(min(LOOK_EVERY_S, left))
        if not self._ready:
            return None
        modified_ns, name, version = self._ready.pop()
        path = self._folder / name
        return Picture(name, modified_ns / 1e9, lambda: whole(path.read_bytes()), Seen(name, version))

    def close(self) -> None:
        """See `Source`."""

    def _look(self) -> None:
        """Find what is new, the oldest last."""
        found: dict[str, tuple[int, str]] = {}
        try:
            with os.scandir(self._folder) as entries:
                for entry in entries:
                    if entry.name.startswith(HIDDEN) or not entry.is_file():
                        continue
                    about = entry.stat()
                    found[entry.name] = (about.st_mtime_ns, f"{about.st_size}-{about.st_mtime_ns}")
        except FileNotFoundError:  # taken away meanwhile, or its disk isn't there yet
            pass
        self._queue.forget(found.keys())
        self._ready = sorted(
            (
                (modified_ns, name, version)
                for name, (modified_ns, version) in found.items()
                if self._before.get(name) == version and not self._queue.is_done(Seen(name, version))
            ),
            reverse=True,
        )
        self._before = {name: version for name, (_, version) in found.items()}


class CameraSource:
    """The newest frame of a device, of a stream, or of a file of video, which is played at its own pace.

    A thread reads frames as they come and keeps the latest; only one that is asked for becomes pixels. A
    camera that fails is opened again.

    Args:
        address: such as /dev/video0, rtsp://HOST/PATH, or a file.
        threads: that decode.
        say: is told when it begins to fail, and when it goes well again.

    Raises:
        EaglerayError: when it is a file that is no video.
    """

    keeps = False

    def __init__(self, address: str, threads: int, say: Callable[[str], None]) -> None:
        import av

        self.name, self.dropped, self.ended = _shown(address), 0, False
        self._address, self._threads, self._say = address, threads, say
        self._is_file = Path(address).is_file()
        if self._is_file:
            try:
                av.open(address).close()
            except av.FFmpegError as error:
                raise EaglerayError(f"this is no video: {error.strerror}", where=address) from error
        self._frame: tuple[float, Any] | None = None
        self._changed, self._ending = threading.Condition(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="camera", daemon=True)
        self._thread.start()

    def next(self, timeout_s: float) -> Picture | None:
        """See `Source`."""
        with self._changed:
            self._changed.wait_for(lambda: self._frame is not None or self.ended, timeout_s)
            taken, self._frame = self._frame, None
        if taken is None:
            return None
        taken_s, frame = taken
        return Picture(f"{taken_s:.6f}", taken_s, lambda: frame.to_ndarray(format="rgb24"))

    def close(self) -> None:
        """See `Source`."""
        self._ending.set()
        self._thread.join(CAMERA_TIMEOUT_S[1])

    def _work(self) -> None:
        import av

        wait_s, failing = FIRST_WAIT_S, False
        while not self._ending.is_set():
            try:
                for taken in self._frames(av):
                    if failing:
                        self._say(f"{self.name} gives pictures again")
                    wait_s, failing = FIRST_WAIT_S, False
                    self._put(taken)
                why = "it ended"
            except (av.FFmpegError, OSError, IndexError) as error:
                why = str(error)
            if self._is_file or self._ending.is_set():
                break
            if not failing:
                self._say(f"{self.name} gives no pictures, and is tried again: {why}")
            failing = True
            self._ending.wait(wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)
        with self._changed:
            self.ended = True
            self._changed.notify()

    def _frames(self, av: Any) -> Any:  # noqa: ANN401 - a module; an iterator of frames
        is_device = self._address.startswith("/dev/")
        options = {"rtsp_transport": "tcp"} if self._address.startswith("rtsp") else {}
        with av.open(
            self._address,
            format="v4l2" if is_device else None,
            options=options,
            timeout=None if self._is_file else CAMERA_TIMEOUT_S,
        ) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = self._threads
            begun = time.monotonic()
            for frame in container.decode(stream):
                if self._is_file and frame.time is not None:
                    self._ending.wait(begun + frame.time - time.monotonic())
                if self._ending.is_set():
                    return
                yield frame

    def _put(self, frame: Any) -> None:  # noqa: ANN401 - av.VideoFrame
        with self._changed:
            self.dropped += self._frame is not None
            self._frame = (time.time(), frame)
            self._changed.notify()


def open_source(source: str, queue: ResultQueue, threads: int, say: Callable[[str], None]) -> Source:
    """The folder, or the camera.

    Raises:
        EaglerayError: when it is neither.
    """
    path = Path(source)
    if path.is_dir():
        return FolderSource(path, queue)
    if "://" not in source and not path.exists():
        raise EaglerayError(
            "there is no such folder, device or file",
            "give a folder, /dev/video0, rtsp://HOST/PATH or a file of video",
            source,
        )
    return CameraSource(source, threads, say)


def _shown(address: str) -> str:
    """An address without its user and password."""
    if "://" not in address:
        return address
    parts = urllib.parse.urlsplit(address)
    return urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=""))
