"""Operators on texts: on every caption of a record, or on its document."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from pydantic import Field

from ..operator import Apply, Operator, OperatorSpec
from ..quarantine import Refuse, Refused
from ..source import Row
from ..spec import Preparation

Kinds = Literal["EMAIL", "IBAN", "CARD", "IP", "SSN", "PHONE"]


class TextOperatorSpec(OperatorSpec):
    """What all operators on texts have in common."""

    of: Literal["captions", "text"] = "captions"
    """The captions of a record, or its document."""


class NormaliseTextSpec(TextOperatorSpec):
    """Even out Unicode forms, control characters, spaces and empty lines."""

    kind: Literal["normalise-text"] = "normalise-text"
    form: Literal["NFC", "NFKC"] = "NFC"
    """Unicode's normal form; NFKC also joins ligatures, full-width letters and the like."""
    quotes: bool = True
    """Typographic quotation marks become plain ones."""


class DetectLanguageSpec(TextOperatorSpec):
    """Leave out what is in another language."""

    kind: Literal["detect-language"] = "detect-language"
    of: Literal["captions", "text"] = "text"
    """A document gets its language as a column; a caption must be in the one it declares."""
    keep: tuple[str, ...] = ()
    """ISO 639-1 codes of the languages that are kept; all by default."""
    min_confidence: float = Field(default=0.5, ge=0, le=1)
    """Probability below which a text counts as in no language; a caption is believed then."""
    min_words: int = Field(default=5, ge=1)
    """Words below which a caption is believed."""


class RemovePiiSpec(TextOperatorSpec):
    """Replace personal data by its kind: `[EMAIL]`."""

    kind: Literal["remove-pii"] = "remove-pii"
    kinds: tuple[Kinds, ...] = ("EMAIL", "IBAN", "CARD", "IP", "SSN", "PHONE")
    """What is removed; numbers with a checksum only where it is right."""


class TextQualitySpec(TextOperatorSpec):
    """Leave out texts that are no prose (Rae et al. 2021, appendix A1.1)."""

    kind: Literal["text-quality"] = "text-quality"
    of: Literal["captions", "text"] = "text"
    """The captions of a record, or its document."""
    min_words: int = Field(default=50, ge=0)
    """Least words."""
    max_words: int = Field(default=100_000, ge=1)
    """Most words."""
    mean_word_length: tuple[float, float] = (3, 10)
    """Least and greatest mean length of words, in characters."""
    max_symbol_share: float = Field(default=0.1, ge=0)
    """Greatest ratio of `#` and `…` to words."""
    min_alphabetic_share: float = Field(default=0.8, ge=0, le=1)
    """Least share of words with a letter."""
    max_repeated_line_share: float = Field(default=0.3, ge=0, le=1)
    """Greatest share of lines that came before."""
    max_top_phrase_share: float = Field(default=0.2, ge=0, le=1)
    """Greatest share of characters in the most frequent phrase of three words."""


def normalise_text(spec: NormaliseTextSpec, preparation: Preparation) -> Apply:
    """Texts evened out; a caption of which nothing is left goes."""
    from ..media.cleaning import clean

    return _each(spec, lambda text, refuse: clean(text, spec.form, spec.quotes) or None)


def detect_language(spec: DetectLanguageSpec, preparation: Preparation) -> Apply:
    """Sets `language` of a document, and leaves out what is in none that is kept."""
    from ..media.cleaning import identify_language, language_identifier

    language_identifier()  # loaded before the first record

    def judge(language: str, confidence: float) -> None:
        if confidence < spec.min_confidence:
            message = f"no language is likely: {language} with {confidence:.2f}"
            raise Refused("unknown-language", message, wanted=True)
        if spec.keep and language not in spec.keep:
            raise Refused("other-language", f"the text is in {language} ({confidence:.2f})", wanted=True)

    def apply(row: Row, refuse: Refuse) -> Row | None:
        if spec.of == "text":
            if row["text"] is None:
                return {"language": None}
            language, confidence = identify_language(row["text"])
            judge(language, confidence)
            return {"language": language}
        kept: list[Row] = []
        for caption in row["captions"]:
            said = caption["language"].partition("_")[0].partition("@")[0]
            if len(caption["text"].split()) >= spec.min_words:
                found, confidence = identify_language(caption["text"])
                if confidence >= spec.min_confidence and found != said:
                    message = f"the caption is in {found} ({confidence:.2f}), not in {caption['language']}"
                    refuse(Refused("other-language", message, wanted=True), row["id"])
                    continue
            if not spec.keep or said in spec.keep:
                kept.append(caption)
        return {"captions": kept}

    return apply


