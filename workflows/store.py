"""The artifact store: immutable, content-addressed folders on any filesystem of pyarrow.

Layout: `content/DIGEST/…` holds an artifact's files, `records/FINGERPRINT.json` says which digest a
fingerprint led to. Content is written first and the record last, so that a folder without a record is
no artifact; a record is never written over.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from .artifacts import Artifact
from .errors import EaglerayError
from .filesystem import absolute, open_filesystem, shown
from .fingerprint import digest_of

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

CHUNK_BYTES = 1 << 20
READERS = 16
READS = 3
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class FileEntry(BaseModel):
    """A file of an artifact."""

    model_config = ConfigDict(frozen=True)

    path: str
    size_bytes: int
    sha256: str


class Record(BaseModel):
    """What the store knows about an artifact.

    Attributes:
        type: name of the artifact type.
        fingerprint: identity of what made it.
        digest: sha256 over type and files.
        files: its content.
        stage: name of the stage that made it.
        kind: of that stage.
        run_id: of the run that made it.
        spec: identity of the stage's spec; secrets are references.
        parents: input name → digest.
        inputs: input name → fingerprint.
        facts: what the stage reported.
        created_s: seconds since the epoch.
    """

    model_config = ConfigDict(frozen=True)

    type: str
    fingerprint: str
    digest: str
    files: tuple[FileEntry, ...]
    stage: str
    kind: str
    run_id: str
    spec: dict[str, Any]
    parents: dict[str, str]
    inputs: dict[str, str]
    facts: dict[str, Any]
    created_s: float

    @property
    def size_bytes(self) -> int:
        """Bytes of its files."""
        return sum(entry.size_bytes for entry in self.files)


class ArtifactStore:
    """Artifacts at a URI or in a folder.

    Args:
        uri: folder, or URI of a filesystem that pyarrow knows (`s3://…`, `gs://…`, `file://…`).
        cache: local folder for artifacts of a remote store.
    """

    def __init__(self, uri: str, cache: Path) -> None:
        self.uri = absolute(uri)
        self.cache = cache
        self._opened: tuple[FileSystem, str] | None = None

    @property
    def shown(self) -> str:
        """Its URI without keys, for people."""
        return shown(self.uri)

    def prepare(self) -> None:
        """Make its folders, and refuse a place that can't be written to before anything is made for it."""
        from pyarrow.fs import LocalFileSystem

        filesystem, root = self._filesystem()
        with self._explained():
            filesystem.create_dir(f"{root}/content", recursive=True)
            filesystem.create_dir(f"{root}/records", recursive=True)
            if isinstance(filesystem, LocalFileSystem):
                tempfile.TemporaryFile(dir=f"{root}/records").close()

    def find(self, fingerprint: str) -> Record | None:
        """The record of a fingerprint, if it led to an artifact."""
        filesystem, root = self._filesystem()
        path = f"{root}/records/{fingerprint}.json"
        for _ in range(READS):  # pyarrow asks for a length, then for so much; a writer may come between
            with self._explained():
                try:
                    with filesystem.open_input_stream(path) as stream:
                        text = stream.read()
                except FileNotFoundError:
                    return None
            try:
                return Record.model_validate_json(text)
            except ValidationError:
                continue
        raise EaglerayError(
            "this is not a record that can be read", "remove it; what it stands for is made again", path
        )

    def list(self) -> list[Record]:
        """All records, newest first."""
        from pyarrow.fs import FileSelector

        filesystem, root = self._filesystem()
        selector = FileSelector(f"{root}/records", allow_not_found=True)
        with self._explained():
            infos = filesystem.get_file_info(selector)
        names = [info.base_name.removesuffix(".json") for info in infos if info.extension == "json"]
        with ThreadPoolExecutor(READERS) as pool:  # on object storage each takes some 30 ms
            records = list(pool.map(self.find, names))
        return sorted((r for r in records if r), key=lambda r: r.created_s, reverse=True)

    def commit(self, record: Record, folder: Path) -> Record:
        """Put the folder's files and then the record; if another was faster, its record stands.

        Args:
            record: with `digest` and `files` as `describe` gave them for the folder.
            folder: local content.

        Raises:
            EaglerayError: when the disk is full or the place can't be written.
        """
        from pyarrow.fs import LocalFileSystem, copy_files

        self.prepare()
        filesystem, root = self._filesystem()
        content = f"{root}/content/{record.digest}"
        with self._explained(record.size_bytes):
            if not self._whole(record):
                if isinstance(filesystem, LocalFileSystem):
                    with _arriving(Path(content), lambda: self._whole(record)) as arriving:
                        _copy(record, folder, arriving)
                else:
                    copy_files(str(folder), content, destination_filesystem=filesystem)
            self._put_if_absent(f"{root}/records/{record.fingerprint}.json", record.model_dump_json(indent=1))
        return self.find(record.fingerprint) or record

    def open(self, record: Record) -> Artifact:
        """Open an artifact on a local folder; one of a remote store is downloaded and verified once."""
        from pyarrow.fs import LocalFileSystem, copy_files

        filesystem, root = self._filesystem()
        content = f"{root}/content/{record.digest}"
        path = Path(content)
        if not isinstance(filesystem, LocalFileSystem):
            path = self.cache / record.digest
            if not path.is_dir():
                with (
                    self._explained(),
                    explained_io(str(self.cache), record.size_bytes),
                    _arriving(path, lambda: True) as arriving,
                ):
                    if record.files and self._whole(record):
                        copy_files(content, str(arriving), source_filesystem=filesystem)
                    if describe(record.type, arriving)[0] != record.digest:
                        raise self._damaged(record)
        elif not self._whole(record):
            raise self._damaged(record)
        kind = next((kind for kind in _artifact_types(Artifact) if kind.__name__ == record.type), Artifact)
        return kind(path, record.digest, record.fingerprint, record.facts)

    def _whole(self, record: Record) -> bool:
        """Whether all files of a content folder are there; on object storage an upload may stop halfway."""
        from pyarrow.fs import FileType, LocalFileSystem

        filesystem, root = self._filesystem()
        content = f"{root}/content/{record.digest}"
        with self._explained():
            infos = filesystem.get_file_info([f"{content}/{entry.path}" for entry in record.files])
            there = not isinstance(filesystem, LocalFileSystem) or (
                filesystem.get_file_info(content).type == FileType.Directory
            )  # object storage has no folders
        return there and [info.size for info in infos] == [entry.size_bytes for entry in record.files]

    def _damaged(self, record: Record) -> EaglerayError:
        return EaglerayError(
            f"what {record.stage!r} made is no longer there as its record says",
            f"remove content/{record.digest} and records/{record.fingerprint}.json there, and run again",
            self.shown,
        )

    def _put_if_absent(self, path: str, text: str) -> None:
        from pyarrow.fs import FileType, LocalFileSystem

        filesystem, _ = self._filesystem()
        if isinstance(filesystem, LocalFileSystem):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            arriving = Path(f"{path}.{uuid.uuid4().hex}")
            try:
                arriving.write_text(text, encoding="utf-8")
                os.link(arriving, path)  # fails when it exists, unlike a rename
            except FileExistsError:
                pass
            finally:
                arriving.unlink(missing_ok=True)
        # pyarrow has no conditional put; two writers of one fingerprint made the same thing
        elif filesystem.get_file_info(path).type == FileType.NotFound:
            with filesystem.open_output_stream(path) as stream:
                stream.write(text.encode())

    def _filesystem(self) -> tuple[FileSystem, str]:
        if self._opened is None:
            try:
                self._opened = open_filesystem(self.uri)
            except (ValueError, OSError) as error:
                raise EaglerayError(
                    f"no artifact store can be opened there: {str(error).replace(self.uri, self.shown)}",
                    "give a folder, or a URI such as s3://BUCKET/PREFIX",
                    self.shown,
                ) from None
        return self._opened

    @contextmanager
    def _explained(self, needed_bytes: int = 0) -> Generator[None]:
        """Turn what goes wrong with its filesystem into an error that says so."""
        try:
            with explained_io(self.shown, needed_bytes):
                yield
        except OSError as error:  # of object storage these have no number, and may pass
            raise EaglerayError(
                f"the artifact store can't be used: {error}",
                "check its address, its keys and the network, then `eagleray resume last`",
                self.shown,
                retryable=True,
            ) from None


