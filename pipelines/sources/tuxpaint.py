"""Tux Paint's stamps: pictures with captions in many languages and spoken descriptions (GPL-2).

Debian's package `tuxpaint-stamps-default` is fetched with `apt-get download` and unpacked with
`dpkg-deb -x`; neither needs root.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ...workflows.errors import EaglerayError
from ..quarantine import Refusal
from ..source import Listing, Log, Source, SourceSpec, verify

if TYPE_CHECKING:
    import pyarrow as pa

PACKAGE = "tuxpaint-stamps-default"
VERSION = "2022.06.04-1"
STAMPS = Path("usr/share/tuxpaint/stamps")
DIGEST = "2677de2e3c5dc79908680df3535896c65be5b2b124028f7a3cf805f14d5083b3"
DEB_DIGEST = "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34"
# Where apt knows no such package (another distribution), Debian's archive is asked. The signature is
# not checked then, so the .deb itself must have the pinned digest before it is unpacked.
DEBIAN = "deb [trusted=yes] http://deb.debian.org/debian bookworm main"
TAKE_A_COPY = "unpack a copy of the package elsewhere and name it with --set STAGE.source.path=FOLDER"

_CAPTION = re.compile(r"(?P<language>[^.=\s]+)\.utf8=(?P<text>.*)")
_SPEECH = re.compile(r"(?P<stem>.+)_desc(?:_(?P<language>[A-Za-z_@]+))?\.(?:ogg|wav)", re.IGNORECASE)
_PICTURES = (".png", ".svg")


class TuxpaintSpec(SourceSpec):
    """Tux Paint's stamps: 1,033 pictures in 16 categories with captions and speech in many languages."""

    kind: Literal["tuxpaint"] = "tuxpaint"
    digest: str = Field(default=DIGEST, pattern=r"^[0-9a-f]{64}$")
    """sha256 of the files in the stamps folder, as `tree_digest` computes it."""


def fetch(spec: TuxpaintSpec, cache: Path, log: Log) -> Path:
    """The stamps folder: the copy named by `path`, the one in `cache`, or a fresh download.

    Raises:
        EaglerayError: when it can't be fetched, or is not the pinned content.
    """
    if spec.path is not None:
        return _given(spec.path, spec.digest)
    kept = cache / f"{spec.kind}-{spec.digest[:16]}"
    if (kept / STAMPS).is_dir():  # it was verified before it got this name
        return kept / STAMPS
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{spec.kind}-", dir=cache) as work:
        package = _download(Path(work), log)
        log(f"unpacking {package.name}")
        unpacked = Path(work, "unpacked")
        _command(["dpkg-deb", "-x", str(package), str(unpacked)], Path(work), f"is there room in {cache}?")
        verify(unpacked / STAMPS, spec.digest)
        try:
            unpacked.rename(kept)
        except OSError:
            if not (kept / STAMPS).is_dir():  # else another run was faster
                raise
    return kept / STAMPS


def list_records(folder: Path) -> Listing:
    """List pictures with their captions and recordings.

    A picture `x.png` or `x.svg` goes with the captions `x.txt` (the first line is English, the others
    `language.utf8=caption`) and the recordings `x_desc_LANGUAGE.ogg` or `.wav`. Mirror images are left out.
    """
    import pyarrow as pa

    from ..contracts import RECORDS

    refusals: list[Refusal] = []
    rows: list[dict[str, object]] = []
    for relative, names in _folders(folder):
        speech = _recordings(relative, names)
        for name in names:
            stem, extension = os.path.splitext(name)
            if extension.lower() not in _PICTURES or stem.endswith("_mirror"):
                continue
            record = f"{relative}/{name}" if relative else name
            captions = _captions(folder, record, refusals)
            rows.append(
                {
                    "id": record,
                    "picture": record,
                    "category": relative.partition("/")[0] or "none",
                    "captions": sorted(captions.items()),
                    "speech": sorted(speech.get(stem, {}).items()),
                }
            )
    rows.sort(key=lambda row: str(row["id"]))
    records: pa.Table = pa.Table.from_pylist(rows, schema=RECORDS)
    return Listing(records, tuple(sorted(refusals)))


def content_digest(spec: TuxpaintSpec) -> str:
    """The pinned digest; what is fetched must have it."""
    return spec.digest


SOURCE = Source(
    spec=TuxpaintSpec,
    summary="captioned, spoken-about pictures of Tux Paint, in many languages",
    licence="GPL-2; single files CC BY, CC BY-SA, GFDL or public domain (see docs/corpora.md)",
    origin=f"Debian package {PACKAGE} {VERSION}",
    size_bytes=161_000_000,
    modalities=("image", "text", "speech"),
    fetch=fetch,
    content_digest=content_digest,
    list_records=list_records,
)


