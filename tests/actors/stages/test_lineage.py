"""`eagleray lineage`: from a bundle's digest back to what the real stages made it of."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from typer.testing import CliRunner

from eagleray.actors.serving.dashboard import grafana
from eagleray.cli import app
from eagleray.pipelines.bundle import bundle_digest
from eagleray.session import Session
from eagleray.workflows.artifacts import Bundle, Checkpoint, Corpus
from eagleray.workflows.errors import EaglerayError
from eagleray.workflows.store import Record, make_record

SPEC = """\
version: 1
name: frogs  # as somebody wrote it
stages:
  corpus: {kind: preprocess, source: {kind: tuxpaint}}
  train: {kind: pretrain, inputs: {corpus: corpus}, steps: 2}
  export: {kind: export, inputs: {corpus: corpus, checkpoint: train}}
"""


@dataclass(frozen=True)
class Home:
    """A home with a run's three artifacts."""

    folder: Path
    run: str
    corpus: Record
    checkpoint: Record
    bundle: Record

    def __call__(self, *words: str) -> str:
        """What the command prints."""
        done = CliRunner().invoke(app, ["lineage", *words, "--home", str(self.folder)])
        if done.exception is not None:
            raise done.exception
        return done.stdout

    def json(self, *words: str) -> Any:
        return json.loads(self(*words, "--json"))


@pytest.fixture(scope="module")
def home(
    corpus_folder: Path,
    checkpoint_folder: Path,
    bundle_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Home:
    work = tmp_path_factory.mktemp("lineage")
    (work / "frogs.yaml").write_text(SPEC)
    session = Session(work / "home")
    run = session.log.create(session.load(work / "frogs.yaml", ["train.steps=3"]))

    def keep(kind: type, folder: Path, stage: str, what: str, number: str, **inputs: Record) -> Record:
        record = make_record(
            kind,
            folder,
            fingerprint=number * 64,
            stage=stage,
            kind=what,
            run_id=run,
            spec={"source": {"kind": "tuxpaint"}} if what == "preprocess" else {},
            inputs=inputs,
            facts={},
        )
        return session.store.commit(record, folder)

    corpus = keep(Corpus, corpus_folder, "corpus", "preprocess", "1")
    checkpoint = keep(Checkpoint, checkpoint_folder, "train", "pretrain", "2", corpus=corpus)
    bundle = keep(Bundle, bundle_folder, "export", "export", "3", corpus=corpus, checkpoint=checkpoint)
    return Home(work / "home", run, corpus, checkpoint, bundle)


@pytest.fixture
def service(bundle_folder: Path) -> Iterator[str]:
    """The URL of something that says which bundle it serves, as services do."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/frogs/healthz" else 404)
            self.end_headers()
            self.wfile.write(json.dumps({"bundle": bundle_digest(bundle_folder)}).encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/frogs"
    server.shutdown()
    server.server_close()


def test_a_digest_leads_back_to_weights_corpus_and_spec(home):
    said = home(home.bundle.digest[:8])
    for record in (home.bundle, home.checkpoint, home.corpus):
        assert f"{record.type} {record.digest[:12]}" in said
    assert said.index("checkpoint: Checkpoint") < said.rindex("corpus: Corpus")  # which it was trained on
    assert f"run {home.run} of frogs" in said
    assert "--set train.steps=3" in said
    assert SPEC.strip() in said


def test_programs_are_told_the_same(home):
    found = home.json(home.bundle.digest)
    assert found["artifact"]["made_of"]["checkpoint"]["made_of"]["corpus"]["digest"] == home.corpus.digest
    assert found["artifact"]["made_of"]["corpus"]["spec"] == {"source": {"kind": "tuxpaint"}}
    assert found["runs"][home.run]["spec"] == SPEC
    assert found["runs"][home.run]["overrides"] == ["train.steps=3"]


def test_what_a_service_or_a_folder_tells_leads_there_too(home, service, bundle_folder):
    expected = home.json(home.bundle.digest)
    assert home.json(service) == expected
    assert home.json(str(bundle_folder)) == expected
    assert home.json(bundle_digest(bundle_folder)[:10]) == expected  # of a header, where a folder is served


def test_any_artifact_has_a_lineage(home):
    assert home.json(home.checkpoint.digest)["artifact"]["made_of"]["corpus"]["stage"] == "corpus"


def test_a_bundle_of_another_store_tells_what_it_knows_itself(home, bundle_folder, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(bundle_folder, folder)
    about = json.loads((folder / "bundle.json").read_text())
    about["lineage"] |= {"checkpoint": home.checkpoint.digest, "run_id": "elsewhere"}
    (folder / "bundle.json").write_text(json.dumps(about))
    found = home.json(str(folder))["artifact"]
    assert not found["in_store"]
    assert found["made_of"]["checkpoint"]["made_of"]["corpus"]["digest"] == home.corpus.digest
    assert not found["made_of"]["corpus"]["in_store"]
    assert "run elsewhere is not in this home's run log" in home(str(folder))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("0123456789", "no artifact here"),
        ("frog", "is no digest"),
        ("abc", "is no digest"),
        ("http://127.0.0.1:9", "doesn't say which bundle"),
        (".", "no bundle"),
    ],
)
def test_what_leads_nowhere_is_said(home, source, said):
    with pytest.raises(EaglerayError, match=said):
        home(source)


def test_too_few_digits_are_not_guessed_at(home, tmp_path):
    for number in range(2):
        twin = home.corpus.model_copy(
            update={"digest": f"{number}".rjust(64, "7"), "fingerprint": f"{number}".rjust(64, "8")}
        )
        path = home.folder / "store" / "records" / f"{twin.fingerprint}.json"
        path.write_text(twin.model_dump_json())
    with pytest.raises(EaglerayError, match="several digests") as caught:
        home("777777")
    assert "more of its digits" in str(caught.value)


def test_the_dashboard_is_written_with_the_configuration_that_feeds_it(tmp_path):
    words = ["dashboard", str(tmp_path / "out"), "--home", str(tmp_path / "home")]
    done = CliRunner().invoke(app, [*words, "--discovery", str(tmp_path / "nodes.json")])
    assert done.exit_code == 0
    assert (tmp_path / "out" / "grafana.json").read_text() == grafana()
    assert str(tmp_path / "nodes.json") in (tmp_path / "out" / "prometheus.yml").read_text()