def describe(artifact: str, folder: Path) -> tuple[str, tuple[FileEntry, ...]]:
    """Digest and files of an artifact's content.

    Args:
        artifact: name of the artifact type.
        folder: local content.
    """
    entries: list[FileEntry] = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest = hashlib.sha256()
        with path.open("rb") as stream:
            while chunk := stream.read(CHUNK_BYTES):
                digest.update(chunk)
        relative = path.relative_to(folder).as_posix()
        size = path.stat().st_size
        entries.append(FileEntry(path=relative, size_bytes=size, sha256=digest.hexdigest()))
    files: list[Any] = [[entry.path, entry.size_bytes, entry.sha256] for entry in entries]
    return digest_of({"type": artifact, "files": files}), tuple(entries)


def make_record(
    artifact: type[Artifact],
    folder: Path,
    *,
    fingerprint: str,
    stage: str,
    kind: str,
    run_id: str,
    spec: Mapping[str, Any],
    inputs: Mapping[str, Record],
    facts: Mapping[str, Any],
) -> Record:
    """Describe a folder that is to be committed; see `Record`."""
    digest, files = describe(artifact.__name__, folder)
    return Record(
        type=artifact.__name__,
        fingerprint=fingerprint,
        digest=digest,
        files=files,
        stage=stage,
        kind=kind,
        run_id=run_id,
        spec=dict(spec),
        parents={name: record.digest for name, record in inputs.items()},
        inputs={name: record.fingerprint for name, record in inputs.items()},
        facts=dict(facts),
        created_s=time.time(),
    )


