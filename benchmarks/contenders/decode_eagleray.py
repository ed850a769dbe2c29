"""Eagleray: the pictures source and its decoding, on Ray Data."""

import logging
import sys
import tempfile
from pathlib import Path

import numpy as np
import ray
from pictures import timed

from eagleray.pipelines import preparing
from eagleray.pipelines.corpus import list_units
from eagleray.pipelines.files import Files
from eagleray.pipelines.media import image
from eagleray.pipelines.preparing import Recipe
from eagleray.pipelines.sources.pictures import SOURCE
from eagleray.pipelines.stages.preprocess import PreprocessSpec, chain_of

folder, size, workers = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
spec = PreprocessSpec.model_validate(
    {
        "source": {"kind": "pictures", "path": str(folder)},
        "preparation": {"image_size": size, "stored_image_size": size},
    }
)
ray.init(num_cpus=workers, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)

with tempfile.TemporaryDirectory() as cache:
    recipe = Recipe(SOURCE, spec.source, Files(str(folder), Path(cache)), chain_of(spec), spec.preparation)
    units, _ = list_units(recipe)

    def once():
        count = 0
        for block in preparing.run(units, recipe, spec.parallelism, spec.block_units):
            for chunk in block["image"].chunks:
                pixels = chunk.field("pixels")
                ends = np.frombuffer(pixels.buffers()[1], np.int64)[pixels.offset :]
                flat = np.frombuffer(pixels.buffers()[2], np.uint8)[ends[0] : ends[len(pixels)]]
                count += len(image.normalise(flat.reshape(-1, size, size, 3)))
        return count

    timed(once, units.num_rows)
ray.shutdown()
