"""What the workflow tests share: a home, a store, a Postgres server, and small stage kinds."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from workflow_harness import Home

from eagleray.workflows.store import ArtifactStore


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.at(tmp_path / "home")


@pytest.fixture(params=["folder", "file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    """A store in a folder, at a file:// URI, and on an S3-compatible server."""
    place = tmp_path / "a store"
    if request.param == "s3":
        uri = request.getfixturevalue("s3_uri")()
    else:
        uri = str(place) if request.param == "folder" else place.as_uri()
    return ArtifactStore(uri, tmp_path / "cache")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Callable[[], str]]:
    """Gives URLs of fresh databases of a Postgres server, which listens on a socket in a folder only."""
    psycopg = pytest.importorskip("psycopg")
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    found = shutil.which("initdb") or (str(installed[-1]) if installed else None)
    if found is None:
        pytest.skip("there is no Postgres server here (initdb)")
    binaries = Path(found).resolve().parent
    user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.getuid() == 0 else []
    if user and shutil.which(user[0]) is None:
        pytest.skip("Postgres doesn't run as root, and there is no setpriv to run it as another")
    folder = Path(tempfile.mkdtemp(prefix="eagleray-pg-", dir="/tmp"))  # a socket's path must be short
    if user:
        os.chown(folder, 65534, 65534)
    data = folder / "data"
    initdb = [*user, binaries / "initdb", "-D", data, "-U", "me", "-A", "trust", "--no-sync", "-E", "UTF8"]
    subprocess.run(initdb, check=True, capture_output=True, cwd=folder)
    options = ["-c", "listen_addresses=", "-c", "fsync=off"]
    command = [*user, binaries / "postgres", "-D", data, "-k", folder, *options]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    try:
        admin = f"host={folder} user=me dbname=postgres"
        for _ in range(300):
            try:
                connection = psycopg.connect(admin, autocommit=True)
                break
            except psycopg.OperationalError:
                assert server.poll() is None, (folder / "log").read_text()
                time.sleep(0.1)
        else:
            pytest.fail((folder / "log").read_text())

        def create() -> str:
            name = f"runs_{uuid.uuid4().hex}"
            connection.execute(f"CREATE DATABASE {name}")
            return f"postgresql+psycopg://me:pw@/{name}?host={folder}"

        yield create
        connection.close()
    finally:
        server.send_signal(signal.SIGINT)  # a fast shutdown, which waits for no client
        server.wait(30)
        shutil.rmtree(folder, ignore_errors=True)
