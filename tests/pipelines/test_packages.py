"""Pinned packages from registries that the test serves: verified, unpacked inside, and no code is run."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import shutil
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from eagleray.pipelines.packages import Package, fetch_package
from eagleray.workflows.errors import EaglerayError

needs_npm = pytest.mark.skipif(shutil.which("npm") is None, reason="npm isn't installed")


def tar(members: dict[str, bytes | tarfile.TarInfo]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def wheel(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def link(name: str, target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


class Registry:
    """PyPI's and npm's simplest pages, over HTTP."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url = folder, url

    def pip(self, name: str, file: str, content: bytes, digest: bool = True) -> Package:
        page = self.folder / "simple" / name
        page.mkdir(parents=True, exist_ok=True)
        (self.folder / file).write_bytes(content)
        sha256 = hashlib.sha256(content).hexdigest()
        fragment = f"#sha256={sha256}" if digest else ""
        with (page / "index.html").open("a") as html:
            html.write(f'<a href="../../{file}{fragment}">{file}</a>\n')
        version = file.removesuffix(".tar.gz").split("-")[1]
        return Package(manager="pip", name=name, version=version, sha256=sha256)

    def npm(self, name: str, content: bytes) -> Package:
        (self.folder / f"{name}.tgz").write_bytes(content)
        integrity = "sha512-" + base64.b64encode(hashlib.sha512(content).digest()).decode()
        dist = {"tarball": f"{self.url}/{name}.tgz", "integrity": integrity}
        versions = {"1.0.0": {"name": name, "version": "1.0.0", "dist": dist}}
        described = {"name": name, "dist-tags": {"latest": "1.0.0"}, "versions": versions}
        (self.folder / name).write_text(json.dumps(described))
        return Package(manager="npm", name=name, version="1.0.0", sha256=hashlib.sha256(content).hexdigest())


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    folder = tmp_path / "registry"
    folder.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def __init__(self, *args, **kwargs) -> None:
            super().__init__(*args, directory=str(folder), **kwargs)

        def log_message(self, *args) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_INDEX_URL", f"{url}/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("npm_config_registry", url)
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "npm"))
    yield Registry(folder, url)
    server.shutdown()
    thread.join()
    server.server_close()


def fetch(package: Package, tmp_path: Path) -> Path:
    return fetch_package(package, tmp_path / "cache", lambda message: None)


def test_a_wheel_is_unpacked_once(registry, tmp_path):
    package = registry.pip("some-data", "some_data-1.0-py3-none-any.whl", wheel({"some/a.txt": b"hello"}))
    package = package.model_copy(update={"inside": "some"})
    folder = fetch(package, tmp_path)
    assert (folder / "a.txt").read_bytes() == b"hello"
    shutil.rmtree(registry.folder)  # the second time nothing is asked of the registry
    assert fetch(package, tmp_path) == folder


def test_the_pinned_file_of_a_version_is_the_one_taken(registry, tmp_path):
    registry.pip("data", "data-1.0.tar.gz", tar({"data-1.0/a": b"sdist"}))
    package = registry.pip("data", "data-1.0-py3-none-any.whl", wheel({"a": b"wheel"}))
    registry.pip("data", "data-1.0.1-py3-none-any.whl", wheel({"a": b"newer"}))
    assert (fetch(package, tmp_path) / "a").read_bytes() == b"wheel"


def test_an_index_without_digests_will_do(registry, tmp_path):
    package = registry.pip("data", "data-1.0.tar.gz", tar({"data-1.0/a": b"x"}), digest=False)
    assert (fetch(package, tmp_path) / "data-1.0/a").read_bytes() == b"x"


def test_no_setup_code_of_an_sdist_is_run(registry, tmp_path):
    proof = tmp_path / "it ran"
    setup = f"open({str(proof)!r}, 'w').close()\nimport setuptools\nsetuptools.setup(name='data')\n"
    members = {"data-1.0/setup.py": setup.encode(), "data-1.0/a": b"x", "data-1.0/PKG-INFO": b"Name: data\n"}
    folder = fetch(registry.pip("data", "data-1.0.tar.gz", tar(members)), tmp_path)
    assert (folder / "data-1.0/a").is_file()
    assert not proof.exists()


