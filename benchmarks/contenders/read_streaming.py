"""MosaicML Streaming: the same pixels and labels as MDS shards, shuffled by its default algorithm."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
from pictures import timed
from streaming import MDSWriter, StreamingDataset

folder, size, batch, work = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
if not (work / "index.json").is_file():
    shutil.rmtree(work, ignore_errors=True)
    columns = {"image": f"ndarray:uint8:{size},{size},3", "label": "int32"}
    with MDSWriter(out=str(work), columns=columns) as writer:
        for path in sorted((folder / "records").glob("train-*.arrow")):
            for rows in pa.ipc.open_file(str(path)).read_all().to_batches():
                for image in rows.column("image").field("pixels"):
                    pixels = np.frombuffer(image.as_py(), np.uint8).reshape(size, size, 3)
                    writer.write({"image": pixels, "label": np.int32(0)})

dataset = StreamingDataset(local=str(work), shuffle=True, batch_size=batch, shuffle_seed=0)


def once():
    count, images, labels = 0, [], []
    for sample in dataset:
        images.append(sample["image"])
        labels.append(sample["label"])
        if len(images) == batch:
            count += len(np.stack(images))
            images, labels = [], []
    return count + (len(np.stack(images)) if images else 0)


timed(once, dataset.num_samples)
