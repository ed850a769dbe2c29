"""Operators on texts: on every caption of a record, or on its document."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
    """A document gets its language as a column; a caption has one that it declares."""
    keep: tuple[str, ...] = ()
    """ISO 639-1 codes of the languages that are kept; all by default."""
    verify: bool = True
    """Leave out captions in another language than they declare."""
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
    min_characters: int = Field(default=0, ge=0)
    """Least characters."""
    max_characters: int = Field(default=10_000_000, ge=1)
    """Most characters."""
    mean_word_length: tuple[float, float] = (3, 10)
    """Least and greatest mean length of words, in characters."""
    max_symbol_share: float = Field(default=0.1, ge=0)
    """Greatest ratio of `#`, and of ellipses, to words."""
    min_alphabetic_share: float = Field(default=0.8, ge=0, le=1)
    """Least share of words with a letter."""
    min_stop_words: int = Field(default=0, ge=0, le=8)
    """Least different ones of the, be, to, of, and, that, have, with; 2 is right for English."""
    max_bullet_line_share: float = Field(default=0.9, ge=0, le=1)
    """Greatest share of lines that begin with a bullet."""
    max_ellipsis_line_share: float = Field(default=0.3, ge=0, le=1)
    """Greatest share of lines that end with an ellipsis."""
    max_repeated_line_share: float = Field(default=0.3, ge=0, le=1)
    """Greatest share of lines that came before."""
    max_repeated_line_characters: float = Field(default=0.2, ge=0, le=1)
    """Greatest share of characters in such lines."""
    max_repeated_paragraph_share: float = Field(default=0.3, ge=0, le=1)
    """Greatest share of paragraphs that came before."""
    max_repeated_paragraph_characters: float = Field(default=0.2, ge=0, le=1)
    """Greatest share of characters in such paragraphs."""
    max_top_phrase_shares: tuple[float, float, float] = (0.2, 0.18, 0.16)
    """Greatest shares of characters in the most frequent phrase of 2, 3 and 4 words."""
    max_repeated_phrase_shares: tuple[float, float, float, float, float, float] = (
        0.15, 0.14, 0.13, 0.12, 0.11, 0.1,
    )  # fmt: skip
    """Greatest shares of characters in phrases of 5 to 10 words that came before."""


def normalise_text(spec: NormaliseTextSpec, preparation: Preparation) -> Apply:
    """Texts evened out; one of which nothing is left is refused."""
    from ..media.cleaning import clean

    def change(text: str) -> str:
        cleaned = clean(text, spec.form, spec.quotes)
        if not cleaned:
            raise Refused("empty-text", f"nothing is left of {text[:20]!r}")
        return cleaned

    return _each(spec, change)


def detect_language(spec: DetectLanguageSpec, preparation: Preparation) -> Apply:
    """Sets `language` of a document, and leaves out what is in none that is kept."""
    from ..media.cleaning import identify_language, language_identifier

    language_identifier()  # loaded before the first record

    def of_document(text: str) -> str:
        language, confidence = identify_language(text)
        if confidence < spec.min_confidence:
            message = f"no language is likely: {language} with {confidence:.2f}"
            raise Refused("unknown-language", message, wanted=True)
        if spec.keep and language not in spec.keep:
            raise Refused("other-language", f"the text is in {language} ({confidence:.2f})", wanted=True)
        return language

    def check_caption(caption: Row) -> None:
        declared: str = caption["language"]
        plain = declared.replace("-", "_").partition("_")[0].partition("@")[0]
        if spec.keep and plain not in spec.keep:
            raise Refused("other-language", f"the caption is declared to be in {declared}", wanted=True)
        if spec.verify and len(caption["text"].split()) >= spec.min_words:
            language, confidence = identify_language(caption["text"])
            if confidence >= spec.min_confidence and language != plain:
                message = f"the caption is in {language} ({confidence:.2f}), not in {declared}"
                raise Refused("other-language", message, wanted=True)

    def apply(row: Row, refuse: Refuse) -> Row:
        if spec.of == "text":
            return {"language": None if row["text"] is None else of_document(row["text"])}
        kept: list[Row] = []
        for caption in row["captions"]:
            try:
                check_caption(caption)
                kept.append(caption)
            except Refused as refused:
                refuse(refused, row["id"])
        return {"captions": kept}

    return apply


def remove_pii(spec: RemovePiiSpec, preparation: Preparation) -> Apply:
    """Texts without personal data, and how much of it there was."""
    from ..media.cleaning import remove_pii as remove

    kinds = frozenset(spec.kinds)

    def apply(row: Row, refuse: Refuse) -> Row:
        total = 0

        def change(text: str) -> str:
            nonlocal total
            cleaned, count = remove(text, kinds)
            total += count
            return cleaned

        given = _each(spec, change)(row, refuse)
        assert isinstance(given, dict)
        return {**given, f"{spec.of}_pii": total}

    return apply


def text_quality(spec: TextQualitySpec, preparation: Preparation) -> Apply:
    """Leaves out a document, or a caption, that breaks one of the rules."""
    from ..media.cleaning import REPEATED_PHRASES, TOP_PHRASES, measure

    def broken(text: str) -> Iterator[str]:
        """What is wrong with a text."""
        found = measure(text)
        shortest, longest = spec.mean_word_length
        for count, least, most, what in (
            (found.words, spec.min_words, spec.max_words, "words"),
            (found.characters, spec.min_characters, spec.max_characters, "characters"),
        ):
            if not least <= count <= most:
                yield f"it has {count} {what}, {least} to {most}"
        if not shortest <= found.mean_word_length <= longest:
            yield f"its words have {found.mean_word_length:.1f} characters, {shortest:g} to {longest:g}"
        if found.alphabetic_share < spec.min_alphabetic_share:
            yield f"{found.alphabetic_share:.0%} of its words have a letter"
        if found.stop_words < spec.min_stop_words:
            yield f"it has {found.stop_words} stop words, at least {spec.min_stop_words}"
        shares = [
            (found.symbol_share, spec.max_symbol_share, "as many symbols as words"),
            (found.bullet_line_share, spec.max_bullet_line_share, "of its lines have a bullet"),
            (found.ellipsis_line_share, spec.max_ellipsis_line_share, "of its lines end with an ellipsis"),
            (found.repeated_line_share, spec.max_repeated_line_share, "of its lines came before"),
            (
                found.repeated_line_characters,
                spec.max_repeated_line_characters,
                "of it are lines that came before",
            ),
            (
                found.repeated_paragraph_share,
                spec.max_repeated_paragraph_share,
                "of its paragraphs came before",
            ),
            (
                found.repeated_paragraph_characters,
                spec.max_repeated_paragraph_characters,
                "of it are paragraphs that came before",
            ),
        ]
        for size, share, most in zip(
            TOP_PHRASES, found.top_phrase_shares, spec.max_top_phrase_shares, strict=True
        ):
            shares.append((share, most, f"of it are one phrase of {size} words"))
        for size, share, most in zip(
            REPEATED_PHRASES, found.repeated_phrase_shares, spec.max_repeated_phrase_shares, strict=True
        ):
            shares.append((share, most, f"of it are phrases of {size} words that came before"))
        for share, most, what in shares:
            if share > most:
                yield f"{share:.0%} {what}, at most {most:.0%}"

    def change(text: str) -> str:
        for message in broken(text):
            raise Refused("low-quality-text", f"the text is no prose: {message}", wanted=True)
        return text

    return _each(spec, change)


def _each(spec: TextOperatorSpec, change: Callable[[str], str]) -> Apply:
    """Change the document, or every caption; one for which that raises `Refused` is left out."""

    def apply(row: Row, refuse: Refuse) -> Row:
        if spec.of == "text":
            return {"text": None if row["text"] is None else change(row["text"])}
        kept: list[Row] = []
        for caption in row["captions"]:
            try:
                kept.append({"language": caption["language"], "text": change(caption["text"])})
            except Refused as refused:
                refuse(refused, row["id"])
        return {"captions": kept}

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
