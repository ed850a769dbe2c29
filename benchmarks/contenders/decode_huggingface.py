"""Hugging Face datasets: map over the files with two processes, then batches of NumPy arrays."""

import sys
import tempfile
from pathlib import Path

import datasets
from pictures import decode, normalise, timed

folder, size, workers = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
datasets.disable_progress_bars()
datasets.disable_caching()


def work(batch):
    return {"pixels": [decode(Path(path).read_bytes(), size) for path in batch["path"]]}


if __name__ == "__main__":
    paths = [str(path) for path in sorted(folder.rglob("*.jpg"))]
    features = datasets.Features({"pixels": datasets.Array3D((size, size, 3), "uint8")})

    def once():
        with tempfile.TemporaryDirectory() as cache:
            found = datasets.Dataset.from_dict({"path": paths}).map(
                work,
                batched=True,
                batch_size=128,
                num_proc=workers,
                remove_columns=["path"],
                features=features,
                cache_file_name=f"{cache}/mapped.arrow",
            )
            rows = found.with_format("numpy").iter(batch_size=128)
            return sum(len(normalise(batch["pixels"])) for batch in rows)

    timed(once, len(paths))
