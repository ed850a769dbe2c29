"""Eagleray: batches of a corpus in the order of training, with the pixels that it stores."""

import sys
from pathlib import Path

import numpy as np
from pictures import timed

from eagleray.pipelines.order import rows_at
from eagleray.pipelines.reading import CorpusReader

folder, size, batch = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
reader = CorpusReader(folder, "train")


def once():
    count = 0
    for start in range(0, len(reader), batch):
        rows, _ = rows_at(0, len(reader), start, min(start + batch, len(reader)))
        pixels, labels = reader.stored_pictures(rows)
        count += len(np.ascontiguousarray(pixels)) * (len(labels) == len(rows))
    return count


timed(once, len(reader))