def parse_captions(content: bytes) -> dict[str, str]:
    """Language → caption of a stamp's text file; `en` is its first line.

    Raises:
        UnicodeDecodeError: when it is not UTF-8.
    """
    first, *others = content.decode("utf-8-sig").splitlines() or [""]
    captions = {"en": first.strip()}
    for line in others:
        match = _CAPTION.fullmatch(line)
        if match:
            captions[match["language"]] = match["text"].strip()
    return {language: text for language, text in captions.items() if text}


def _given(path: Path, digest: str) -> Path:
    """The stamps in a folder that the user named: the folder itself, or below it as in the package."""
    folder = path / STAMPS if (path / STAMPS).is_dir() else path
    if not folder.is_dir():
        raise EaglerayError(f"there is no folder {path}", "name an unpacked copy", "source.path")
    verify(folder, digest)
    return folder


def _folders(folder: Path) -> Iterator[tuple[str, list[str]]]:
    for parent, _, names in os.walk(folder):
        relative = os.path.relpath(parent, folder)
        yield "" if relative == "." else relative, sorted(names)


def _recordings(relative: str, names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Stem → language → path, for the recordings of one folder."""
    found: dict[str, dict[str, str]] = {}
    for name in names:
        match = _SPEECH.fullmatch(name)
        if match:
            path = f"{relative}/{name}" if relative else name
            found.setdefault(match["stem"], {}).setdefault(match["language"] or "en", path)
    return found


def _captions(folder: Path, record: str, refusals: list[Refusal]) -> dict[str, str]:
    path = os.path.splitext(record)[0] + ".txt"

    def refuse(reason: str, message: str, size_bytes: int) -> dict[str, str]:
        refusals.append(Refusal(record, path, "caption", reason, message, size_bytes))
        return {}

    try:
        content = (folder / path).read_bytes()
    except FileNotFoundError:
        return refuse("missing-caption", "there is no such file", -1)
    except OSError as error:
        return refuse("unreadable-file", f"the file can't be read: {error.strerror}", -1)
    try:
        captions = parse_captions(content)
    except UnicodeDecodeError as error:
        found = f"byte 0x{content[error.start]:02x} at {error.start}"
        return refuse("caption-not-utf8", f"the captions are not UTF-8: {found}", len(content))
    if "en" not in captions:
        return refuse("missing-caption", "the first line, the English caption, is empty", len(content))
    return captions


def _download(work: Path, log: Log) -> Path:
    """Download the package into `work`: with apt's own lists, else with lists of our own."""
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise EaglerayError(f"this system has no {program}, so {PACKAGE} can't be fetched", TAKE_A_COPY)
    state = work / "apt"
    for folder in ("state/lists/partial", "cache/archives/partial"):
        (state / folder).mkdir(parents=True)
    (state / "status").touch()
    (state / "debian.list").write_text(f"{DEBIAN}\n")
    own_lists = [
        *("-o", f"Dir::State={state / 'state'}", "-o", f"Dir::Cache={state / 'cache'}"),
        *("-o", f"Dir::State::status={state / 'status'}"),
    ]
    debian = [
        *own_lists,
        "-o",
        f"Dir::Etc::SourceList={state / 'debian.list'}",
        "-o",
        "Dir::Etc::SourceParts=-",
    ]
    attempts: list[tuple[str, list[str]]] = [
        ("with the system's package lists", []),
        ("with package lists of our own", own_lists),
        ("from deb.debian.org", debian),
    ]
    failures: list[str] = []
    for how, options in attempts:
        log(f"downloading {PACKAGE} {VERSION} {how}")
        try:
            if options:
                _command(["apt-get", *options, "update"], work)
            _command(["apt-get", *options, "download", f"{PACKAGE}={VERSION}"], work)
            (package,) = work.glob("*.deb")
            if options is debian:
                _verify_package(package)
            return package
        except EaglerayError as error:
            failures.append(error.cause)
    raise EaglerayError(f"{PACKAGE} {VERSION} can't be downloaded: {'; '.join(failures)}", TAKE_A_COPY)


def _verify_package(package: Path) -> None:
    with package.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != DEB_DIGEST:
        package.unlink()
        raise EaglerayError(f"{package.name} has the digest {found}, expected {DEB_DIGEST}")


def _command(command: Sequence[str], folder: Path, remedy: str = "") -> None:
    """Run a program.

    Raises:
        EaglerayError: when it fails, with the last line it said.
    """
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}
    )
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines() or [f"exit status {done.returncode}"]
        raise EaglerayError(f"{' '.join(command[:1])}: {said[-1]}", remedy)
