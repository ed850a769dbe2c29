"""What one attempt at a stage does, in whatever process it runs: open, call, commit."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .artifacts import Artifact
from .errors import EaglerayError
from .fingerprint import identity
from .secrets import redact, resolve, secret_forms
from .spec import StageSpec
from .stage import Emit, StageContext, StageKind, discover_kinds
from .store import CHUNK_BYTES, ArtifactStore, Record, explained_io, make_record

DOWNLOADS = "downloads"
"""Folder in a home for what was fetched."""


@dataclass(frozen=True)
class StageTask:
    """One attempt at a stage. Picklable.

    Attributes:
        run_id: of the run.
        stage: its name.
        spec: its spec; secrets are references.
        fingerprint: identity of its result.
        inputs: input name → record.
        packages: where stage kinds are found.
        store: URI of the artifact store.
        home: local folder of scratch, downloads and copies of remote artifacts.
        secrets: environment variables that the spec refers to.
    """

    run_id: str
    stage: str
    spec: StageSpec
    fingerprint: str
    inputs: Mapping[str, Record]
    packages: tuple[str, ...]
    store: str = field(repr=False)  # may hold keys
    home: Path
    secrets: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True)
class RedactedEmit:
    """Passes events on as JSON values, with the values of secrets blotted out. Picklable."""

    emit: Emit
    secrets: Mapping[str, str] = field(repr=False)

    def __call__(self, event: str, /, **fields: Any) -> None:  # noqa: ANN401
        """Emit one event."""
        self.emit(event, **redact(plain(fields), self.secrets))


def run_task(task: StageTask, emit: Emit) -> Record:
    """Make a stage's artifact, or find that another run made it meanwhile.

    The same fingerprint is made by one process at a time: its scratch folder is locked, so that
    whatever is left of a killed run has ended before another goes on with its partial work.

    Raises:
        EaglerayError: for whatever the person can mend.
    """
    try:
        return _run(task, RedactedEmit(emit, task.secrets))
    except EaglerayError as error:
        if not task.secrets:
            raise
        cause, remedy, where = redact([error.cause, error.remedy, error.where], task.secrets)
        raise EaglerayError(cause, remedy, where, error.retryable) from None
    except (Exception, SystemExit) as error:
        if not task.secrets:
            raise
        # its message, arguments and traceback may all hold a secret
        raise RuntimeError(f"{type(error).__name__}: {redact(str(error), task.secrets)}") from None


def _run(task: StageTask, emit: Emit) -> Record:
    kind = discover_kinds(task.packages)[task.spec.kind]
    store = ArtifactStore(task.store, task.home / "artifacts")
    scratch = task.home / "scratch" / task.fingerprint
    with explained_io(str(scratch)), _locked(scratch, emit):
        found = store.find(task.fingerprint) if kind.cached else None
        if found is not None:
            return found
        store.prepare()
        output = scratch / "output"
        if output.exists():
            shutil.rmtree(output)
        for folder in (output, scratch / "work", task.home / DOWNLOADS):
            folder.mkdir(parents=True, exist_ok=True)
        context = StageContext(
            run_id=task.run_id,
            stage=task.stage,
            fingerprint=task.fingerprint,
            output=output,
            scratch=scratch / "work",
            cache=task.home / DOWNLOADS,
            emit=emit,
            earlier=lambda: _earlier(task, store),
        )
        opened = {name: store.open(record) for name, record in task.inputs.items()}
        facts = kind.function(context, resolve(task.spec, task.secrets), **opened)
        record = _commit(task, kind, store, output, redact(plain(facts or {}), task.secrets))
        shutil.rmtree(scratch)
    return record


def _earlier(task: StageTask, store: ArtifactStore) -> Artifact | None:
    """What was made last of the same spec and inputs; one that can't be opened is as good as none."""
    spec = identity(task.spec)
    inputs = {name: record.fingerprint for name, record in task.inputs.items()}
    for record in store.list():
        same = record.spec == spec and record.inputs == inputs
        if same and record.fingerprint != task.fingerprint:
            try:
                return store.open(record)
            except EaglerayError:
                continue
    return None


def _commit(
    task: StageTask, kind: StageKind, store: ArtifactStore, output: Path, facts: Mapping[str, Any]
) -> Record:
    _refuse_secrets(output, task)
    record = make_record(
        kind.gives,
        output,
        fingerprint=task.fingerprint,
        stage=task.stage,
        kind=kind.name,
        run_id=task.run_id,
        spec=identity(task.spec),
        inputs=task.inputs,
        facts=facts,
    )
    committed = store.commit(record, output)
    return committed if kind.cached else record  # what is done for its effect was done now


def plain(value: Any) -> Any:  # noqa: ANN401 - any value
    """The value as JSON has it: NumPy's and torch's scalars as numbers, what else JSON lacks as text."""

    def replace(value: Any) -> Any:  # noqa: ANN401 - any value
        try:
            return value.item()
        except (AttributeError, ValueError, RuntimeError):  # no scalar
            return str(value)

    return json.loads(json.dumps(value, default=replace))


def _refuse_secrets(folder: Path, task: StageTask) -> None:
    """Refuse to commit a file that holds a secret's value, or is named by it."""
    wanted = {os.fsencode(form): name for form, name in secret_forms(task.secrets).items()}
    if not wanted:
        return
    pattern = re.compile(b"|".join(map(re.escape, wanted)))
    overlap = max(map(len, wanted))
    for path in (p for p in folder.rglob("*") if p.is_file()):
        match = pattern.search(os.fsencode(path.relative_to(folder)))
        with path.open("rb") as stream:
            tail = b""
            while not match and (chunk := stream.read(CHUNK_BYTES)):
                match = pattern.search(tail + chunk)
                tail = chunk[-overlap:]
        if match:
            raise EaglerayError(
                f"{path.name} holds the value of the environment variable {wanted[match[0]]}",
                "a stage must not write secrets into its artifact",
                task.stage,
            )


@contextmanager
def _locked(scratch: Path, emit: Emit) -> Generator[None]:
    scratch.parent.mkdir(parents=True, exist_ok=True)
    with scratch.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            emit("log", message="waiting for another run that makes the same")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
