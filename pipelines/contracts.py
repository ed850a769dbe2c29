"""The columns a record may have, each with its one Arrow type, and where a corpus's shards lie.

A *record* is what is learned from at once: a picture with its captions and recordings, a document, a
volume. It is one row, whatever modalities it has; what it lacks is null or an empty list.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import pyarrow as pa

MODALITIES = ("image", "text", "speech")


def _struct(**fields: pa.DataType) -> pa.DataType:
    return pa.struct([pa.field(name, kind, nullable=False) for name, kind in fields.items()])


def _list(**fields: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("item", _struct(**fields), nullable=False))


def _many(kind: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("item", kind, nullable=False))


_STRING, _BYTES, _INT, _REAL = pa.string(), pa.large_binary(), pa.int32(), pa.float32()

COLUMNS: Mapping[str, pa.Field] = {
    one.name: one
    for one in (
        pa.field("id", _STRING, nullable=False),
        # What no two splits may share: a speaker, a patient, a board, a company.
        pa.field("group", _STRING, nullable=False),
        pa.field("category", _STRING),
        # Encoded files, as a source gives them. Read and dropped within a task.
        pa.field("picture", _struct(address=_STRING, content=_BYTES)),
        pa.field("recordings", _list(language=_STRING, address=_STRING, content=_BYTES)),
        pa.field("waves", _list(language=_STRING, address=_STRING, duration_s=_REAL, wave=_BYTES)),
        # `width` and `height` are the original's; of a vector picture, as rendered.
        # `pixels` is uint8 (stored_image_size, stored_image_size, 3), row by row.
        pa.field("image", _struct(address=_STRING, width=_INT, height=_INT, pixels=_BYTES)),
        pa.field("captions", _list(language=_STRING, text=_STRING)),
        # Parallel to `captions`; each runs from BOS to EOS, cut to max_tokens, without padding.
        pa.field("tokens", pa.list_(pa.field("item", _many(_INT), nullable=False))),
        # Of `text`, from BOS to EOS, whole.
        pa.field("text_tokens", _many(_INT)),
        # `mel` is float16 (frames, n_mels), row by row, not normalised. `duration_s` is the whole clip's.
        pa.field(
            "speech", _list(language=_STRING, address=_STRING, duration_s=_REAL, frames=_INT, mel=_BYTES)
        ),
        # A question is the record's caption, and its type the category.
        pa.field("answer", _STRING),
        # From BOS to EOS, cut to max_tokens.
        pa.field("answer_tokens", _many(_INT)),
        pa.field("text", _STRING),
        pa.field("language", _STRING),
        # Axes are (depth, height, width); `voxels` is `dtype` in C order, little endian. `origin_mm` is the
        # centre of the first voxel and `direction` the axes' unit vectors, both in patient space (LPS).
        pa.field(
            "volume",
            _struct(
                address=_STRING,
                shape=_many(_INT),
                spacing_mm=_many(pa.float64()),
                origin_mm=_many(pa.float64()),
                direction=_many(pa.float64()),
                dtype=_STRING,
                voxels=_BYTES,
            ),
        ),
        # In patient space (LPS).
        pa.field("findings", _list(label=_STRING, x_mm=_REAL, y_mm=_REAL, z_mm=_REAL, diameter_mm=_REAL)),
        # Structures marked in `volume`: `voxels` is uint8 of its shape, 0 where there is none, n where it is
        # `labels[n - 1]`.
        pa.field("regions", _struct(labels=_many(_STRING), voxels=_BYTES)),
        # The same for a picture, as a PNG of one channel: of the picture's size, and beside `image` of the
        # stored one.
        pa.field("mask", _struct(labels=_many(_STRING), content=_BYTES)),
        # What the picture should look like: an encoded picture of the same size, beside `image` a PNG of the
        # stored one.
        pa.field("reference", _struct(address=_STRING, content=_BYTES)),
        # As the source gave them, beside a `mask` and a `reference` that are the stored picture's.
        pa.field("source_mask", _struct(labels=_many(_STRING), content=_BYTES)),
        pa.field("source_reference", _struct(address=_STRING, content=_BYTES)),
        # In pixels of the original.
        pa.field("boxes", _list(label=_STRING, left=_REAL, top=_REAL, width=_REAL, height=_REAL)),
    )
}

TRANSIENT = ("picture", "recordings", "waves", "source_mask", "source_reference")
"""Columns that never leave a task."""

PLACE = pa.schema(
    [pa.field("unit", pa.binary(16), nullable=False), pa.field("row", pa.int32(), nullable=False)]
)
"""Where a record came from: the key of the unit it was read from, and its number there."""

QUARANTINE = pa.schema(
    [
        *PLACE,
        pa.field("id", _STRING, nullable=False),
        pa.field("address", _STRING, nullable=False),
        pa.field("operator", _STRING, nullable=False),
        pa.field("reason", _STRING, nullable=False),
        pa.field("message", _STRING, nullable=False),
        pa.field("wanted", pa.bool_(), nullable=False),
        pa.field("whole", pa.bool_(), nullable=False),
        pa.field("size_bytes", pa.int64(), nullable=False),
        pa.field("content", _BYTES),
    ]
)
"""What was refused. `wanted` where a filter did what it was asked to, else the input is broken. `whole` where
the record is gone with it, not a caption or recording of it alone. `size_bytes` is -1 where it is not known;
`content` is there unless it is large."""

INTAKE = pa.schema(
    [
        pa.field("unit", pa.binary(16), nullable=False),
        pa.field("name", _STRING, nullable=False),
        pa.field("records", pa.int32(), nullable=False),
        pa.field("kept", pa.int32(), nullable=False),
        pa.field("refused", pa.int32(), nullable=False),
    ]
)
"""Every unit of the source, in order. `refused` counts the records that were refused while they were read;
what was then left out as a duplicate is the rest of `records`."""


PACKS = pa.schema([pa.field("pieces", _list(row=pa.int64(), start=_INT, stop=_INT), nullable=False)])
"""Sequences of packed documents: rows of their split, and which of each one's `text_tokens`."""


def stored_schema(columns: Iterable[str], own: Mapping[str, str]) -> pa.Schema:
    """Schema of a corpus's shards.

    Args:
        columns: names in `COLUMNS`.
        own: columns that operators declare themselves → alias of their Arrow type.
    """
    names = [name for name in COLUMNS if name in set(columns) and name not in TRANSIENT]
    fields = [COLUMNS[name] for name in names]
    fields += [pa.field(name, pa.type_for_alias(alias)) for name, alias in sorted(own.items())]
    return pa.schema([*PLACE, *fields])


def shard_path(corpus: Path, split: str, number: int) -> Path:
    """Where a shard lies in a corpus's folder."""
    return corpus / "records" / f"{split}-{number:05d}.arrow"


def pack_path(corpus: Path, split: str) -> Path:
    """Where a split's sequences of packed documents are listed, if there are any."""
    return corpus / "packs" / f"{split}.arrow"


def shard_paths(corpus: Path, split: str) -> list[Path]:
    """A split's shards, in order."""
    return sorted((corpus / "records").glob(f"{split}-*.arrow"))
