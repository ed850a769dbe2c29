"""Cleaning and judging texts."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eagleray.pipelines.media.cleaning import PII, clean, identify_language, measure, remove_pii

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
        ("call 212-555-0147 now", "call [PHONE] now"),
        ("a@b.de and c@d.fr", "[EMAIL] and [EMAIL]"),
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
    ],
)
def test_numbers_that_are_no_personal_data_stay(text):
    assert remove_pii(text, ALL) == (text, 0)


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
    found = measure("One two three\nOne two three\n## 12 …")
    assert found.words == 9
    assert found.repeated_line_share == pytest.approx(1 / 3)
    assert found.symbol_share == pytest.approx(3 / 9)
    assert found.alphabetic_share == pytest.approx(6 / 9)
    assert found.top_phrase_share == pytest.approx(2 * len("One two three") / 35)
    assert measure("").words == 0
