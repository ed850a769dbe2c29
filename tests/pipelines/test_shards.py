"""Shards."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from eagleray.pipelines.contracts import shard_paths, stored_schema
from eagleray.pipelines.shards import CHUNK_ROWS, ShardWriter, open_split

SCHEMA = stored_schema(
    ("id", "group", "category", "captions", "image", "speech", "volume", "boxes"), {"hash": "uint64"}
)
NOISE = np.random.default_rng(0).integers(0, 256, (200, 3000), np.uint8)


def record(i: int) -> dict:
    """A record that lacks now this and now that."""
    picture = {"address": f"{i}.png", "width": i, "height": 2, "pixels": NOISE[i].tobytes()}
    clips = [
        {
            "language": "fr",
            "address": "ü.ogg",
            "duration_s": i / 7,
            "frames": 2,
            "mel": NOISE[i, k:].tobytes(),
        }
        for k in range(i % 3)
    ]
    volume = {
        "address": "ct",
        "shape": [2, 3, 4],
        "spacing_mm": [2.5, 0.7, 1 / 3],
        "origin_mm": [-0.0, 1e-308, 3.0],
        "direction": [1.0, 0, 0, 0, 1, 0, 0, 0, 1],
        "dtype": "int16",
        "voxels": NOISE[i, :48].tobytes(),
    }
    return {
        "unit": i.to_bytes(16, "big"),
        "row": i,
        "id": f"r{i:03d}",
        "group": "",
        "category": None if i % 2 else "\N{SNOWMAN}",
        "captions": [{"language": "en", "text": "a\0b"}] * (i % 4),
        "image": None if i % 5 == 0 else picture,
        "speech": clips,
        "volume": volume if i % 7 == 0 else None,
        "boxes": [{"label": "x", "left": 0.1, "top": -1e30, "width": float("inf"), "height": 5e-324}],
        "hash": 2**64 - 1 - i,
    }


ROWS = pa.Table.from_pylist([record(i) for i in range(200)], SCHEMA)


@given(cuts=st.lists(st.integers(0, 200), max_size=6), shard_bytes=st.integers(1, 1_500_000))
@settings(max_examples=12, deadline=None)
def test_bytes_do_not_depend_on_how_the_rows_came_in(tmp_path_factory, cuts, shard_bytes):
    contents = []
    for edges in ([0, 200], sorted({0, 200, *cuts})):
        folder = tmp_path_factory.mktemp("shards")
        writer = ShardWriter(folder, "train", SCHEMA, shard_bytes)
        for start, stop in pairwise(edges):
            writer.add(ROWS.slice(start, stop - start))
        writer.close()
        paths = shard_paths(folder, "train")
        contents.append([path.read_bytes() for path in paths])
        assert writer.num_rows == 200
        assert open_split(folder, "train").column(*SCHEMA.names).cast(SCHEMA).equals(ROWS)
    assert contents[0] == contents[1]


def test_a_record_reads_back_bit_for_bit_in_any_order(tmp_path):
    writer = ShardWriter(tmp_path, "train", SCHEMA, 200_000)
    writer.add(ROWS)
    writer.close()
    assert len(shard_paths(tmp_path, "train")) > 2
    rows = np.random.default_rng(1).integers(0, 200, 500)
    read = open_split(tmp_path, "train").take(rows, SCHEMA.names)
    for found, row in zip(read.to_pylist(), rows.tolist(), strict=True):
        assert found == ROWS.slice(row, 1).to_pylist()[0]


def test_a_shard_is_closed_at_the_first_whole_chunk_past_its_size(tmp_path):
    writer = ShardWriter(tmp_path, "train", SCHEMA, 1)
    writer.add(ROWS)
    writer.close()
    sizes = [pa.ipc.open_file(path).read_all().num_rows for path in shard_paths(tmp_path, "train")]
    assert sizes == [CHUNK_ROWS] * 3 + [200 - 3 * CHUNK_ROWS]


def test_a_split_without_rows_still_has_a_shard_with_the_schema(tmp_path):
    ShardWriter(tmp_path, "val", SCHEMA, 10).close()
    empty = open_split(tmp_path, "val")
    assert empty.schema.equals(SCHEMA)
    assert len(empty) == 0
    assert empty.take(np.zeros(0, np.int64), ["id"]).num_rows == 0
