"""A bundle takes another's place while requests come, after a trial if that is asked for, and goes back."""

import json
import shutil
import threading
import time

import httpx
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from eagleray.actors.serving.guard import BUNDLE_HEADER
from eagleray.actors.serving.promoting import LEAST_GOLDEN
from eagleray.actors.serving.spec import PromotionSpec, ServingOptions
from eagleray.pipelines.bundle import bundle_digest, load_bundle, read_info, seal_bundle
from eagleray.workflows.errors import EaglerayError

pytestmark = pytest.mark.usefixtures("ray_cluster")

TURNS = 20


def variant(bundle_folder, folder, run_id, change=lambda folder: None):
    """The same bundle of another run, and perhaps changed."""
    shutil.copytree(bundle_folder, folder)
    info = read_info(folder)
    (folder / "bundle.json").unlink()
    change(folder)
    fields = {name: getattr(info, name) for name in type(info).model_fields if name != "files"}
    seal_bundle(folder, **fields | {"lineage": info.lineage.model_copy(update={"run_id": run_id})})
    return folder


def shuffle_captions(folder):
    table = pq.read_table(folder / "index.parquet")
    captions = table["caption"].to_pylist()
    table = table.set_column(1, table.schema.field("caption"), [captions[1:] + captions[:1]])
    pq.write_table(table, folder / "index.parquet")


@pytest.fixture(scope="module")
def options(free_port):
    return ServingOptions(application="releases", port=free_port, max_batch_size=4, cpus_per_replica=0.5)


@pytest.fixture(scope="module")
def bundles(bundle_folder, tmp_path_factory):
    """As good as the first, and one that finds the wrong pictures."""
    folder = tmp_path_factory.mktemp("bundles")
    return variant(bundle_folder, folder / "good", "good"), variant(
        bundle_folder, folder / "bad", "bad", shuffle_captions
    )


@pytest.fixture(scope="module")
def serving(ray_cluster):
    from ray import serve

    serve.shutdown()  # what other modules have served
    yield
    serve.shutdown()


@pytest.fixture
def deployed(serving, bundle_folder, options):
    from eagleray.actors.serving import running

    return running.deploy(bundle_folder, options)


@pytest.fixture
def promotion(bundle_folder, tmp_path):
    """A trial by captions that the first bundle finds."""
    bundle = load_bundle(bundle_folder)
    lines = []
    for caption in dict.fromkeys(one for one in bundle.captions if one):
        hit = bundle.search(bundle.embed("text", [bundle.prepare_text(caption)])[0], 1)[0]
        lines.append({"path": "/v1/search", "body": {"text": caption, "top_k": 1}, "expect": hit.caption})
    path = tmp_path / "golden.jsonl"
    path.write_text("\n".join(json.dumps(one) for one in lines * (1 + 5 * LEAST_GOLDEN // len(lines))))
    return PromotionSpec(golden=str(path), margin=0.1, slower=4, watch_s=1, share=1)


class Load:
    """Asks all the time, in some threads, and keeps what came."""

    def __init__(self, url, threads=3):
        self._url, self.found, self._ends = url, [], threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]

    def _run(self):
        with httpx.Client(base_url=self._url, trust_env=False, timeout=30) as client:
            while not self._ends.is_set():
                try:
                    response = client.post("/v1/search", json={"text": "A frog."})
                    self.found.append((response.status_code, response.headers.get(BUNDLE_HEADER)))
                except httpx.HTTPError as error:
                    self.found.append((0, repr(error)))
                time.sleep(0.02)

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error):
        self._ends.set()
        for thread in self._threads:
            thread.join()


def test_during_twenty_promotions_and_rollbacks_no_request_fails(deployed, bundle_folder, bundles, options):
    from eagleray.actors.serving import running

    good, _ = bundles
    with Load(deployed.url) as load:
        for i in range(TURNS):
            if i % 2:
                assert running.roll_back(options.application).bundle == deployed.bundle
            else:
                assert running.deploy(good, options).bundle == bundle_digest(good)
    assert {status for status, _ in load.found} == {200}
    assert {bundle for _, bundle in load.found} == {deployed.bundle, bundle_digest(good)}
    assert len(load.found) > 100


def test_a_trial_promotes_what_is_as_good_and_not_what_is_worse(deployed, bundles, options, promotion):
    from eagleray.actors.serving import running

    good, bad = bundles
    tried = options.model_copy(update={"promotion": promotion})
    lines = []
    with Load(deployed.url, 1) as load:
        with pytest.raises(EaglerayError, match=r"was not promoted: it may answer over 10.0% fewer"):
            running.deploy(bad, tried, log=lines.append)
        state = running.state_of(options.application)
        assert (state.serves, state.releases.candidate) == (deployed.bundle, None)
        promoted = running.deploy(good, tried, log=lines.append)
    assert promoted.bundle == bundle_digest(good)
    assert {status for status, _ in load.found} == {200}
    assert {bundle for _, bundle in load.found} == {deployed.bundle, promoted.bundle}  # the bad one: unseen
    assert any(line.startswith("golden requests answered rightly: 100.0% before") for line in lines)
    mirrored = [int(line.split()[-2]) for line in lines if line.startswith("failed: 0 of")]
    assert all(asked > 150 for asked in mirrored), lines  # besides the golden ones
    assert running.deploy(good, tried).kept


def test_what_a_replica_cannot_open_replaces_nothing(deployed, bundle_folder, tmp_path, options):
    from eagleray.actors.serving import running

    gone = variant(bundle_folder, tmp_path / "gone", "gone")
    with Load(deployed.url, 1) as load, pytest.raises(EaglerayError, match=r"can't serve .* no bundle"):
        running.deploy(gone, options, log=lambda line: shutil.rmtree(gone))
    assert set(load.found) == {(200, deployed.bundle)}
    state = running.state_of(options.application)
    assert (state.serves, state.releases.live.bundle, state.problem) == (deployed.bundle, deployed.bundle, "")


def test_it_goes_back_only_as_long_as_there_is_something(deployed, options):
    from eagleray.actors.serving import running

    while running.state_of(options.application).releases.previous:
        running.roll_back(options.application)
    with pytest.raises(EaglerayError, match="nothing was served before"):
        running.roll_back(options.application)
    with pytest.raises(EaglerayError, match="no application 'other'"):
        running.roll_back("other")


def test_without_a_cluster_the_commands_say_so(tmp_path):
    from eagleray.cli import app

    home = ["--home", str(tmp_path)]
    found = CliRunner().invoke(app, ["rollback", *home])
    assert "no cluster of this home" in str(found.exception)
    assert "nothing is served" in CliRunner().invoke(app, ["applications", *home]).output
