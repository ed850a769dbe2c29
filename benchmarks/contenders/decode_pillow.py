"""A bare loop over the files, in as many processes as there are cores."""

import multiprocessing
import sys
from pathlib import Path

from pictures import decode, normalise, timed

folder, size, workers = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
paths = sorted(folder.rglob("*.jpg"))


def work(part):
    done = 0
    for path in part:
        done += len(normalise(decode(path.read_bytes(), size))) > 0
    return done


if __name__ == "__main__":
    parts = [paths[i::workers] for i in range(workers)]
    with multiprocessing.Pool(workers) as pool:
        timed(lambda: sum(pool.map(work, parts)), len(paths))
