"""Documents of any length: read in overlapping segments, pooled by attention, with the sentences that told.

Shape letters: S segments, L tokens of one, T tokens of the document, K categories.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ..bundle import DOCUMENT, LoadedBundle
from ..spec import BOS, EOS, PAD
from .spec import DocumentAssessment, Evidence, NotAssessable

BATCH = 16
"""Segments that are read at once: more are no faster, and take more memory."""
LEAST_TOKENS = 4
TOLD = 5
"""Sentences that are told."""
LONGEST = 60
"""Words from which on a text without full stops is told in parts."""
_SENTENCE = re.compile(r"[^\n]*?(?:[.!?][\"'”’)\]]*(?=\s)|(?=\n)|$)", re.DOTALL)
_WORD = re.compile(r"\S+")

Floats = NDArray[np.float32]


class DocumentAssessor:
    """Assesses documents with a bundle's graph.

    Args:
        bundle: with a graph for documents.
    """

    def __init__(self, bundle: LoadedBundle) -> None:
        assert bundle.info.document is not None
        self._bundle, self._spec = bundle, bundle.info.document

    def assess(self, text: str) -> DocumentAssessment | NotAssessable:
        """Find a document's category, and the sentences that say so.

        Time and memory grow with the document's length, the latter by what is kept of each token: its place
        and what it adds to each category.
        """
        encoded = self._bundle.tokenizer.encode(text, add_special_tokens=False)
        if len(encoded.ids) < LEAST_TOKENS:
            return NotAssessable(reason="too-short", message=f"the text has {len(encoded.ids)} tokens")
        tokens = np.array([BOS, *encoded.ids, EOS], np.int64)
        logits, added, segments = self.read(tokens)
        likely = np.exp(logits - logits.max())
        likely /= likely.sum()
        best = int(logits.argmax())
        # what speaks for a category is what it gets more of than others do
        speaks = added[1:-1, best] - added[1:-1].mean(axis=1)
        starts = np.array([start for start, _ in encoded.offsets])
        classes = self._bundle.info.classes
        return DocumentAssessment(
            category=classes[best],
            probabilities={name: float(one) for name, one in zip(classes, likely, strict=True)},
            evidence=tuple(_evidence(text, starts, speaks)),
            tokens=len(encoded.ids),
            segments=segments,
        )

    def read(self, tokens: NDArray[np.int64]) -> tuple[Floats, Floats, int]:
        """Logits (K,) of a document (T,), what each token added to them (T, K), and a count of segments."""
        length, overlap = self._spec.length, self._spec.overlap
        stride = length - overlap
        starts = range(0, max(1, len(tokens) - overlap), stride)
        padded = np.full((len(starts) - 1) * stride + length, PAD, np.int64)
        padded[: len(tokens)] = tokens
        segments = np.lib.stride_tricks.sliding_window_view(padded, length)[::stride]
        mask = np.arange(length) + np.array(starts)[:, None] < len(tokens)
        found = [
            self._bundle.run(DOCUMENT, {"tokens": segments[i : i + BATCH], "token_mask": mask[i : i + BATCH]})
            for i in range(0, len(starts), BATCH)
        ]
        scores = np.concatenate([one["scores"] for one in found])
        weights = np.exp(scores - scores.max())
        weights /= weights.sum()
        added = np.zeros((len(padded), found[0]["evidence"].shape[2]), np.float32)
        evidence = (segment for one in found for segment in one["evidence"])
        for start, weight, segment in zip(starts, weights, evidence, strict=True):
            added[start : start + length] += weight * segment
        added = added[: len(tokens)]
        return added.sum(axis=0), added, len(starts)


def sentences(text: str) -> Iterator[tuple[int, int]]:
    """Where sentences, or a table's rows, begin and end; where nothing ends one, so many words."""
    for match in _SENTENCE.finditer(text):
        words = list(_WORD.finditer(text, *match.span()))
        for first in range(0, len(words), LONGEST):
            part = words[first : first + LONGEST]
            yield part[0].start(), part[-1].end()


def _evidence(text: str, starts: NDArray[np.int64], speaks: Floats) -> list[Evidence]:
    """The sentences that tokens which begin at `starts` (T,) and say `speaks` (T,) tell most by."""
    spans = list(sentences(text))
    if not spans:
        return []
    places = np.searchsorted([start for start, _ in spans], starts, side="right") - 1
    sums = np.zeros(len(spans))
    np.add.at(sums, places.clip(min=0), speaks)
    total = max(float(sums.clip(min=0).sum()), 1e-30)
    best = np.argsort(-sums, kind="stable")[:TOLD].tolist()
    return [
        Evidence(text=text[slice(*spans[one])], start=spans[one][0], share=float(sums[one]) / total)
        for one in best
        if sums[one] > 0
    ]
