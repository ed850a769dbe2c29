"""Which split a record belongs to: decided by its caption, so that no caption stands in two."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from .operators.text import normalise
from .spec import Splits


@dataclass(frozen=True)
class Placement:
    """Where a record goes.

    Attributes:
        split: `train`, `val` or `test`.
        group: equal where records share a caption.
    """

    split: str
    group: int


def place(ids: Sequence[str], captions: Sequence[str | None], splits: Splits) -> list[Placement]:
    """Place records by the sha256 of their caption, normalised; without one, by that of their id.

    A caption's split depends on no other record, so a corpus can grow without anything moving.
    """
    keys = [
        f"id {record}" if caption is None else f"caption {normalise(caption)}"
        for record, caption in zip(ids, captions, strict=True)
    ]
    groups = {key: number for number, key in enumerate(sorted(set(keys)))}
    return [Placement(split_of(key, splits), groups[key]) for key in keys]


def split_of(key: str, splits: Splits) -> str:
    """The split of a key: its hash as a number in [0, 1), laid against the shares."""
    position = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) / 2**64
    if position < splits.train:
        return "train"
    return "val" if position < splits.train + splits.val else "test"
