"""Cleaning and judging texts: pure functions."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\u2060\ufeff]")
_SPACES = re.compile(r"[^\S\n]+")
_NEWLINES = re.compile(r"\s*\n\s*\n\s*")
_QUOTES = str.maketrans(dict.fromkeys("‘’‚‛", "'") | dict.fromkeys("“”„‟", '"'))


def clean(text: str, form: Literal["NFC", "NFKC"], quotes: bool) -> str:
    """Even out what says the same: Unicode forms, control and invisible characters, spaces, empty lines.

    Args:
        text: any.
        form: Unicode's normal form; NFKC also joins ligatures, full-width letters and the like.
        quotes: typographic quotation marks become plain ones.
    """
    text = _CONTROL.sub("", unicodedata.normalize(form, text.replace("\r\n", "\n").replace("\r", "\n")))
    if quotes:
        text = text.translate(_QUOTES)
    lines = (_SPACES.sub(" ", line).strip() for line in text.split("\n"))
    return _NEWLINES.sub("\n\n", "\n".join(lines)).strip()


@lru_cache(maxsize=1)
def language_identifier() -> LanguageIdentifier:
    """The identifier, loaded once in a process (1.1 s)."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def identify_language(text: str) -> tuple[str, float]:
    """ISO 639-1 code of the most probable language, of 97, and its probability (Lui and Baldwin 2012)."""
    language, confidence = language_identifier().classify(text)
    return str(language), float(confidence)


def _card(number: str) -> int:
    """Of a network that issues cards, and with the check digit of ISO/IEC 7812-1, annex B."""
    plain = re.sub(r"\D", "", number)
    digits = [int(one) for one in plain[::-1]]
    doubled = [sum(divmod(2 * one, 10)) for one in digits[1::2]]
    return len(number) if _ISSUED.fullmatch(plain) and (sum(digits[::2]) + sum(doubled)) % 10 == 0 else 0


def _iban(number: str) -> int:
    """ISO 13616: letters count from 10, the first four characters go to the end, the rest of 97 is 1.

    The word after one may look like a part of it: the longest of its beginnings that is one counts.
    """
    for end in (len(number), *(match.start() for match in reversed(list(re.finditer(" ", number))))):
        plain = number[:end].replace(" ", "")
        moved = plain[4:] + plain[:4]
        if 15 <= len(plain) <= 34 and int("".join(str(int(one, 36)) for one in moved)) % 97 == 1:
            return end
    return 0


def _ip(address: str) -> int:
    """An address that could be someone's; of version 6, so many groups that it is nothing else."""
    try:
        found = ip_address(address)
    except ValueError:
        return 0
    enough = found.version == 4 or len([group for group in address.split(":") if group]) > 2
    return len(address) if enough and not found.is_unspecified else 0


def _phone(number: str) -> int:
    """Eight to fifteen digits, eleven in North America and Russia (E.164), that are no amount and no date."""
    digits = re.sub(r"\D", "", number)
    least, most = (11, 11) if number.startswith(("+1", "+7")) else (8, 15)
    return len(number) if least <= len(digits) <= most and not _NO_PHONE.search(number) else 0


# A decimal number, an amount in groups of three, a date.
_NO_PHONE = re.compile(
    r"^\+\d+\.\d+$|^\+\d{1,3}(\.\d{3})+$|^\+\d{1,3}( \d{3}){1,2}$|^\+\d{1,3}( \d{3})+\.\d{1,2}$"
    r"|\d{4}[-./ ]\d{2}[-./ ]\d{2}(?!\d)|(?<!\d)\d{1,2}[-./ ]\d{1,2}[-./ ](19|20)\d\d(?!\d)"
)
_ISSUED = re.compile(
    r"4\d{12}(\d{3}){0,2}|(5[1-5]|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12,14}|3[47]\d{13}"
    r"|3(0[0-5]|[689]\d)\d{11}|35\d{14}|6(011|22\d|4[4-9]\d|5\d\d)\d{12}"
)


