"""Whom a model serves worse: each metric by language and by described group, and what moderation flags.

A group is one of records whose captions a pattern is found in. What a part of the split has, it has of the
same answers as the whole: nothing is evaluated twice, and a picture is sought among all of them.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...pipelines.reading import CorpusReader
from .metrics import Bootstrap, report

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Parts:
    """Parts of a split.

    Attributes:
        languages: of each record (R,), that of its speech, or of its document; None if it has neither.
        described: group → the records that are in it (R,).
    """

    languages: Sequence[str | None] = ()
    described: Mapping[str, Bools] = field(default_factory=dict[str, Bools])

    def of(self, rows: Sequence[int] | NDArray[np.integer], *, spoken: bool = False) -> dict[str, Bools]:
        """Part → which of the records `rows` (N,) are in it (N,).

        Args:
            rows: of the split.
            spoken: whether the language of the speech or the document bears on what is measured.
        """
        places = np.asarray(rows, np.int64)
        found = {f"group {name}": mask[places] for name, mask in self.described.items()}
        if spoken and self.languages:
            of = np.array([self.languages[row] or "" for row in places.tolist()])
            found |= {f"language {one}": of == one for one in sorted(set(of.tolist()) - {""})}
        return found


EVERYTHING = Parts()
"""No parts."""


def read_parts(reader: CorpusReader, groups: Mapping[str, str]) -> Parts:
    """The parts of a split.

    Args:
        reader: of the split.
        groups: name → regular expression over the captions, or documents, in any case.
    """
    texts = [" ".join(text for _, text in said) for said in texts_of(reader)]
    described = {
        name: np.array([re.search(pattern, text, re.IGNORECASE) is not None for text in texts], np.bool_)
        for name, pattern in groups.items()
    }
    return Parts(reader.languages(), described)


def texts_of(reader: CorpusReader) -> list[list[tuple[str, str]]]:
    """Language and text of each record's captions; of its document, if it has none."""
    columns = [name for name in ("captions", "text", "language") if name in reader.info.columns]
    found: list[list[tuple[str, str]]] = []
    for row in reader.table(np.arange(len(reader)), columns).to_pylist():
        said = [(one["language"], one["text"]) for one in row.get("captions") or ()]
        if not said and row.get("text"):
            said = [(row.get("language") or "", row["text"])]
        found.append(said)
    return found


def flagged_texts(
    reader: CorpusReader, flags: Callable[[str], bool], parts: Parts, how: Bootstrap
) -> list[dict[str, Any]]:
    """Share of a corpus's texts that moderation would flag, of which none should be.

    Args:
        reader: of the split.
        flags: whether a text is flagged.
        parts: by whose groups it is told, and by the texts' own languages.
        how: intervals are made, by group of records.
    """
    groups = reader.groups_of(np.arange(len(reader)))
    said = [(row, *one) for row, texts in enumerate(texts_of(reader)) for one in texts]
    if not said:
        return []
    rows = [row for row, _, _ in said]
    by_language: dict[str, Bools] = defaultdict(lambda: np.zeros(len(said), np.bool_))
    for number, (_, language, _) in enumerate(said):
        if language:
            by_language[f"language {language}"][number] = True
    by = {**parts.of(rows), **dict(sorted(by_language.items()))}
    values = [float(flags(text)) for _, _, text in said]
    places = [groups[row] for row in rows]
    return [report("texts flagged by moderation", values, places, 0.0, how, parts=by)]