def remove_pii(spec: RemovePiiSpec, preparation: Preparation) -> Apply:
    """Texts without personal data, and how much of it there was."""
    from ..media.cleaning import remove_pii as remove

    kinds = frozenset(spec.kinds)

    def apply(row: Row, refuse: Refuse) -> Row:
        total = 0

        def replace(text: str, refuse: Refuse) -> str:
            nonlocal total
            cleaned, count = remove(text, kinds)
            total += count
            return cleaned

        given = _each(spec, replace)(row, refuse)
        assert isinstance(given, dict)
        return {**given, f"{spec.of}_pii": total}

    return apply


def text_quality(spec: TextQualitySpec, preparation: Preparation) -> Apply:
    """Leaves out a document, or a caption, that breaks one of the rules."""
    from ..media.cleaning import measure

    def judge(text: str) -> None:
        found = measure(text)
        shortest, longest = spec.mean_word_length
        rules = (
            (found.words >= spec.min_words, f"{found.words} words, at least {spec.min_words}"),
            (found.words <= spec.max_words, f"{found.words} words, at most {spec.max_words}"),
            (
                shortest <= found.mean_word_length <= longest,
                f"words of {found.mean_word_length:.1f} characters, {shortest:g} to {longest:g}",
            ),
            (found.symbol_share <= spec.max_symbol_share, f"{found.symbol_share:.2f} symbols a word"),
            (found.alphabetic_share >= spec.min_alphabetic_share, f"{found.alphabetic_share:.0%} words"),
            (
                found.repeated_line_share <= spec.max_repeated_line_share,
                f"{found.repeated_line_share:.0%} of its lines came before",
            ),
            (
                found.top_phrase_share <= spec.max_top_phrase_share,
                f"one phrase makes up {found.top_phrase_share:.0%}",
            ),
        )
        for holds, message in rules:
            if not holds:
                raise Refused("low-quality-text", f"the text is no prose: {message}", wanted=True)

    def check(text: str, refuse: Refuse) -> str | None:
        try:
            judge(text)
        except Refused as refused:
            if spec.of == "text":
                raise
            refuse(refused, "caption")
            return None
        return text

    return _each(spec, check)


def _each(spec: TextOperatorSpec, change: Callable[[str, Refuse], str | None]) -> Apply:
    """Apply a change to the document, or to every caption; None leaves a caption out."""

    def apply(row: Row, refuse: Refuse) -> Row:
        if spec.of == "text":
            return {"text": None if row["text"] is None else change(row["text"], refuse)}
        changed = [(caption["language"], change(caption["text"], refuse)) for caption in row["captions"]]
        return {"captions": [{"language": one, "text": text} for one, text in changed if text is not None]}

    return apply


def _needs(spec: TextOperatorSpec) -> tuple[str, ...]:
    return (spec.of,)


NORMALISE = Operator(
    spec=NormaliseTextSpec,
    summary="even out Unicode forms, control characters, spaces and empty lines",
    needs=_needs,
    gives=_needs,
    start=normalise_text,
)
DETECT = Operator(
    spec=DetectLanguageSpec,
    summary="find a document's language, and leave out others",
    needs=_needs,
    gives=lambda spec: ("language",) if spec.of == "text" else ("captions",),
    start=detect_language,
)
REMOVE_PII = Operator(
    spec=RemovePiiSpec,
    summary="replace personal data by its kind",
    needs=_needs,
    gives=_needs,
    own=lambda spec: {f"{spec.of}_pii": "int32"},
    start=remove_pii,
)
QUALITY = Operator(
    spec=TextQualitySpec,
    summary="leave out texts that are no prose",
    needs=_needs,
    gives=_needs,
    start=text_quality,
)
