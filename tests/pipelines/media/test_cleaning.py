"""Cleaning and judging texts."""

from __future__ import annotations

import time
import unicodedata
from datetime import date

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eagleray.pipelines.media.cleaning import (
    PII,
    REPEATED_PHRASES,
    TOP_PHRASES,
    clean,
    identify_language,
    measure,
    remove_pii,
)

ALL = frozenset(one.name for one in PII)


@given(st.text(), st.sampled_from(["NFC", "NFKC"]))
def test_cleaning_twice_changes_nothing(text, form):
    once = clean(text, form, True)
    assert clean(once, form, True) == once
    assert unicodedata.is_normalized(form, once)
    assert once == once.strip()


def test_what_is_evened_out():
    assert clean("\ufeffA\u00a0 b\x00\r\n\r\n\r\n c\u200b “d” ", "NFC", True) == 'A b\n\nc "d"'
    assert clean("“d”", "NFC", False) == "“d”"
    assert clean("ﬁne", "NFKC", True) == "fine"
    assert clean("cafe\u0301", "NFC", True) == "café"


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("write to ann.b+c@mail.example.org, please", "write to [EMAIL], please"),
        ("card 4111 1111 1111 1111.", "card [CARD]."),
        ("IBAN DE89 3704 0044 0532 0130 00 it is", "IBAN [IBAN] it is"),
        ("from 192.168.10.254 at", "from [IP] at"),
        ("SSN 123-45-6789!", "SSN [SSN]!"),
        ("call +49 30 901820 now", "call [PHONE] now"),
        ("call (212) 555-0147 now", "call [PHONE] now"),
        ("call +4930901820 or +12125550147 now", "call [PHONE] or [PHONE] now"),
        ("call 212-555-0147 now", "call [PHONE] now"),
        ("a@b.de and c@d.fr", "[EMAIL] and [EMAIL]"),
        ("<jörg@example.com>; bo@x.co.uk.", "<[EMAIL]>; [EMAIL]."),
        ("Amex 3782 822463 10005, 5555555555554444", "Amex [CARD], [CARD]"),
        ("card 4111-1111-1111-1111 123", "card [CARD] 123"),
        ("to BE68 5390 0754 7034 PAID", "to [IBAN] PAID"),
        ("GB82WEST12345698765432", "[IBAN]"),
        ("NO93 8601 1117 947 and FR14 2004 1010 0505 0001 3M02 606", "[IBAN] and [IBAN]"),
        ("host 2001:db8::ff00:42:8329 is up", "host [IP] is up"),
        ("call 1-800-555-0147 or (030) 90 18 20", "call [PHONE] or [PHONE]"),
        (
            "+1 (212) 555-0147; +44 20 7946 0958; +33.1.23.45.67.89; +39 06 6982",
            "[PHONE]; [PHONE]; [PHONE]; [PHONE]",
        ),
    ],
)
def test_personal_data_goes(text, cleaned):
    assert remove_pii(text, ALL) == (cleaned, cleaned.count("["))


@pytest.mark.parametrize(
    "text",
    [
        "On 2024-05-17 and 17.05.2024 it cost $1,234,567.89.",
        "Revenue rose from 4,512 to 5,120 million (13.5%) in 2019-2020.",
        "card 4111 1111 1111 1112",
        "DE89 3704 0044 0532 0130 01",
        "version 1.2.3 and 1.2.3.4.5, section 10.1.2",
        "ISBN 978-3-16-148410-0",
        "@home at 5 p.m., 3 x 4 = 12",
        "000-12-3456 and 900-12-3456",
        "a ratio of 1:1000000 and 0.0000001",
        "Net loss (123) 456 789 and (212) 555 2019",  # three columns of a table
        "It grew by +1.2345678 or +12 345 678, +1.234.567.890 in all.",
        "from +554 11-10-1996 and +5 380 2000-10-11 to +5 128 700 542 and +1 234 567 890",
        "EIN 94-2404110, file 001-36743, accession 0000320193-19-000119, ZIP 95014-2083",
        "EAN 4006381333931, at 1700000000000 ms, order 0000000000000000",
        "at 12:30:45, MAC aa:bb:cc:dd:ee:ff, std::vector and a::b",
        "7 of 10, 3-4-5, 1/2/3, 10.12.2019-11.12.2019, 2019-01-01T10:00:00+01:00",
    ],
)
def test_numbers_that_are_no_personal_data_stay(text):
    assert remove_pii(text, ALL) == (text, 0)


