"""webdataset: the same pixels and labels as .npy members of tar shards, shuffled by a buffer."""

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import webdataset
from pictures import timed

folder, size, batch, work = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
if not (work / "count").is_file():
    work.mkdir(parents=True, exist_ok=True)
    number = 0
    with webdataset.ShardWriter(f"{work}/%05d.tar", maxcount=1000, verbose=0) as writer:
        for path in sorted((folder / "records").glob("train-*.arrow")):
            for rows in pa.ipc.open_file(str(path)).read_all().to_batches():
                for image in rows.column("image").field("pixels"):
                    pixels = np.frombuffer(image.as_py(), np.uint8).reshape(size, size, 3)
                    writer.write({"__key__": f"{number:07d}", "image.npy": pixels, "cls": 0})
                    number += 1
    (work / "count").write_text(str(number))

urls = sorted(str(path) for path in work.glob("*.tar"))
dataset = (
    webdataset.WebDataset(urls, shardshuffle=100, seed=0)
    .shuffle(1000)
    .decode()
    .to_tuple("image.npy", "cls")
    .batched(batch)
)


def once():
    return sum(len(np.ascontiguousarray(images)) for images, _ in dataset)


timed(once, int((work / "count").read_text()))