@dataclass(frozen=True)
class Pii:
    """A kind of personal data.

    Attributes:
        name: stands for what was removed: `[EMAIL]`.
        pattern: what it may look like.
        check: how many characters of that are one, from its beginning; 0 for none.
    """

    name: str
    pattern: re.Pattern[str]
    check: Callable[[str], int] = len


PII: tuple[Pii, ...] = (
    # Nothing of a pattern is unbounded: a megabyte without a space must not take hours.
    Pii(
        "EMAIL",
        re.compile(
            r"(?<![\w.%+-])[\w.%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9-])"
        ),
    ),
    Pii("IBAN", re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"), _iban),
    Pii(
        "CARD",
        re.compile(
            r"(?<![\d.,-])(?:(?:\d{4}[ -]){3}\d{1,7}|3\d{3}[ -]\d{6}[ -]\d{4,5}|\d{13,19})(?![.,-]?\d)"
        ),
        _card,
    ),
    Pii(
        "IP",
        re.compile(
            r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?!\.?\d)"
            r"|(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])"
        ),
        _ip,
    ),
    Pii("SSN", re.compile(r"(?<![\d-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\d-])")),
    Pii(
        "PHONE",
        re.compile(
            r"(?<![\w.,-])(?:"
            # With a country's code (ITU-T E.164, list of 2016).
            r"\+(?:[17]|2[07]|3[0-469]|4[013-9]|5[1-8]|6[0-6]|8[1246]|9[0-58]"
            r"|(?:2[1-689]|3[578]|42|5[09]|6[7-9]|8[0578]|9[679])\d)"
            r"(?:\d{7,12}|(?:[ .-]?\(\d{1,4}\)[ .-]?|[ .-](?!0)|(?<=39)[ .-])\d{1,4}(?:[ .-]?\d{2,4}){1,4})"
            # With the area in brackets: in North America, or with the 0 that is dialled within a country.
            r"|\([2-9]\d{2}\) ?\d{3}[.-]\d{4}|\(0\d{1,4}\) ?\d{2,4}(?:[ -]?\d{2,4}){1,3}"
            # In three groups, as in North America.
            r"|(?:1[.-])?[2-9]\d{2}([.-])\d{3}\1\d{4}"
            r")(?![\w.,-]?\d)"
        ),
        _phone,
    ),
)


def remove_pii(text: str, kinds: frozenset[str]) -> tuple[str, int]:
    """Replace personal data by its kind in brackets; also gives how many there were.

    Args:
        text: any.
        kinds: names in `PII`.
    """
    count = 0
    for one in PII:
        if one.name not in kinds:
            continue

        def replace(match: re.Match[str], one: Pii = one) -> str:
            nonlocal count
            end = one.check(match[0])
            count += end > 0
            return f"[{one.name}]{match[0][end:]}" if end else match[0]

        text = one.pattern.sub(replace, text)
    return text, count


TOP_PHRASES = (2, 3, 4)
REPEATED_PHRASES = (5, 6, 7, 8, 9, 10)
STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
_BULLETS = ("•", "‣", "◦", "▪", "■", "●", "*", "-", "–")
_ELLIPSES = ("…", "...")


