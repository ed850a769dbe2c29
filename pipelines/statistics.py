"""What inputs are like, in numbers: of a corpus once, and of what is asked, so that both can be compared.

The numbers are taken from prepared inputs, as the model sees them; so what preparation takes away, such as a
recording's loudness, counts for nothing here either.

Shape letters: B rows, H height, W width, T tokens, F frames, M mel bands, E embedding.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..workflows.spec import Spec
from .media.cleaning import identify_language
from .spec import Preparation

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Quantities: TypeAlias = Mapping[str, float | str]
"""Name → number, or word."""

LEAST_ROWS = 100
"""Rows of the corpus without which a modality isn't described: chance would look like drift."""
MOST_BINS = 10
RARE = 0.05
"""Share below which a word is counted among the others."""


class Distribution(Spec):
    """How often a quantity of the corpus lay where.

    Attributes:
        edges: of bins, growing; bin i is from edge i-1 to below edge i, the first and last are open.
        words: that have a bin each, where the quantity is a word; after them comes a bin of all others.
        counts: of the bins.
    """

    edges: tuple[float, ...] = ()
    words: tuple[str, ...] = ()
    counts: tuple[int, ...]

    def bin_of(self, value: float | str) -> int:
        """Number of the bin that a value is in."""
        if isinstance(value, str):
            return self.words.index(value) if value in self.words else len(self.words)
        return bisect_right(self.edges, value)


class Statistics(Spec):
    """What the inputs were like that a model was trained on: `statistics.json` of a bundle."""

    tokens: tuple[int, ...]
    """Occurrences of each token."""
    means: Mapping[str, tuple[float, ...]]
    """Modality → mean of its embeddings (E,)."""
    quantities: Mapping[str, Mapping[str, Distribution]]
    """Modality → quantity → its distribution."""


class Measure:
    """Takes the numbers of one input after another.

    Args:
        preparation: of the inputs.
        tokenizer: of the texts.
        tokens: occurrences of each token in the corpus (V,).
        means: modality → mean of the corpus's embeddings (E,).
        counted: whether the texts that are measured are among those that `tokens` counts; each is then taken
            as if it were not, since to those that are asked later all others are known, and they aren't.
    """

    def __init__(
        self,
        preparation: Preparation,
        tokenizer: Tokenizer,
        tokens: Sequence[int],
        means: Mapping[str, Sequence[float]],
        *,
        counted: bool = False,
    ) -> None:
        self._frame_s, self._tokenizer = preparation.hop_ms / 1000, tokenizer
        self._tokens = np.array(tokens, np.float64) + 1  # what never came is rare, not impossible
        self._total, self._counted = self._tokens.sum(), counted
        self._means = {name: _unit(np.array(mean, np.float32)) for name, mean in means.items()}

    def __call__(
        self, modality: str, row: Mapping[str, NDArray[np.generic]], embedding: NDArray[np.float32]
    ) -> Quantities:
        """The numbers of a prepared row and its unit embedding (E,)."""
        found = (
            picture(np.asarray(row["image"], np.float32))
            if modality == "image"
            else self._text(np.asarray(row["tokens"])[np.asarray(row["token_mask"], np.bool_)])
            if modality == "text"
            else self._speech(np.asarray(row["mel"], np.float32)[np.asarray(row["mel_mask"], np.bool_)])
        )
        return {**found, "embedding": float(embedding @ self._means[modality])}

    def _text(self, tokens: NDArray[np.generic]) -> dict[str, float | str]:
        """Of tokens (T,), with those that mark the ends: how many, how rare (nats), in which language."""
        ids = tokens[1:-1].astype(np.int64)
        here, own = np.unique(ids, return_counts=True)
        known, total = self._tokens[here], self._total
        if self._counted:
            known, total = known - own, total - len(ids)
        return {
            "length": float(len(ids)),
            "rarity": float(-(own * np.log(known / total)).sum() / max(1, len(ids))),
            "language": identify_language(self._tokenizer.decode(ids.tolist()))[0],
        }

    def _speech(self, mel: NDArray[np.float32]) -> dict[str, float | str]:
        """Of a normalised spectrogram (F, M): seconds, how much higher the upper half of the bands is than
        the lower, and how far a band moves from frame to frame.
        """
        half = mel.shape[1] // 2
        return {
            "duration_s": len(mel) * self._frame_s,
            "tilt": float(mel[:, half:].mean() - mel[:, :half].mean()),
            "motion": float(np.abs(np.diff(mel, axis=0)).mean()) if len(mel) > 1 else 0.0,
        }


def picture(pixels: NDArray[np.float32]) -> dict[str, float | str]:
    """Of a picture (3, H, W) in [-1, 1]: brightness, contrast, saturation, and detail: how far neighbours
    differ. All are in the units of a scale from 0 to 1.
    """
    grey = pixels.mean(axis=0)
    return {
        "brightness": float(grey.mean() + 1) / 2,
        "contrast": float(grey.std()) / 2,
        "saturation": float((pixels.max(axis=0) - pixels.min(axis=0)).mean()) / 2,
        "detail": float(np.abs(np.diff(grey, axis=1)).mean()) / 2,
    }


def distribution(values: Sequence[float | str]) -> Distribution:
    """Describe what was found: numbers in bins of about equally many, words by how often they came."""
    if isinstance(values[0], str):
        counts = Counter(str(value) for value in values)
        words = tuple(word for word, count in counts.most_common() if count >= RARE * len(values))
        known = [counts[word] for word in words]
        return Distribution(words=words, counts=(*known, len(values) - sum(known)))
    numbers = np.array(values, np.float64)
    edges = np.unique(np.quantile(numbers, np.linspace(0, 1, MOST_BINS + 1)[1:-1]))
    places = np.searchsorted(edges, numbers, side="right")
    found = np.bincount(places, minlength=len(edges) + 1)
    return Distribution(edges=tuple(edges.tolist()), counts=tuple(found.tolist()))


def describe(found: Iterable[Quantities]) -> dict[str, Distribution]:
    """Describe rows of one modality; nothing if there are too few."""
    rows = list(found)
    if len(rows) < LEAST_ROWS:
        return {}
    return {name: distribution([row[name] for row in rows]) for name in rows[0]}


def _unit(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    return vector / max(float(np.linalg.norm(vector)), 1e-12)
