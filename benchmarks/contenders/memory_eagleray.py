"""Eagleray: the memory that a whole preprocess stage takes, on this many pictures of a folder."""

import json
import logging
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

import ray

from eagleray.pipelines.stages.preprocess import PreprocessSpec, preprocess
from eagleray.workflows.stage import StageContext

folder, count, size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
POLL_S = 0.2


def family():
    """This process and all that it started."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(stat.parent.name)] = int(fields[1])
    found = {os.getpid()}
    while more := {one for one, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def used_mb():
    """Private and shared memory of this process and all that it started, without files that are mapped."""
    total = 0
    for process in family():
        try:
            rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
        except OSError:
            continue  # it has ended
        fields = dict(line.split(":") for line in rollup.splitlines()[1:])
        total += sum(int(fields[name].split()[0]) for name in ("Pss_Anon", "Pss_Shmem"))
    return total / 1024


with tempfile.TemporaryDirectory() as work:
    pictures = Path(work, "pictures")
    pictures.mkdir()
    paths = sorted(folder.rglob("*.jpg"))
    for number in range(count):
        (pictures / f"{number:07d}.jpg").hardlink_to(paths[number % len(paths)])
    for name in ("output", "scratch"):
        Path(work, name).mkdir()
    ray.init(num_cpus=2, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    spec = PreprocessSpec.model_validate(
        {
            "source": {"kind": "pictures", "path": str(pictures), "category": "none"},
            "preparation": {"image_size": size, "stored_image_size": size},
        }
    )
    ctx = StageContext(
        "run",
        "corpus",
        "0" * 64,
        Path(work, "output"),
        Path(work, "scratch"),
        Path(work, "cache"),
        lambda *a, **k: None,
    )
    peak, going = 0.0, True

    def watch():
        global peak
        while going:
            peak = max(peak, used_mb())
            time.sleep(POLL_S)

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    preprocess.function(ctx, spec)
    elapsed = time.perf_counter() - started
    going = False
    watcher.join()
    ray.shutdown()
    print(
        json.dumps(
            {
                "peak_mb": round(peak, 1),
                "seconds": round(elapsed, 1),
                "items_per_s": round(count / elapsed, 1),
            }
        )
    )
