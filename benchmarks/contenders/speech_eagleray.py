"""Eagleray: the transcripts source, decoding and encoding of recordings, on Ray Data."""

import logging
import sys
import tempfile
from pathlib import Path

import pyarrow.compute as pc
import ray
from pictures import timed

from eagleray.pipelines import preparing
from eagleray.pipelines.corpus import list_units
from eagleray.pipelines.files import Files
from eagleray.pipelines.preparing import Recipe
from eagleray.pipelines.sources.transcripts import SOURCE
from eagleray.pipelines.stages.preprocess import PreprocessSpec, chain_of

folder, workers = Path(sys.argv[1]), int(sys.argv[2])
spec = PreprocessSpec.model_validate({"source": {"kind": "transcripts", "path": str(folder)}})
ray.init(num_cpus=workers, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)

with tempfile.TemporaryDirectory() as cache:
    recipe = Recipe(SOURCE, spec.source, Files(str(folder), Path(cache)), chain_of(spec), spec.preparation)
    units, _ = list_units(recipe)

    def once():
        blocks = preparing.run(units, recipe, spec.parallelism, spec.block_units)
        return sum(pc.sum(pc.equal(block["event"], preparing.RECORD)).as_py() for block in blocks)

    timed(once, units.num_rows)
ray.shutdown()
