"""Results that wait to be delivered, and which files they are of, in a database that survives power failures.

SQLite with a write-ahead log and `synchronous=FULL`: what `put` has acknowledged was written and synced, each
frame of the log has a checksum, and a torn one ends what is read (sqlite.org/wal.html, sections 4 and 5). A
result and the file it is of are one transaction, so no file is assessed twice or never.
"""

from __future__ import annotations

import sqlite3
import threading
import uuid
from collections.abc import Collection, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..workflows.errors import EaglerayError
from .shelf import sync

MOST_BYTES = 64 << 20
MOST_FILES = 100_000
"""Files that are remembered besides those that are still there."""
_TABLES = """
CREATE TABLE IF NOT EXISTS results (number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE, line TEXT);
CREATE TABLE IF NOT EXISTS files (name TEXT PRIMARY KEY, version TEXT, number INTEGER);
CREATE TABLE IF NOT EXISTS device (id TEXT);
CREATE INDEX IF NOT EXISTS files_by_number ON files (number);
"""


@dataclass(frozen=True)
class Seen:
    """A file as it was looked at.

    Attributes:
        name: unique among the source's files.
        version: another when its content is.
    """

    name: str
    version: str


@dataclass(frozen=True)
class Waiting:
    """A result that is not delivered yet.

    Attributes:
        number: grows with each result.
        line: of JSON.
    """

    number: int
    line: str


class ResultQueue:
    """Results of one device, the oldest first.

    When it is full nothing more is taken: what was acknowledged is never given up for what is new.

    Args:
        path: of the database.
        most_bytes: of the lines that wait.

    Raises:
        EaglerayError: when the database can't be opened.
    """

    def __init__(self, path: Path, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes, self._path = most_bytes, path
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._explained():
            self._database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=FULL")
            self._database.executescript(_TABLES)
            self._count, self._bytes = self._one(
                "SELECT count(*), coalesce(sum(length(CAST(line AS BLOB))), 0) FROM results"
            )
            found = self._one("SELECT id FROM device")
            self.device: str = found[0] if found else uuid.uuid4().hex
            if not found:
                self._database.execute("INSERT INTO device VALUES (?)", [self.device])
        sync(path.parent)  # SQLite syncs its files, and not that there is one

    def __len__(self) -> int:
        """Results that wait."""
        return self._count

    def put(self, id: str, line: str, of: Seen | None = None) -> bool:
        """Take a result, or nothing of it when the queue or the disk is full. True once it is on the disk.

        Args:
            id: of the result; one that waits already is not taken again.
            line: of JSON.
            of: file that is done with it.
        """
        size = len(line.encode())
        with self._lock, self._explained():
            if self._bytes + size > self._most_bytes:
                return False
            try:
                with self._transaction():
                    added = self._database.execute(
                        "INSERT OR IGNORE INTO results (id, line) VALUES (?, ?)", [id, line]
                    ).rowcount
                    if of is not None:
                        self._database.execute(
                            "INSERT OR REPLACE INTO files VALUES (?, ?, "
                            "(SELECT coalesce(max(number), 0) + 1 FROM files))",
                            [of.name, of.version],
                        )
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
                    return False
                raise
            self._count, self._bytes = self._count + added, self._bytes + added * size
            return True

    def oldest(self, most: int) -> list[Waiting]:
        """The results that have waited longest."""
        with self._lock, self._explained():
            rows = self._database.execute(
                "SELECT number, line FROM results ORDER BY number LIMIT ?", [most]
            ).fetchall()
        return [Waiting(number, line) for number, line in rows]

    def remove(self, delivered: Sequence[Waiting]) -> None:
        """Forget results that were delivered."""
        with self._lock, self._explained():
            with self._transaction():
                self._database.executemany(
                    "DELETE FROM results WHERE number = ?", [[one.number] for one in delivered]
                )
            self._count -= len(delivered)
            self._bytes -= sum(len(one.line.encode()) for one in delivered)

    def is_done(self, file: Seen) -> bool:
        """Whether a file was assessed as it is."""
        with self._lock, self._explained():
            found = self._one("SELECT version FROM files WHERE name = ?", [file.name])
        return found is not None and found[0] == file.version

    def forget(self, present: Collection[str]) -> None:
        """Forget the files that were done longest ago, of those that are there no longer, if they are many.

        An empty folder may be one whose disk isn't there yet, so all aren't forgotten at once.
        """
        with self._lock, self._explained():
            (count,) = self._one("SELECT count(*) FROM files")
            if count <= MOST_FILES + len(present):
                return
            names = self._database.execute("SELECT name FROM files ORDER BY number").fetchall()
            gone = [[name] for (name,) in names if name not in present][: count - MOST_FILES]
            with self._transaction():
                self._database.executemany("DELETE FROM files WHERE name = ?", gone)

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._database.close()

    def _one(self, query: str, given: Sequence[Any] = ()) -> Any:  # noqa: ANN401 - a row
        return self._database.execute(query, given).fetchone()

    @contextmanager
    def _transaction(self) -> Generator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise

    @contextmanager
    def _explained(self) -> Generator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise EaglerayError(
                f"the queue of results can't be used: {error}",
                "see to the disk; if the file is damaged, move it away, and a new one is made",
                str(self._path),
            ) from error