def test_what_has_another_digest_is_refused_with_it(registry, tmp_path):
    package = registry.pip("data", "data-1.0.tar.gz", tar({"data-1.0/a": b"x"}))
    with pytest.raises(EaglerayError, match=f"has the digest {package.sha256}") as caught:
        fetch(package.model_copy(update={"sha256": "0" * 64}), tmp_path)
    assert package.sha256 in caught.value.remedy
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("changed", [{"version": "9.9"}, {"name": "nothing"}])
def test_what_the_index_lacks_is_one_clear_error(registry, tmp_path, changed):
    package = registry.pip("data", "data-1.0.tar.gz", tar({"data-1.0/a": b"x"}))
    with pytest.raises(EaglerayError, match="can't be downloaded") as caught:
        fetch(package.model_copy(update=changed), tmp_path)
    assert "\n" not in caught.value.cause
    assert caught.value.remedy


@pytest.mark.parametrize(
    "members",
    [
        {"../../escaped": b"x"},
        {"in": link("in", "../../.."), "in/escaped": b"x"},
    ],
)
def test_nothing_of_a_tar_leaves_its_folder(registry, tmp_path, members):
    package = registry.pip("data", "data-1.0.tar.gz", tar(members))
    with pytest.raises(EaglerayError, match="can't be unpacked"):
        fetch(package, tmp_path)
    assert list(tmp_path.rglob("*escaped*")) == []


def test_nothing_of_a_wheel_leaves_its_folder(registry, tmp_path):
    package = registry.pip("data", "data-1.0-py3-none-any.whl", wheel({"../../escaped": b"x", "a": b"y"}))
    folder = fetch(package, tmp_path)
    assert (folder / "a").is_file()
    assert [path for path in tmp_path.rglob("escaped") if folder not in path.parents] == []


def test_a_folder_that_the_package_lacks_is_named(registry, tmp_path):
    package = registry.pip("data", "data-1.0.tar.gz", tar({"data-1.0/a": b"x"}))
    with pytest.raises(EaglerayError, match="has no folder data-2"):
        fetch(package.model_copy(update={"inside": "data-2"}), tmp_path)


def test_of_runs_at_once_all_get_the_same_whole_folder(registry, tmp_path):
    members = {f"data-1.0/{i}": bytes(1000) for i in range(300)}
    package = registry.pip("data", "data-1.0.tar.gz", tar(members))
    with ThreadPoolExecutor(6) as pool:
        folders = list(pool.map(lambda _: fetch(package, tmp_path), range(6)))
    assert len(set(folders)) == 1
    assert len(list((folders[0] / "data-1.0").iterdir())) == 300
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [folders[0].name]


def test_what_a_killed_run_left_half_done_is_not_taken(registry, tmp_path):
    package = registry.pip("data", "data-1.0.tar.gz", tar({"data-1.0/a": b"whole"}))
    half = tmp_path / "cache" / f".pip-data-{package.sha256[:16]}-x1" / "unpacked" / "data-1.0"
    half.mkdir(parents=True)
    (half / "a").write_bytes(b"ha")
    assert (fetch(package, tmp_path) / "data-1.0/a").read_bytes() == b"whole"


@needs_npm
def test_an_npm_package_is_fetched_by_npm(registry, tmp_path):
    described = json.dumps({"name": "data", "version": "1.0.0"}).encode()
    content = tar({"package/package.json": described, "package/a.txt": b"hello"})
    package = registry.npm("data", content).model_copy(update={"inside": "package"})
    assert (fetch(package, tmp_path) / "a.txt").read_bytes() == b"hello"


@needs_npm
def test_an_npm_package_that_is_not_there_is_one_clear_error(registry, tmp_path):
    package = Package(manager="npm", name="nothing", version="1.0.0", sha256="0" * 64)
    with pytest.raises(EaglerayError, match="npm"):
        fetch(package, tmp_path)
