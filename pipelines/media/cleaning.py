"""Cleaning and judging texts: pure functions."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address
from typing import TYPE_CHECKING, Literal

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


def _luhn(number: str) -> bool:
    """ISO/IEC 7812-1, annex B."""
    digits = [int(one) for one in re.sub(r"\D", "", number)][::-1]
    doubled = [sum(divmod(2 * one, 10)) for one in digits[1::2]]
    return 13 <= len(digits) <= 19 and (sum(digits[::2]) + sum(doubled)) % 10 == 0


def _iban(number: str) -> bool:
    """ISO 13616: letters count from 10, the first four characters go to the end, the rest of 97 is 1."""
    plain = re.sub(r"\s", "", number).upper()
    moved = plain[4:] + plain[:4]
    return 15 <= len(plain) <= 34 and int("".join(str(int(one, 36)) for one in moved)) % 97 == 1


def _ip(address: str) -> bool:
    try:
        return not ip_address(address).is_unspecified
    except ValueError:
        return False


def _phone(number: str) -> bool:
    """Seven to fifteen digits (E.164), and written as people write a telephone number: no date, no amount."""
    digits = re.sub(r"\D", "", number)
    dated = re.fullmatch(
        r"(?:\d{4}[-./ ]\d{1,2}[-./ ]\d{1,2}|\d{1,2}[-./ ]\d{1,2}[-./ ]\d{2,4})", number.strip()
    )
    return 7 <= len(digits) <= 15 and dated is None


@dataclass(frozen=True)
class Pii:
    """A kind of personal data.

    Attributes:
        name: stands for what was removed: `[EMAIL]`.
        pattern: what it may look like.
        check: whether it is one.
    """

    name: str
    pattern: re.Pattern[str]
    check: Callable[[str], bool] = lambda found: True


PII: tuple[Pii, ...] = (
    Pii("EMAIL", re.compile(r"[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}")),
    Pii("IBAN", re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"), _iban),
    Pii("CARD", re.compile(r"(?<![\d.])\d(?:[ -]?\d){12,18}(?!\.?\d)"), _luhn),
    Pii("IP", re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?!\.?\d)"), _ip),
    Pii("SSN", re.compile(r"(?<![\d-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\d-])")),
    # With a country code, with the area in brackets, or in three groups as in North America.
    Pii(
        "PHONE",
        re.compile(
            r"(?<![\w.])(?:\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]?\d{2,4}){1,4}"
            r"|\(\d{2,4}\)[ .-]?\d{3,4}[ .-]?\d{3,4}|\d{3}[.-]\d{3}[.-]\d{4})(?![\w.]*\d)"
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
            if not one.check(match[0]):
                return match[0]
            count += 1
            return f"[{one.name}]"

        text = one.pattern.sub(replace, text)
    return text, count


@dataclass(frozen=True)
class TextMeasures:
    """What quality is judged by (Rae et al. 2021, appendix A1.1).

    Attributes:
        words: how many.
        mean_word_length: in characters.
        symbol_share: of `#` and `…` to words.
        alphabetic_share: of words with a letter in them.
        repeated_line_share: of lines that came before.
        top_phrase_share: of characters in the most frequent phrase of three words, if it comes twice.
    """

    words: int
    mean_word_length: float
    symbol_share: float
    alphabetic_share: float
    repeated_line_share: float
    top_phrase_share: float


def measure(text: str) -> TextMeasures:
    """Measure a text; one without words has nothing to be judged by but that."""
    words = text.split()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    count = max(1, len(words))
    phrases = Counter(" ".join(words[i : i + 3]) for i in range(len(words) - 2))
    phrase, times = phrases.most_common(1)[0] if phrases else ("", 0)
    return TextMeasures(
        words=len(words),
        mean_word_length=sum(map(len, words)) / count,
        symbol_share=(text.count("#") + text.count("…") + text.count("...")) / count,
        alphabetic_share=sum(any(one.isalpha() for one in word) for word in words) / count,
        repeated_line_share=1 - len(set(lines)) / max(1, len(lines)),
        top_phrase_share=len(phrase) * times / max(1, len(text)) if times > 1 else 0.0,
    )
