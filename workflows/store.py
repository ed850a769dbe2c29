"""The artifact store: immutable, content-addressed folders on any filesystem of pyarrow.

Layout: `content/DIGEST/…` holds an artifact's files, `records/FINGERPRINT.json` says which digest a
fingerprint led to. Content is written first and the record last, so that a folder without a record is
no artifact; a record is never written over.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from . import artifacts
from .artifacts import Artifact
from .errors import EaglerayError
from .fingerprint import digest_of

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

CHUNK_BYTES = 1 << 20


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
        self.uri = uri
        self.cache = cache
        self._opened: tuple[FileSystem, str] | None = None

    def find(self, fingerprint: str) -> Record | None:
        """The record of a fingerprint, if it led to an artifact."""
        filesystem, root = self._filesystem()
        try:
            with filesystem.open_input_stream(f"{root}/records/{fingerprint}.json") as stream:
                return Record.model_validate_json(stream.read())
        except FileNotFoundError:
            return None

    def list(self) -> list[Record]:
        """All records, newest first."""
        from pyarrow.fs import FileSelector

        filesystem, root = self._filesystem()
        selector = FileSelector(f"{root}/records", allow_not_found=True)
        names = [info.base_name for info in filesystem.get_file_info(selector) if info.extension == "json"]
        records = [self.find(name.removesuffix(".json")) for name in names]
        return sorted((r for r in records if r), key=lambda r: r.created_s, reverse=True)

    def commit(self, record: Record, folder: Path) -> Record:
        """Put the folder's files and then the record; if another was faster, its record stands.

        Args:
            record: with `digest` and `files` as `describe` gave them for the folder.
            folder: local content.

        Raises:
            EaglerayError: when the disk is full or the place can't be written.
        """
        from pyarrow.fs import FileType, LocalFileSystem, copy_files

        filesystem, root = self._filesystem()
        content = f"{root}/content/{record.digest}"
        with explained_io(self.uri, record.size_bytes):
            if filesystem.get_file_info(content).type != FileType.Directory or not self._whole(record):
                if isinstance(filesystem, LocalFileSystem):
                    arriving = Path(f"{content}.{uuid.uuid4().hex}")
                    shutil.copytree(folder, arriving)
                    try:
                        arriving.rename(content)
                    except OSError:  # another run put the same content meanwhile
                        shutil.rmtree(arriving)
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
                arriving = self.cache / f"{record.digest}.{uuid.uuid4().hex}"
                arriving.mkdir(parents=True)
                with explained_io(str(self.cache), record.size_bytes):
                    copy_files(content, str(arriving), source_filesystem=filesystem)
                if describe(record.type, arriving)[0] != record.digest:
                    shutil.rmtree(arriving)
                    raise EaglerayError("an artifact's files are not those of its record", where=content)
                arriving.rename(path)
        if not path.is_dir():
            raise EaglerayError(
                f"the content of {record.stage!r} is gone, though its record is there",
                f"remove the record records/{record.fingerprint}.json, and run again",
                content,
            )
        kind: type[Artifact] = getattr(artifacts, record.type)
        return kind(path, record.digest, record.fingerprint, record.facts)

    def _whole(self, record: Record) -> bool:
        """Whether all files of a content folder arrived; on object storage an upload may stop halfway."""
        filesystem, root = self._filesystem()
        paths = [f"{root}/content/{record.digest}/{entry.path}" for entry in record.files]
        sizes = [info.size for info in filesystem.get_file_info(paths)]
        return sizes == [entry.size_bytes for entry in record.files]

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
            from pyarrow.fs import FileSystem, LocalFileSystem

            try:
                if "://" in self.uri:
                    filesystem, root = FileSystem.from_uri(self.uri)
                else:
                    filesystem, root = LocalFileSystem(), str(Path(self.uri).absolute())
            except (ValueError, OSError) as error:
                raise EaglerayError(
                    f"no artifact store can be opened there: {error}",
                    "give a folder, or a URI such as s3://BUCKET/PREFIX",
                    self.uri,
                ) from None
            with explained_io(self.uri):
                filesystem.create_dir(f"{root}/content", recursive=True)
                filesystem.create_dir(f"{root}/records", recursive=True)
            self._opened = filesystem, root.rstrip("/")
        return self._opened


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
        facts=json.loads(json.dumps(facts)),
        created_s=time.time(),
    )


@contextmanager
def explained_io(where: str, needed_bytes: int = 0) -> Generator[None]:
    """Turn a full disk or a denied write into an error that says so."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            needed = f" ({needed_bytes / 2**20:.0f} MiB were to be written)" if needed_bytes else ""
            raise EaglerayError(
                f"the disk is full{needed}", "free some space, then `eagleray resume last`", where
            ) from error
        if isinstance(error, PermissionError) or error.errno == errno.EROFS:
            raise EaglerayError(
                f"can't write there: {error.strerror or error}",
                "choose another folder, or get the right",
                where,
            ) from error
        raise
