"""Sentiment by a word list: a weak label, to learn from where nobody has read the texts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import Field

from ..dictionaries import LOUGHRAN_MCDONALD, loughran_mcdonald
from ..operator import Apply, Operator, OperatorSpec
from ..quarantine import Refuse, Refused
from ..source import Row
from ..spec import Preparation

_WORD = re.compile(r"[^\W\d_]+")
NEGATIONS = frozenset({"no", "not", "none", "neither", "never", "nobody"})
REACH = 3
"""Words before a positive one in which a negation turns it (Loughran and McDonald 2011, section II.A)."""


class DictionarySentimentSpec(OperatorSpec):
    """Make a text's category what Loughran and McDonald's lists say of it: negative, neutral or positive.

    It is a weak label: a model that agrees with it has learned the lists, not what a reader would say.
    """

    kind: Literal["dictionary-sentiment"] = "dictionary-sentiment"
    neutral: float = Field(default=0.2, ge=0, lt=1)
    """Greatest size of (positive - negative) / (positive + negative) that is neutral."""
    min_words: int = Field(default=1, ge=1)
    """Words of either list below which a text says nothing, and is neutral."""


def polarity(text: str, positive: frozenset[str], negative: frozenset[str]) -> tuple[int, int]:
    """How many words of a text are positive, and how many negative; a negated positive word is negative."""
    words = _WORD.findall(text.casefold())
    good = bad = 0
    for place, word in enumerate(words):
        if word in negative:
            bad += 1
        elif word in positive:
            negated = NEGATIONS.intersection(words[max(0, place - REACH) : place])
            good, bad = good + (not negated), bad + bool(negated)
    return good, bad


def dictionary_sentiment(spec: DictionarySentimentSpec, preparation: Preparation, folder: Path) -> Apply:
    """`text` → its `category`."""
    lists = loughran_mcdonald(folder)
    positive = frozenset(word for word, on in lists.items() if "positive" in on)
    negative = frozenset(word for word, on in lists.items() if "negative" in on)

    def apply(row: Row, refuse: Refuse) -> Row:
        if row["text"] is None:
            raise Refused("no-text", "the record has no text to judge", wanted=True)
        good, bad = polarity(row["text"], positive, negative)
        balance = (good - bad) / max(1, good + bad)
        if good + bad < spec.min_words or abs(balance) <= spec.neutral:
            return {"category": "neutral"}
        return {"category": "positive" if balance > 0 else "negative"}

    return apply


SENTIMENT = Operator(
    spec=DictionarySentimentSpec,
    summary="sentiment by Loughran and McDonald's word lists, as a weak label",
    needs=lambda spec: ("text",),
    gives=lambda spec: ("category",),
    start=dictionary_sentiment,
    package=LOUGHRAN_MCDONALD,
)
