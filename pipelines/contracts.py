"""The Arrow schemas of a corpus's shards, and where they lie in its folder."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

MODALITIES = ("image", "text", "speech")

PICTURES = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("category", pa.string(), nullable=False),
        pa.field("label", pa.int32(), nullable=False),
        pa.field("caption_group", pa.int64(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("image", pa.large_binary(), nullable=False),
    ]
)
"""`image` is uint8 (stored_image_size, stored_image_size, 3), row by row. `caption_group` is equal
where pictures share a caption. `width` and `height` are the original's; of a vector picture, as rendered."""

CAPTIONS = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("language", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("tokens", pa.list_(pa.int32()), nullable=False),
    ]
)
"""`tokens` runs from BOS to EOS, cut to max_tokens, without padding."""

SPEECH = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("language", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("duration_s", pa.float32(), nullable=False),
        pa.field("frames", pa.int32(), nullable=False),
        pa.field("mel", pa.large_binary(), nullable=False),
    ]
)
"""`mel` is float16 (frames, n_mels), row by row, not normalised. `duration_s` is the whole clip's."""

QUARANTINE = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("operator", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
        pa.field("size_bytes", pa.int64(), nullable=False),
    ]
)

RECORDS = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("picture", pa.string(), nullable=False),
        pa.field("category", pa.string(), nullable=False),
        pa.field("captions", pa.map_(pa.string(), pa.string()), nullable=False),
        pa.field("speech", pa.map_(pa.string(), pa.string()), nullable=False),
    ]
)
"""What a source lists: paths are relative to its folder, `captions` maps language to text and `speech`
language to path."""

TABLES = {"pictures": PICTURES, "captions": CAPTIONS, "speech": SPEECH}


def shard_path(corpus: Path, table: str, split: str, number: int) -> Path:
    """Where a shard lies in a corpus's folder."""
    return corpus / table / f"{split}-{number:05d}.parquet"


def shard_paths(corpus: Path, table: str, split: str) -> list[Path]:
    """A split's shards, in order."""
    return sorted((corpus / table).glob(f"{split}-*.parquet"))
