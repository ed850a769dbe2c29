"""What one attempt at a stage does, in whatever process it runs: open, call, commit."""

from __future__ import annotations

import fcntl
import re
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
    store: str
    home: Path
    secrets: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True)
class RedactedEmit:
    """Passes events on with the values of secrets blotted out. Picklable."""

    emit: Emit
    secrets: Mapping[str, str] = field(repr=False)

    def __call__(self, event: str, /, **fields: Any) -> None:  # noqa: ANN401
        """Emit one event."""
        self.emit(event, **redact(fields, self.secrets))


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
        raise EaglerayError(*redact(list(error.args), task.secrets)) from None
    except Exception as error:
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
        output = scratch / "output"
        shutil.rmtree(output, ignore_errors=True)
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
        record = _commit(task, kind, store, output, redact(dict(facts or {}), task.secrets))
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


def redact(value: Any, secrets: Mapping[str, str]) -> Any:  # noqa: ANN401 - any JSON value
    """The value with every secret's value replaced by its reference."""
    if isinstance(value, str):
        for name, secret in secrets.items():
            value = value.replace(secret, f"${{env:{name}}}") if secret else value
        return value
    if isinstance(value, Mapping):
        return {key: redact(item, secrets) for key, item in value.items()}
    return [redact(item, secrets) for item in value] if isinstance(value, list | tuple) else value


def _refuse_secrets(folder: Path, task: StageTask) -> None:
    """Refuse to commit a file that holds a secret's value."""
    wanted = {secret.encode(): name for name, secret in task.secrets.items() if secret}
    if not wanted:
        return
    pattern = re.compile(b"|".join(re.escape(secret) for secret in wanted))
    overlap = max(map(len, wanted))
    for path in (p for p in folder.rglob("*") if p.is_file()):
        tail = b""
        with path.open("rb") as stream:
            while chunk := stream.read(CHUNK_BYTES):
                if match := pattern.search(tail + chunk):
                    raise EaglerayError(
                        f"{path.name} holds the value of the environment variable {wanted[match[0]]}",
                        "a stage must not write secrets into its artifact",
                        task.stage,
                    )
                tail = chunk[-overlap:]


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
