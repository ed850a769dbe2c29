"""Which split a record belongs to: decided by its group alone, so that nothing moves as a corpus grows."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from .media.text import normalise
from .spec import Splits


def group_of(row: Mapping[str, Any], reference: str) -> str:
    """The group of a record whose source names none: its caption, so that none stands in two splits.

    Args:
        row: a record.
        reference: the language whose caption counts.
    """
    for caption in row.get("captions") or ():
        if caption["language"] == reference:
            return f"caption {normalise(caption['text'])}"
    return f"id {row['id']}"


def split_of(group: str, splits: Splits) -> str:
    """The split of a group: as its name says, or its hash as a number in [0, 1), laid against the shares."""
    fitting = [pattern for pattern in splits.by_group if fnmatchcase(group, pattern)]
    if fitting:
        return splits.by_group[max(fitting, key=lambda pattern: (len(pattern), pattern))]
    position = int.from_bytes(hashlib.sha256(group.encode("utf-8", "surrogatepass")).digest()[:8]) / 2**64
    if position < splits.train:
        return "train"
    return "val" if position < splits.train + splits.val else "test"
