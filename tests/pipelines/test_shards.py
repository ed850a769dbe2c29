"""Shards."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from eagleray.pipelines.contracts import SPEECH, shard_paths
from eagleray.pipelines.shards import ShardWriter

# Large enough that Parquet cuts the column into pages.
NOISE = np.random.default_rng(0).integers(0, 256, (50, 60_000), np.uint8)


def speech(start: int, stop: int) -> pa.Table:
    rows = [
        {
            "id": f"r{i:03d}",
            "language": "fr",
            "path": f"r{i}.ogg",
            "duration_s": i / 7,
            "frames": 2,
            "mel": NOISE[i].tobytes(),
        }
        for i in range(start, stop)
    ]
    return pa.Table.from_pylist(rows, schema=SPEECH)


@given(cuts=st.lists(st.integers(0, 50), max_size=6), shard_rows=st.integers(1, 60))
@settings(max_examples=12, deadline=None)
def test_bytes_do_not_depend_on_how_the_rows_came_in(tmp_path_factory, cuts, shard_rows):
    contents = []
    for edges in ([0, 50], sorted({0, 50, *cuts})):
        folder = tmp_path_factory.mktemp("shards")
        writer = ShardWriter(folder, "speech", shard_rows)
        for start, stop in pairwise(edges):
            writer.add("train", speech(start, stop))
        writer.close()
        contents.append(
            {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*.parquet"))}
        )
        assert writer.counts["train"] == 50
        paths = shard_paths(folder, "speech", "train")
        assert len(paths) == -(-50 // shard_rows)
        assert pa.concat_tables([pq.read_table(path) for path in paths]).equals(speech(0, 50))
    assert contents[0] == contents[1]


def test_a_split_without_rows_still_has_a_shard_with_the_schema(tmp_path):
    ShardWriter(tmp_path, "speech", 10).close()
    (path,) = shard_paths(tmp_path, "speech", "val")
    assert pq.read_schema(path).equals(SPEECH)
