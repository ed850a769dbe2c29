"""The same spec on a cluster of several Ray nodes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import dataclasses, logging, sys, time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from eagleray.pipelines.corpus import write_corpus
from eagleray.pipelines.preparing import Recipe
from eagleray.pipelines.source import content_digest, open_source
from eagleray.pipelines.sources.tuxpaint import SOURCE
from eagleray.pipelines.stages.preprocess import PreprocessSpec, chain_of
from eagleray.workflows.stage import StageContext

work, spec = Path(sys.argv[1]), PreprocessSpec.model_validate_json(sys.argv[2])
for name in ("output", "scratch", "cache", "nodes"):
    (work / name).mkdir()


def read(*args):
    (work / "nodes" / ray.get_runtime_context().get_node_id()).touch()
    time.sleep(0.05)
    yield from SOURCE.read(*args)


cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
for _ in range(2):
    cluster.add_node(num_cpus=1)
ray.init(address=cluster.address, logging_level=logging.ERROR, log_to_driver=False)
ctx = StageContext(
    "run", "corpus", "0" * 64, work / "output", work / "scratch", work / "cache", lambda *a, **k: None
)
files = open_source(SOURCE, spec.source, ctx.cache, print)
recipe = Recipe(dataclasses.replace(SOURCE, read=read), spec.source, files, chain_of(spec), spec.preparation)
write_corpus(ctx, spec, recipe, content_digest(SOURCE, spec.source, ctx.cache))
ray.shutdown()
cluster.shutdown()
"""


def test_a_corpus_made_on_three_nodes_is_the_corpus_made_on_one(corpus, source_stamps, tmp_path):
    spec = source_stamps.spec(block_units=2, parallelism=3).model_dump_json()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), spec], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "nodes").iterdir())) == 3  # each had a part in it
    paths = sorted(path for path in Path(tmp_path, "output").rglob("*") if path.is_file())
    contents = {str(path.relative_to(tmp_path / "output")): path.read_bytes() for path in paths}
    assert contents == corpus.contents
