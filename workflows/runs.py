"""The run log: an append-only list of events per run, from which everything shown is derived.

It lies in any database that SQLAlchemy reaches; SQLite by default. Besides the events there is one
row per run that says which process carries it out and when that process was last alive: this is how
a killed run is recognised, and how two processes are kept from carrying out the same run.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event as sa_event
from sqlalchemy import exc

from .errors import EaglerayError
from .events import Event, RunInfo, RunStatus, derive_status
from .loading import Workflow
from .state import State

STALE_AFTER_S = 180.0  # longer than a cluster takes to start, since nothing beats meanwhile
_METADATA = sa.MetaData()
_RUNS = sa.Table(
    "runs",
    _METADATA,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("workflow", sa.String(200), nullable=False),
    sa.Column("filename", sa.Text, nullable=False),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("overrides", sa.JSON, nullable=False),
    sa.Column("created_s", sa.Float, nullable=False),
    sa.Column("owner", sa.String(200), nullable=False, default=""),
    sa.Column("alive_s", sa.Float, nullable=False, default=0.0),
)
_EVENTS = sa.Table(
    "events",
    _METADATA,
    sa.Column("number", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("run_id", sa.String(40), sa.ForeignKey("runs.id"), nullable=False, index=True),
    sa.Column("time_s", sa.Float, nullable=False),
    sa.Column("stage", sa.String(200)),
    sa.Column("event", sa.String(40), nullable=False),
    sa.Column("fields", sa.Text, nullable=False),  # JSON, but Postgres' own would refuse a loss of NaN
)


class TakenError(EaglerayError):
    """Another process carries the run out."""


class RunLog:
    """The runs and events of one database.

    Args:
        url: SQLAlchemy URL, such as `sqlite:///runs.db` or `postgresql+psycopg://…`.

    Raises:
        EaglerayError: when the database can't be reached.
    """

    def __init__(self, url: str) -> None:
        try:
            self.url = sa.make_url(url)
            if self.url.database and self.url.get_backend_name() == "sqlite":
                Path(self.url.database).absolute().parent.mkdir(parents=True, exist_ok=True)
            self._engine = sa.create_engine(self.url, pool_pre_ping=True)
            if self.url.get_backend_name() == "sqlite":
                sa_event.listen(self._engine, "connect", _configure_sqlite)
            try:
                _METADATA.create_all(self._engine)
            except exc.SQLAlchemyError:  # another process makes the tables at this moment
                _create_missing(self._engine)
        except (exc.SQLAlchemyError, OSError, ImportError) as error:
            raise self._explained(error) from error

    def create(self, workflow: Workflow) -> str:
        """Add a run and return its id: date, time and four random letters."""
        run_id = time.strftime("%Y%m%d-%H%M%S-") + secrets.token_hex(2)
        values = {
            "id": run_id,
            "workflow": workflow.name,
            "filename": workflow.filename,
            "text": workflow.text,
            "overrides": list(workflow.overrides),
            "created_s": time.time(),
        }
        self._write(_RUNS.insert().values(values))
        return run_id

    def append(self, run_id: str, entries: Sequence[tuple[str | None, str, Mapping[str, Any]]]) -> None:
        """Add events, each (stage, event, fields), in one transaction."""
        now = time.time()
        rows = [
            {"run_id": run_id, "time_s": now, "stage": stage, "event": event, "fields": json.dumps(fields)}
            for stage, event, fields in entries
        ]
        if rows:
            self._write(_EVENTS.insert(), rows)

    def events(self, run_id: str, after: int = 0) -> list[Event]:
        """A run's events whose number is above `after`, in order."""
        return self._events(run_id, _EVENTS.c.number > after)

    def _events(self, run_id: str, condition: sa.ColumnElement[bool]) -> list[Event]:
        query = sa.select(_EVENTS).where(_EVENTS.c.run_id == run_id, condition).order_by(_EVENTS.c.number)
        return [
            Event(row.number, row.time_s, row.stage, row.event, json.loads(row.fields))
            for row in self._read(query)
        ]

    def runs(self, limit: int = 50) -> list[RunInfo]:
        """Runs, newest first."""
        query = sa.select(_RUNS).order_by(_RUNS.c.created_s.desc()).limit(limit)
        return [_info(row) for row in self._read(query)]

    def find(self, run_id: str) -> RunInfo:
        """The run of that id, or whose id begins so; `last` is the newest.

        Raises:
            EaglerayError: when there is none, or there are several.
        """
        query = sa.select(_RUNS).order_by(_RUNS.c.created_s.desc()).limit(2)
        if run_id != "last":
            query = query.where(_RUNS.c.id.startswith(run_id, autoescape=True))
        rows = self._read(query)
        if not rows:
            known = [run.id for run in self.runs(5)]
            remedy = f"the newest: {', '.join(known)}" if known else "no run was started with this home yet"
            raise EaglerayError(f"there is no run {run_id!r}", remedy)
        if len(rows) > 1 and run_id not in ("last", rows[0].id):
            raise EaglerayError(f"several runs begin with {run_id!r}", "give more of the id")
        return _info(rows[0])

    def status(self, run_id: str) -> RunStatus:
        """Where a run stands; one whose process is gone is interrupted."""
        owned = self._is_owned(run_id)  # before its events: a process writes its last ones, then lets go
        progress = sa.and_(_EVENTS.c.run_id == run_id, _EVENTS.c.event == "progress")
        newest = sa.select(sa.func.max(_EVENTS.c.number)).where(progress).group_by(_EVENTS.c.stage)
        deciding = _EVENTS.c.event.not_in(("progress", "log")) | _EVENTS.c.number.in_(newest)
        status = derive_status(self._events(run_id, deciding))  # of many thousand events a few dozen
        if status.state in (State.RUNNING, State.WAITING) and not owned:
            status.state, status.reason = State.INTERRUPTED, "its process is gone"
            for stage in status.stages.values():
                if stage.state in (State.RUNNING, State.RETRYING):
                    stage.state = State.INTERRUPTED
        return status

    def is_cancelled(self, run_id: str) -> bool:
        """Whether someone asked to cancel the run since it was last taken up."""
        query = (
            sa.select(_EVENTS.c.event)
            .where(_EVENTS.c.run_id == run_id, _EVENTS.c.event.in_(("plan", "cancel")))
            .order_by(_EVENTS.c.number.desc())
            .limit(1)
        )
        return [row.event for row in self._read(query)] == ["cancel"]

    def claim(self, run_id: str) -> None:
        """Become the process that carries the run out.

        Raises:
            TakenError: when another process does.
        """
        owner = self._owner(run_id)
        free = owner == _me() or not self._is_owned(run_id)
        if not free or not self._update(run_id, owner, owner=_me(), alive_s=time.time()):
            raise self._taken(run_id)

    def beat(self, run_id: str) -> None:
        """Say that this process, which carries the run out, is alive.

        Raises:
            TakenError: when another process took the run over, since this one seemed to be gone.
        """
        if not self._update(run_id, _me(), alive_s=time.time()):
            raise self._taken(run_id)

    def release(self, run_id: str) -> None:
        """Say that this process no longer carries the run out."""
        self._update(run_id, _me(), owner="", alive_s=0.0)

    def _update(self, run_id: str, owner: str, /, **values: str | float) -> bool:
        """Change a run's row if that owner still has it."""
        mine = _RUNS.c.id == run_id, _RUNS.c.owner == owner
        return bool(self._write(_RUNS.update().where(*mine).values(**values)))

    def _owner(self, run_id: str) -> str:
        return self._read(sa.select(_RUNS.c.owner).where(_RUNS.c.id == run_id))[0].owner

    def _taken(self, run_id: str) -> TakenError:
        host, _, pid = self._owner(run_id).rpartition(":")
        return TakenError(
            f"run {run_id} is being carried out by process {pid} on {host}",
            f"follow it: eagleray logs {run_id} -f; or end it: eagleray cancel {run_id}",
        )

    def _is_owned(self, run_id: str) -> bool:
        row = self._read(sa.select(_RUNS.c.owner, _RUNS.c.alive_s).where(_RUNS.c.id == run_id))[0]
        host, _, pid = row.owner.rpartition(":")
        if not pid or time.time() - row.alive_s > STALE_AFTER_S:
            return False
        return host != socket.gethostname() or _alive(int(pid))

    def _write(
        self, statement: sa.Insert | sa.Update, rows: Sequence[Mapping[str, Any]] | None = None
    ) -> int:
        try:
            with self._engine.begin() as connection:
                return connection.execute(statement, rows).rowcount
        except exc.SQLAlchemyError as error:
            raise self._explained(error) from error

    def _read(self, query: sa.Select[*tuple[Any, ...]]) -> Sequence[sa.Row[*tuple[Any, ...]]]:
        try:
            with self._engine.connect() as connection:
                return connection.execute(query).all()
        except exc.SQLAlchemyError as error:
            raise self._explained(error) from error

    def _explained(self, error: Exception) -> EaglerayError:
        first = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        shown = self.url.render_as_string() if hasattr(self, "url") else "--database"
        if "full" in first:
            return EaglerayError(
                f"the disk is full: {first}", "free some space, then `eagleray resume`", shown
            )
        return EaglerayError(
            f"the run log can't be used: {first}", "check --database, or leave it out for SQLite", shown
        )


def _info(row: sa.Row[*tuple[Any, ...]]) -> RunInfo:
    return RunInfo(row.id, row.workflow, row.filename, row.text, tuple(row.overrides), row.created_s)


def _create_missing(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        for table in _METADATA.sorted_tables:
            connection.execute(sa.schema.CreateTable(table, if_not_exists=True))
            for index in table.indexes:
                connection.execute(sa.schema.CreateIndex(index, if_not_exists=True))


def _me() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _configure_sqlite(connection: Any, _: object) -> None:  # noqa: ANN401 - a DBAPI connection
    # A write-ahead log lets `status` read while a run writes, and survives a killed process.
    connection.execute("PRAGMA busy_timeout=30000")
    connection.execute("PRAGMA journal_mode=WAL")
