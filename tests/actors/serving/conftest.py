"""A bundle that a real Ray Serve serves, for all tests of its interfaces; and one that knows its inputs."""

from __future__ import annotations

import io
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import numpy as np
import pytest
import soundfile
import soxr
from PIL import Image

from eagleray.actors.serving.spec import ModerationSpec, PairRule, ServingOptions, TextPolicy, Thresholds
from eagleray.pipelines.bundle import STATISTICS, LoadedBundle, read_info, seal_bundle
from eagleray.pipelines.statistics import Measure, Statistics, describe

if TYPE_CHECKING:
    from eagleray.actors.serving.running import Deployed

NAME, GUARDED = "frogs", "guarded"
NUM_KNOWN = 300
ENGLISH = ("the", "frog", "behind", "house", "sings", "with", "drum", "under", "this", "yellow", "star")
SPANISH = ("la", "rana", "detrás", "casa", "canta", "con", "tambor", "bajo", "esta", "amarilla", "estrella")


class Inputs:
    """What people might send: pictures, texts and recordings, each set drawn by its own seed."""

    @staticmethod
    def pictures(seed: int, count: int, light: float = 1.0) -> list[bytes]:
        """PNG of coloured squares, some darker than others."""
        found: list[bytes] = []
        random = np.random.default_rng(seed)
        for _ in range(count):
            squares = random.integers(0, 256, (6, 6, 3)) * random.uniform(0.5, 1) * light
            buffer = io.BytesIO()
            picture = Image.fromarray(squares.astype(np.uint8))
            picture.resize((36, 36), Image.Resampling.NEAREST).save(buffer, "PNG")
            found.append(buffer.getvalue())
        return found

    @staticmethod
    def texts(seed: int, count: int, words: Sequence[str] = ENGLISH) -> list[str]:
        """Four to eight words."""
        random = np.random.default_rng(seed)
        return [" ".join(random.choice(words, random.integers(4, 9))) for _ in range(count)]

    @staticmethod
    def recordings(seed: int, count: int, slower: float = 1.0) -> list[bytes]:
        """WAV of a voice's like: noise that comes and goes some times a second."""
        found: list[bytes] = []
        random = np.random.default_rng(seed)
        for _ in range(count):
            time = np.arange(int(16_000 * random.uniform(0.2, 0.35))) / 16_000
            syllables = 0.5 + 0.5 * np.sin(2 * np.pi * random.uniform(12, 18) * time)
            wave = syllables * np.sin(2 * np.pi * random.uniform(200, 600) * time)
            wave = wave + 0.05 * random.standard_normal(len(time))
            if slower != 1.0:
                wave = soxr.resample(wave, 16_000, 16_000 * slower)
            buffer = io.BytesIO()
            soundfile.write(buffer, 0.5 * wave, 16_000, format="WAV")
            found.append(buffer.getvalue())
        return found