dates = st.builds(
    lambda day, form: day.strftime(form),
    st.dates(min_value=date(1900, 1, 1)),
    st.sampled_from(
        [
            "%Y-%m-%d",
            "%d.%m.%Y",
            "%m/%d/%Y",
            "%d-%m-%Y",
            "%d %m %Y",
            "%Y %m %d",
            "%B %d, %Y",
            "%Y%m%d",
            "%d/%m/%y",
        ]
    ),
)
amounts = st.builds(
    lambda number, cents, form: form(number) + cents,
    st.integers(0, 10**12),
    st.sampled_from(["", ".5", ".99", ",99", " %", " €"]),
    st.sampled_from(
        [
            str,
            lambda number: f"{number:,}",
            lambda number: f"${number:,}",
            lambda number: f"({number:,})",
            lambda number: f"-{number:,}",
            lambda number: f"+{number % 10**9:,}".replace(",", " ") + " m",  # "+44 123 456 789" may be either
            lambda number: f"{number % 10**9:,}".replace(",", "."),  # "1.100.100.100" may be an address
            lambda number: f"{number:,}".replace(",", "\u00a0"),
            lambda number: f"EUR {number:,}".replace(",", "'"),
        ]
    ),
).filter(lambda text: text.count(".") < 3)  # "20.253.100.5" is an address


@given(st.lists(dates | amounts, min_size=1, max_size=4), st.sampled_from([" ", ", ", "\t", " to ", "; "]))
@settings(max_examples=400)
def test_dates_and_amounts_stay(parts, between):
    text = between.join(parts)
    assert remove_pii(text, ALL) == (text, 0)


@pytest.mark.parametrize(
    "unit", ["a", "1", "1 ", "+1", "1.", "a.", "A1", ":", "1:", "a@", "(0", "AB12 ", "\n "]
)
def test_hostile_texts_take_no_longer_than_others(unit):
    """A pattern that goes back over what it has seen would take hours."""
    text = unit * (1_000_000 // len(unit))
    started = time.perf_counter()
    remove_pii(text, ALL)
    clean(text, "NFC", True)
    assert time.perf_counter() - started < 5


@given(st.text())
def test_what_was_removed_is_gone(text):
    once, _ = remove_pii(text, ALL)
    assert remove_pii(once, ALL) == (once, 0)


def test_only_the_wanted_kinds_go():
    assert remove_pii("a@b.de 192.168.0.1", frozenset({"IP"})) == ("a@b.de [IP]", 1)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The quick brown fox jumps over the lazy dog in the garden.", "en"),
        ("El zorro marrón salta sobre el perro perezoso en el jardín.", "es"),
        ("Le renard brun saute par-dessus le chien paresseux du jardin.", "fr"),
        ("Der braune Fuchs springt über den faulen Hund im Garten.", "de"),
        ("Бурая лиса прыгает через ленивую собаку в саду.", "ru"),
    ],
)
def test_languages_are_told_apart(text, language):
    found, confidence = identify_language(text)
    assert found == language
    assert 0.5 < confidence <= 1


def test_what_is_measured():
    found = measure("One two three\nOne two three\n## 12 …\n\n- to and THE\n\n- to and THE")
    assert (found.words, found.characters) == (17, 63)
    assert found.symbol_share == pytest.approx(2 / 17)
    assert found.alphabetic_share == pytest.approx(12 / 17)
    assert found.stop_words == 3
    assert found.bullet_line_share == pytest.approx(2 / 5)
    assert found.ellipsis_line_share == pytest.approx(1 / 5)
    assert found.repeated_line_share == pytest.approx(2 / 5)
    assert found.repeated_line_characters == pytest.approx((13 + 12) / (13 + 13 + 7 + 12 + 12))
    assert found.repeated_paragraph_share == pytest.approx(1 / 3)


def test_of_nothing_every_share_is_nothing():
    found = measure(" \n ")
    assert found.words == 0
    assert set(found.top_phrase_shares + found.repeated_phrase_shares) == {0.0}
    assert found.repeated_line_share == found.repeated_paragraph_characters == found.symbol_share == 0


@given(st.lists(st.sampled_from(["a", "bb", "ccc", "dddd"]), min_size=1, max_size=60))
def test_phrases_are_measured_as_when_they_are_counted_one_by_one(words):
    found = measure(" ".join(words))
    total = sum(map(len, words))
    for size, share in zip(TOP_PHRASES, found.top_phrase_shares, strict=True):
        phrases = [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]
        most = max((phrases.count(phrase) for phrase in phrases), default=0)
        possible = [
            {i + j for i, other in enumerate(phrases) if other == phrase for j in range(size)}
            for phrase in set(phrases)
            if phrases.count(phrase) == most > 1
        ] or [set()]
        assert any(share == pytest.approx(sum(len(words[i]) for i in one) / total) for one in possible)
    for size, share in zip(REPEATED_PHRASES, found.repeated_phrase_shares, strict=True):
        phrases = [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]
        covered = {i + j for i, one in enumerate(phrases) if one in phrases[:i] for j in range(size)}
        assert share == pytest.approx(sum(len(words[i]) for i in covered) / total)
