"""What is installed is what is needed: a device has the base and an extra, and nothing it runs wants more."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from packaging.requirements import Requirement

import eagleray
from eagleray.commands.extras import EXTRAS

from .edge.edge_bundles import board, png, write_bundle

PROJECT = tomllib.loads((Path(eagleray.__file__).parent / "pyproject.toml").read_text())["project"]
LARGE = {"torch", "ray", "pyarrow", "scipy", "sqlalchemy", "tokenizers", "onnx", "transformers"}
RUN = """
import json, sys
allowed, words = json.loads(sys.argv[1]), sys.argv[2:]

class Bare:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        builtin = top in sys.stdlib_module_names or top.startswith("_sysconfigdata")
        if top not in allowed and not builtin:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Bare())
sys.argv = ["eagleray", *words]
from eagleray.cli import main
try:
    main()
finally:
    print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})), file=sys.stderr)
"""


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def required(*extras: str) -> list[Requirement]:
    listed = list(PROJECT["dependencies"])
    for extra in extras:
        listed += PROJECT["optional-dependencies"][extra]
    return [Requirement(one) for one in listed]


def closure(requirements: list[Requirement]) -> set[str]:
    """Names of distributions that are installed with them."""
    found: set[str] = set()
    left = [(one.name, extra) for one in requirements for extra in ("", *one.extras)]
    while left:
        name, extra = left.pop()
        if normal(name) in found and not extra:
            continue
        found.add(normal(name))
        for text in importlib.metadata.requires(name) or []:
            one = Requirement(text)
            if one.marker is None or one.marker.evaluate({"extra": extra}):
                left += [(one.name, inner) for inner in ("", *one.extras)]
    return found


def modules(distributions: set[str]) -> set[str]:
    told = importlib.metadata.packages_distributions()
    return {module for module, of in told.items() if distributions & {normal(name) for name in of}}


def bare(*words: object, extras: tuple[str, ...] = ("edge",)) -> subprocess.CompletedProcess[str]:
    """Run a command where nothing can be imported but the base and these extras."""
    allowed = sorted({"eagleray", *modules(closure(required(*extras)))})
    command = [sys.executable, "-c", RUN, json.dumps(allowed), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def loaded(done: subprocess.CompletedProcess[str]) -> set[str]:
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr.splitlines()[-1]))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("extras") / "bundle")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "a.png").write_bytes(png(board()))
    (folder / "b.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg' width='40mm' height='40mm'/>")
    return folder


def test_the_base_assesses_pictures(bundle, pictures):
    done = bare("assess", bundle, pictures / "a.png", extras=())
    assert not loaded(done) & LARGE
    assert len(json.loads(done.stdout)["findings"]) == 2


def test_a_device_does_all_it_does_with_its_extra(bundle, pictures, tmp_path):
    device = ("--device", tmp_path / "device")
    key, trust = tmp_path / "line.key", ("--trust", tmp_path / "line.pub")
    for words in (
        ("edge", "--help"),
        ("edge", "keys", tmp_path / "line"),
        ("edge", "sign", bundle, "--key", key),
        ("edge", "update", bundle, *device, *trust),
        ("edge", "run", "--source", pictures, "--limit", 2, *device, *trust),
    ):
        done = bare(*words)
        assert not loaded(done) & LARGE
    told = {one["picture"]: one for one in map(json.loads, done.stdout.splitlines())}
    assert len(told["a.png"]["findings"]) == 2
    assert told["b.svg"]["reason"] != "failed"


def test_a_camera_needs_its_extra(bundle, tmp_path):
    video = tmp_path / "video.mkv"
    with av.open(video, "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 48, "bgr0"
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(board()), format="rgb24")))
        container.mux(stream.encode(None))
    words = ("edge", "run", bundle, "--source", video, "--device", tmp_path / "device")
    done = bare(*words, extras=("edge", "camera"))
    assert not loaded(done) & LARGE
    assert len(json.loads(done.stdout.splitlines()[0])["findings"]) == 2
    refused = bare(*words)
    assert refused.returncode == 1
    assert "pip install 'eagleray[camera]'" in refused.stderr


@pytest.mark.parametrize(
    ("words", "extra"),
    [(("edge", "keys", "x"), "edge"), (("runs",), "platform"), (("corpora", "inspect"), "platform")],
)
def test_what_is_not_installed_is_told_with_how_to_get_it(words, extra, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = bare(*words, extras=())
    assert done.returncode == 1
    assert f"pip install 'eagleray[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_modules_are_told_with_the_extra_that_names_their_distribution():
    told = importlib.metadata.packages_distributions()
    before: set[str] = {normal(one.name) for one in required()}
    for extra, tops in EXTRAS.items():
        named = {normal(one.name) for one in required(extra)} - {"eagleray"} - before
        before |= named
        of = {top: {normal(name) for name in told[top]} & named for top in tops}
        assert all(of.values()), (extra, of)
        assert named == set().union(*of.values()), (extra, named - set().union(*of.values()))


def test_the_platform_has_every_other_extra_of_its_own():
    (inner,) = [one for one in required("platform") if one.name == "eagleray"]
    assert inner.extras == set(EXTRAS) - {"platform"}


def imports_of(path: Path) -> Iterator[str]:
    for line in path.read_text().splitlines():
        match = re.match(r"\s*(?:from|import) ([a-zA-Z_]\w*)", line)
        if match:
            yield match[1]


def test_what_the_edge_imports_is_named_by_what_it_requires():
    root = Path(eagleray.__file__).parent
    named = modules({normal(one.name) for one in required("edge", "camera")})
    files = [*(root / "edge").glob("*.py"), root / "cli.py", root / "commands" / "edge.py"]
    for path in files:
        others = {top for top in imports_of(path) if top not in sys.stdlib_module_names} - {"eagleray"}
        assert others <= named, path
