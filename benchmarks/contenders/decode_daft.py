"""Daft: its own decoder and resizing."""

import sys
from pathlib import Path

import daft
from pictures import normalise, timed

folder, size = Path(sys.argv[1]), int(sys.argv[2])
paths = [str(path) for path in sorted(folder.rglob("*.jpg"))]


def once():
    frame = daft.from_pydict({"path": paths})
    image = daft.col("path").download().decode_image(mode="RGB").resize(size, size)
    frame = frame.select(image.alias("image"))
    count = 0
    for part in frame.iter_partitions():
        arrays = part.to_arrow()["image"].combine_chunks()
        pixels = getattr(arrays, "storage", arrays).flatten().to_numpy().reshape(-1, size, size, 3)
        count += len(normalise(pixels))
    return count


timed(once, len(paths))