@dataclass(frozen=True)
class TextMeasures:
    """What quality is judged by (Rae et al. 2021, appendix A1.1).

    Attributes:
        characters, words: how many.
        mean_word_length: in characters.
        symbol_share: of `#` or of ellipses, whichever are more, to words.
        alphabetic_share: of words with a letter in them.
        stop_words: how many different ones of `STOP_WORDS` there are.
        bullet_line_share: of lines that begin with a bullet.
        ellipsis_line_share: of lines that end with an ellipsis.
        repeated_line_share: of lines that came before.
        repeated_line_characters: share of characters in lines that came before.
        repeated_paragraph_share: of paragraphs that came before.
        repeated_paragraph_characters: share of characters in paragraphs that came before.
        top_phrase_shares: of characters in the most frequent phrase of 2, 3 and 4 words, if it comes twice.
        repeated_phrase_shares: of characters in phrases of 5 to 10 words that came before.
    """

    characters: int
    words: int
    mean_word_length: float
    symbol_share: float
    alphabetic_share: float
    stop_words: int
    bullet_line_share: float
    ellipsis_line_share: float
    repeated_line_share: float
    repeated_line_characters: float
    repeated_paragraph_share: float
    repeated_paragraph_characters: float
    top_phrase_shares: tuple[float, ...]
    repeated_phrase_shares: tuple[float, ...]


def measure(text: str) -> TextMeasures:
    """Measure a text; what there is none of has a share of 0."""
    words = text.split()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    paragraphs = [one.strip() for one in re.split(r"\n[^\S\n]*\n", text) if one.strip()]
    line_share, line_characters = _repeated(lines)
    paragraph_share, paragraph_characters = _repeated(paragraphs)
    top, repeated = _phrases(words)
    num_words, num_lines = max(1, len(words)), max(1, len(lines))
    return TextMeasures(
        characters=len(text),
        words=len(words),
        mean_word_length=sum(map(len, words)) / num_words,
        symbol_share=max(text.count("#"), sum(map(text.count, _ELLIPSES))) / num_words,
        alphabetic_share=sum(any(map(str.isalpha, word)) for word in words) / num_words,
        stop_words=len(STOP_WORDS.intersection(map(str.lower, words))),
        bullet_line_share=sum(line.startswith(_BULLETS) for line in lines) / num_lines,
        ellipsis_line_share=sum(line.endswith(_ELLIPSES) for line in lines) / num_lines,
        repeated_line_share=line_share,
        repeated_line_characters=line_characters,
        repeated_paragraph_share=paragraph_share,
        repeated_paragraph_characters=paragraph_characters,
        top_phrase_shares=top,
        repeated_phrase_shares=repeated,
    )


def _repeated(parts: list[str]) -> tuple[float, float]:
    """Share of parts that came before, and of the characters in them."""
    if not parts:
        return 0.0, 0.0
    different = set(parts)
    return 1 - len(different) / len(parts), 1 - sum(map(len, different)) / sum(map(len, parts))


def _phrases(words: list[str]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Shares of characters: in the most frequent phrases, and in those that came before."""
    numbers: dict[str, int] = {}
    words_as_numbers = np.array([numbers.setdefault(word, len(numbers)) for word in words], np.int64)
    lengths = np.array([len(word) for word in words], np.int64)

    def share(starts: NDArray[np.bool_], size: int) -> float:
        """Of characters in the phrases that start there; those in two of them count once."""
        edges = np.zeros(len(words) + 1, np.int64)
        edges[:-1][: len(starts)] += starts
        edges[size:] -= starts
        return float(lengths[np.cumsum(edges[:-1]) > 0].sum() / lengths.sum())

    top: dict[int, float] = dict.fromkeys(TOP_PHRASES, 0.0)
    repeated: dict[int, float] = dict.fromkeys(REPEATED_PHRASES, 0.0)
    phrases = words_as_numbers
    for size in range(2, min(max(REPEATED_PHRASES), len(words)) + 1):
        # A phrase is the one that is a word shorter, and its last word.
        pairs = phrases[:-1] * len(numbers) + words_as_numbers[size - 1 :]
        _, first, phrases, counts = np.unique(
            pairs, return_index=True, return_inverse=True, return_counts=True
        )
        if size in top and counts.max() > 1:
            top[size] = share(phrases == counts.argmax(), size)
        if size in repeated:
            came_before = np.ones(len(phrases), np.bool_)
            came_before[first] = False
            repeated[size] = share(came_before, size)
    return tuple(top.values()), tuple(repeated.values())
