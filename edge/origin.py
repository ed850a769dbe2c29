"""Where a bundle comes from: a folder, or a URL below which its files lie."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from ..workflows.errors import EaglerayError
from ..workflows.filesystem import shown

CHUNK_BYTES = 1 << 20
MOST_BYTES = 2 << 30
"""Of a file."""
TIMEOUT_S = 30.0


class Origin(Protocol):
    """Gives a bundle's files."""

    where: str
    """For people."""

    def chunks(self, name: str) -> Iterator[bytes]:
        """The content of a file.

        Raises:
            FileNotFoundError: when there is none.
            EaglerayError: when it can't be read.
        """
        ...


class FolderOrigin:
    """A bundle in a folder."""

    def __init__(self, folder: Path) -> None:
        self.where, self._folder = str(folder), folder

    def chunks(self, name: str) -> Iterator[bytes]:
        """See `Origin`."""
        with (self._folder / name).open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk


class WebOrigin:
    """A bundle on a server of files, such as `https://HOST/bundles/NAME`."""

    def __init__(self, url: str) -> None:
        self.where, self._url = shown(url), urllib.parse.urlsplit(url)

    def chunks(self, name: str) -> Iterator[bytes]:
        """See `Origin`."""
        path = f"{self._url.path.rstrip('/')}/{urllib.parse.quote(name)}"
        url = urllib.parse.urlunsplit(self._url._replace(path=path))
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
                total = 0
                while chunk := answer.read(CHUNK_BYTES):
                    total += len(chunk)
                    if total > MOST_BYTES:
                        raise EaglerayError(f"{name} is over {MOST_BYTES >> 30} GiB", where=self.where)
                    yield chunk
        except urllib.error.HTTPError as error:
            if error.code == 404:
                raise FileNotFoundError(name) from error
            raise EaglerayError(f"{name}: {error.code} {error.reason}", where=self.where) from error
        except (OSError, http.client.HTTPException) as error:
            raise EaglerayError(
                f"{name} can't be fetched: {error}", "try again", self.where, retryable=True
            ) from error


def open_origin(source: str) -> Origin:
    """The bundle at a URL or in a folder."""
    if source.startswith(("http://", "https://")):
        return WebOrigin(source)
    return FolderOrigin(Path(source))
