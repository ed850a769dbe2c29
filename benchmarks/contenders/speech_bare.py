"""A bare loop over recordings, in as many processes as there are cores."""

import multiprocessing
import sys
from pathlib import Path

from pictures import timed
from speech import decode

folder, workers = Path(sys.argv[1]), int(sys.argv[2])
paths = sorted(folder.rglob("*.ogg"))


def work(part):
    return sum(len(decode(path)) > 0 for path in part)


if __name__ == "__main__":
    parts = [paths[i::workers] for i in range(workers)]
    with multiprocessing.Pool(workers) as pool:
        timed(lambda: sum(pool.map(work, parts)), len(paths))