def _artifact_types(kind: type[Artifact]) -> Iterator[type[Artifact]]:
    for below in kind.__subclasses__():
        yield below
        yield from _artifact_types(below)


@contextmanager
def _arriving(place: Path, is_whole: Callable[[], bool]) -> Generator[Path]:
    """An empty folder that takes a place once it is filled; what stands there gives way if it isn't whole."""
    arriving = place.with_name(f"{place.name}.{uuid.uuid4().hex}")
    try:
        arriving.mkdir(parents=True)
        yield arriving
        try:
            arriving.rename(place)
        except OSError:
            if not place.is_dir():
                raise
            if not is_whole():  # else another run put the same meanwhile
                place.rename(f"{arriving}.old")
                arriving.rename(place)
    finally:
        shutil.rmtree(arriving, ignore_errors=True)
        shutil.rmtree(f"{arriving}.old", ignore_errors=True)


def _copy(record: Record, folder: Path, target: Path) -> None:
    for entry in record.files:  # shutil.copytree would hide that the disk is full
        path = target / entry.path
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / entry.path, path)


@contextmanager
def explained_io(where: str, needed_bytes: int = 0) -> Generator[None]:
    """Turn a full disk or a denied write into an error that says so."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            needed = f" ({needed_bytes / 2**20:.0f} MiB were to be written)" if needed_bytes else ""
            raise EaglerayError(
                f"the disk is full{needed}", "free some space, then `eagleray resume last`", where
            ) from error
        if isinstance(error, PermissionError) or error.errno == errno.EROFS:
            raise EaglerayError(
                (error.strerror or str(error)).lower(),
                "choose another folder, or get the right to it",
                str(error.filename or where),
            ) from error
        raise