@contextmanager
def served_by_command(
    bundle: Path, home: Path, log: Path, options: Sequence[str], seconds: float
) -> Iterator[None]:
    """What `eagleray serve` serves in a process of its own, which answers within some seconds."""
    eagleray = [sys.executable, "-m", "eagleray.cli"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with log.open("w") as output:
        process = subprocess.Popen(
            [*eagleray, "serve", str(bundle), "--home", str(home), *options],
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + seconds
        while "Ctrl-C ends it" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield
    finally:
        process.terminate()
        try:
            assert process.wait(60) == 0, log.read_text()
            assert not (home / "cluster.json").exists()  # it took the cluster with it
        finally:
            process.kill()
            down = [*eagleray, "down", "--home", str(home)]
            subprocess.run(down, env=environment, check=True, capture_output=True, timeout=120)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let tests of the shared application come first here: others start Serve anew, and it is gone."""
    folder = Path(__file__).parent
    places = [place for place, item in enumerate(items) if item.path.is_relative_to(folder)]
    ordered = sorted(
        (items[place] for place in places),
        key=lambda item: "served_frogs" not in getattr(item, "fixturenames", ()),
    )
    for place, item in zip(places, ordered, strict=True):
        items[place] = item


@pytest.fixture(scope="session")
def inputs() -> Inputs:
    """Makes them."""
    return Inputs()


@pytest.fixture(scope="session")
def statistics(loaded_bundle: LoadedBundle) -> Statistics:
    """What the inputs of seed 0 are like."""
    info = loaded_bundle.info
    rows = {
        "image": [loaded_bundle.prepare_image(one) for one in Inputs.pictures(0, NUM_KNOWN)],
        "text": [loaded_bundle.prepare_text(one) for one in Inputs.texts(0, NUM_KNOWN)],
        "speech": [loaded_bundle.prepare_speech(one) for one in Inputs.recordings(0, NUM_KNOWN)],
    }
    vectors = {name: loaded_bundle.embed(name, found) for name, found in rows.items()}
    means = {name: found.mean(axis=0).tolist() for name, found in vectors.items()}
    ids = np.concatenate([row["tokens"][row["token_mask"]] for row in rows["text"]])
    tokens = np.bincount(ids, minlength=loaded_bundle.tokenizer.get_vocab_size()).tolist()
    measure = Measure(info.preparation, loaded_bundle.tokenizer, tokens, means, counted=True)
    quantities = {
        name: describe(measure(name, row, vectors[name][i]) for i, row in enumerate(found))
        for name, found in rows.items()
    }
    return Statistics(tokens=tuple(tokens), means=means, quantities=quantities)


@pytest.fixture(scope="session")
def described_folder(
    bundle_folder: Path, statistics: Statistics, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The bundle, with these statistics in it."""
    folder = tmp_path_factory.mktemp("described") / "bundle"
    shutil.copytree(bundle_folder, folder)
    info = read_info(folder)
    (folder / "bundle.json").unlink()
    (folder / STATISTICS).write_text(statistics.model_dump_json())
    kept = {name: getattr(info, name) for name in type(info).model_fields if name != "files"}
    seal_bundle(folder, **kept)
    return folder


@pytest.fixture(scope="session")
def served_frogs(ray_cluster: None, bundle_folder: Path) -> Iterator[Deployed]:
    """An application, gone once another module starts Serve anew."""
    from ray import serve

    from eagleray.actors.serving import running

    with socket.socket() as probe, socket.socket() as other:
        probe.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        port, grpc_port = int(probe.getsockname()[1]), int(other.getsockname()[1])
    yield running.deploy(
        bundle_folder,
        ServingOptions(application=NAME, port=port, grpc_port=grpc_port, max_batch_size=4),
    )
    serve.shutdown()


@pytest.fixture(scope="session")
def frogs(served_frogs: Deployed) -> str:
    """Its URL."""
    return served_frogs.url


@pytest.fixture
def http(frogs: str) -> Iterator[httpx.Client]:
    """A client of it."""
    with httpx.Client(base_url=frogs, trust_env=False, timeout=30) as client:
        yield client


@pytest.fixture(scope="session")
def other_address() -> str:
    """An address of this machine that others may reach it by."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing; tells which address that would go from
        except OSError:
            pytest.skip("this machine has no network")
        address = str(probe.getsockname()[0])
    if address.startswith("127."):
        pytest.skip("this machine has no network")
    return address


@pytest.fixture(scope="session")
def guarded(frogs: str, bundle_folder: Path) -> str:
    """The URL of the same bundle, moderated: any picture that is asked to be hurt is blocked."""
    from eagleray.actors.serving import running

    options = ServingOptions(
        application=GUARDED,
        port=int(frogs.rpartition(":")[2]),
        route_prefix=f"/{GUARDED}",
        max_batch_size=4,
        moderation=ModerationSpec(
            # a model that was never trained transcribes and answers anything
            speech=TextPolicy(offensive=Thresholds()),
            output=TextPolicy(offensive=Thresholds(flag=0.001), profane=Thresholds()),
            pairs=(PairRule(name="cruelty", picture="(living|things)", words=r"\bhurt it\b"),),
        ),
    )
    return running.deploy(bundle_folder, options).url
