"""Decoding a source's files with Ray Data: rows come back in order, and a broken file is a row too."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from .operators import audio, image
from .quarantine import Refusal, Refused
from .spec import CPUS_PER_TASK, Preparation

_REFUSAL = [
    pa.field("reason", pa.string()),
    pa.field("message", pa.string()),
    pa.field("size_bytes", pa.int64(), nullable=False),
]
DECODED_PICTURES = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("image", pa.large_binary(), nullable=False),
        *_REFUSAL,
    ]
)
DECODED_SPEECH = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("language", pa.string(), nullable=False),
        pa.field("duration_s", pa.float32(), nullable=False),
        pa.field("frames", pa.int32(), nullable=False),
        pa.field("mel", pa.large_binary(), nullable=False),
        *_REFUSAL,
    ]
)

Columns = dict[str, Any]
Decode = Callable[[pa.Table, Path, Preparation], pa.Table]


def decode_pictures(batch: pa.Table, folder: Path, preparation: Preparation) -> pa.Table:
    """`id`, `path` → `DECODED_PICTURES`; a refused row has a reason and empty bytes."""

    def decode_one(data: bytes) -> Columns:
        picture = image.read(data, preparation.stored_image_size)
        if picture.pixels.min() == picture.pixels.max():
            raise Refused("blank-image", "all of the picture has one colour")
        return {"width": picture.width, "height": picture.height, "image": picture.pixels.tobytes()}

    return _decode_rows(batch, folder, decode_one, DECODED_PICTURES, {"width": 0, "height": 0, "image": b""})


def decode_speech(batch: pa.Table, folder: Path, preparation: Preparation) -> pa.Table:
    """`id`, `path`, `language` → `DECODED_SPEECH`; a refused row has a reason and empty bytes."""

    def decode_one(data: bytes) -> Columns:
        clip = audio.read(data, preparation.sample_rate)
        mel = audio.log_mel(clip.wave, preparation)
        stored = mel.astype(np.float16).tobytes()
        return {"duration_s": clip.duration_s, "frames": len(mel), "mel": stored}

    return _decode_rows(
        batch, folder, decode_one, DECODED_SPEECH, {"duration_s": 0.0, "frames": 0, "mel": b""}
    )


def run(
    files: pa.Table,
    decode: Decode,
    folder: Path,
    preparation: Preparation,
    parallelism: int | None,
    block_rows: int,
) -> Iterator[pa.Table]:
    """Decode `files` in parallel and yield the results block by block, in the order of `files`.

    Args:
        files: what to decode.
        decode: `decode_pictures` or `decode_speech`.
        folder: the source's, readable from every node.
        preparation: how.
        parallelism: tasks at once; None takes the cores of the cluster's machines.
        block_rows: files a task decodes.
    """
    import ray.data

    if not files.num_rows:
        return

    def decode_block(block: pa.Table) -> pa.Table:
        return decode(block, folder, preparation)

    blocks = [files.slice(start, block_rows) for start in range(0, files.num_rows, block_rows)]
    with warnings.catch_warnings():
        # Ray 2.60 warns of its own fields when it copies them.
        warnings.simplefilter("ignore", DeprecationWarning)
        context = ray.data.DataContext.get_current().copy()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    with ray.data.DataContext.current(context):  # a dataset keeps the one it was made in
        decoded = ray.data.from_arrow(blocks).map_batches(
            decode_block,
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=CPUS_PER_TASK,
            compute=ray.data.TaskPoolStrategy(size=min(parallelism or _cores(), len(blocks))),
        )
    yield from decoded.iter_batches(batch_size=None, batch_format="pyarrow")


def refusals(decoded: pa.Table, operator: str) -> list[Refusal]:
    """The refused rows of a decoded block."""
    names = ["id", "path", "reason", "message", "size_bytes"]
    rows = decoded.select(names).filter(decoded["reason"].is_valid()).to_pylist()
    return [Refusal(operator=operator, **row) for row in rows]


def accepted(decoded: pa.Table) -> pa.Table:
    """The other rows."""
    return decoded.filter(decoded["reason"].is_null())


def _cores() -> int:
    """Real cores of the cluster: a laptop's cluster may have more logical CPUs than that."""
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    return max(1, (os.cpu_count() or 1) * len(alive))


def _decode_rows(
    batch: pa.Table, folder: Path, decode_one: Callable[[bytes], Columns], schema: pa.Schema, empty: Columns
) -> pa.Table:
    """Decode each row's file, a file that several rows name once."""
    done: dict[str, Columns] = {}
    rows: list[Columns] = []
    for row in batch.to_pylist():
        path = row["path"]
        if path not in done:
            done[path] = _decode_file(folder / path, decode_one, empty)
        rows.append(row | done[path])
    return pa.Table.from_pylist(rows, schema=schema)


def _decode_file(path: Path, decode_one: Callable[[bytes], Columns], empty: Columns) -> Columns:
    try:
        data = path.read_bytes()
    except OSError as error:
        message = f"the file can't be read: {error.strerror}"
        return {**empty, "reason": "unreadable-file", "message": message, "size_bytes": -1}
    try:
        return {**decode_one(data), "reason": None, "message": None, "size_bytes": len(data)}
    except Refused as refused:
        return {**empty, "reason": refused.reason, "message": str(refused), "size_bytes": len(data)}
