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
from urllib.parse import quote

from .errors import EaglerayError
from .fingerprint import identity
from .loading import REFERENCE
from .spec import StageSpec
from .stage import Emit, StageContext, StageKind, discover
from .store import CHUNK_BYTES, ArtifactStore, Record, explained_io, make_record


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
    kind = discover(task.packages)[task.spec.kind]
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
        for folder in (output, scratch / "work", task.home / "downloads"):
            folder.mkdir(parents=True, exist_ok=True)
        context = StageContext(
            run_id=task.run_id,
            stage=task.stage,
            fingerprint=task.fingerprint,
            output=output,
            scratch=scratch / "work",
            cache=task.home / "downloads",
            emit=emit,
        )
        opened = {name: store.open(record) for name, record in task.inputs.items()}
        facts = kind.function(context, resolve(task.spec, task.secrets), **opened)
        record = _commit(task, kind, store, output, redact(plain(facts or {}), task.secrets))
        shutil.rmtree(scratch)
    return record


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


def resolve(spec: StageSpec, secrets: Mapping[str, str]) -> StageSpec:
    """The spec with every `${env:NAME}` replaced by its value."""
    if not secrets:
        return spec

    def replace(value: Any) -> Any:  # noqa: ANN401 - any JSON value
        if isinstance(value, str):
            return REFERENCE.sub(lambda match: secrets[match[1]], value)
        if isinstance(value, dict):
            return {key: replace(item) for key, item in value.items()}
        return [replace(item) for item in value] if isinstance(value, list | tuple) else value

    return type(spec).model_validate(replace(spec.model_dump()))


def plain(value: Any) -> Any:  # noqa: ANN401 - any value
    """The value as JSON has it: NumPy's and torch's scalars as numbers, what else JSON lacks as text."""

    def replace(value: Any) -> Any:  # noqa: ANN401 - any value
        try:
            return value.item()
        except (AttributeError, ValueError, RuntimeError):  # no scalar
            return str(value)

    return json.loads(json.dumps(value, default=replace))


def redact(value: Any, secrets: Mapping[str, str]) -> Any:  # noqa: ANN401 - any JSON value
    """The value with every secret's value replaced by its reference."""
    forms = _forms(secrets)
    if not forms:
        return value
    pattern = re.compile("|".join(map(re.escape, forms)))

    def blot(value: Any) -> Any:  # noqa: ANN401 - any JSON value
        if isinstance(value, str):
            return pattern.sub(lambda match: f"${{env:{forms[match[0]]}}}", value)
        if isinstance(value, Mapping):
            return {blot(key): blot(item) for key, item in value.items()}
        return [blot(item) for item in value] if isinstance(value, list | tuple) else value

    return blot(value)


def _forms(secrets: Mapping[str, str]) -> dict[str, str]:
    """What a secret looks like in text, JSON, messages and addresses → its variable; longest first."""
    found: dict[str, str] = {}
    for name, secret in secrets.items():
        escaped = json.dumps(secret), json.dumps(secret, ensure_ascii=False), repr(secret)
        for form in (
            secret,
            *(text[1:-1] for text in escaped),
            quote(secret, safe="", errors="surrogateescape"),
        ):
            if form:
                found[form] = name
    return dict(sorted(found.items(), key=lambda item: -len(item[0])))


def _refuse_secrets(folder: Path, task: StageTask) -> None:
    """Refuse to commit a file that holds a secret's value, or is named by it."""
    wanted = {os.fsencode(form): name for form, name in _forms(task.secrets).items()}
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
