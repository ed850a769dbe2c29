"""Operators on texts."""

from __future__ import annotations

import pytest

from eagleray.pipelines.operators.text import (
    DetectLanguageSpec,
    NormaliseTextSpec,
    RemovePiiSpec,
    TextQualitySpec,
    detect_language,
    normalise_text,
    remove_pii,
    text_quality,
)
from eagleray.pipelines.quarantine import Refused
from eagleray.pipelines.spec import Preparation

PROSE = " ".join(f"The {noun} stood by the window and nobody knew why it was there." for noun in
                 ("chair", "lamp", "clock", "basket", "dog", "ladder", "vase", "drum"))  # fmt: skip


class Parts(list):
    """Notes what is refused."""

    def __call__(self, refused, address, content=None, whole=False):
        assert not whole
        self.append((refused.reason, refused.wanted))


def captions(*texts: str, language: str = "en") -> dict:
    return {"id": "r", "captions": [{"language": language, "text": text} for text in texts]}


def test_captions_and_documents_are_cleaned_alike():
    assert normalise_text(NormaliseTextSpec(), Preparation())(captions(" a  b", "\x00"), Parts()) == {
        "captions": [{"language": "en", "text": "a b"}]
    }
    apply = normalise_text(NormaliseTextSpec(of="text"), Preparation())
    assert apply({"text": " a  b"}, Parts()) == {"text": "a b"}
    assert apply({"text": None}, Parts()) == {"text": None}


def test_a_document_gets_its_language_or_is_left_out():
    apply = detect_language(DetectLanguageSpec(keep=("en",)), Preparation())
    assert apply({"text": PROSE}, Parts()) == {"language": "en"}
    with pytest.raises(Refused, match="the text is in de") as refused:
        apply({"text": "Der braune Fuchs springt über den faulen Hund im Garten."}, Parts())
    assert (refused.value.reason, refused.value.wanted) == ("other-language", True)


def test_a_caption_must_be_in_the_language_it_declares():
    parts = Parts()
    row = captions(PROSE, "Der braune Fuchs springt über den faulen Hund im Garten.", "Ein Fuchs.")
    given = detect_language(DetectLanguageSpec(of="captions"), Preparation())(row, parts)
    assert [one["text"] for one in given["captions"]] == [PROSE, "Ein Fuchs."]  # too short to tell
    assert parts == [("other-language", True)]


def test_personal_data_is_counted():
    apply = remove_pii(RemovePiiSpec(), Preparation())
    assert apply(captions("a@b.de", "x", "c@d.de e@f.de"), Parts()) == {
        "captions": [{"language": "en", "text": text} for text in ("[EMAIL]", "x", "[EMAIL] [EMAIL]")],
        "captions_pii": 3,
    }


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("Too short.", "2 words"),
        (PROSE + " #" * 40, "symbols"),
        ("12 34 56 " * 40, "characters|words"),
        ("\n".join(["the very same line of text again"] * 20), "came before"),
        ("order before tomorrow " * 60, "one phrase"),
    ],
)
def test_what_is_no_prose_is_left_out_with_the_rule_it_breaks(text, why):
    apply = text_quality(TextQualitySpec(), Preparation())
    with pytest.raises(Refused, match=why) as refused:
        apply({"text": text}, Parts())
    assert (refused.value.reason, refused.value.wanted) == ("low-quality-text", True)


def test_prose_stays():
    assert text_quality(TextQualitySpec(), Preparation())({"text": PROSE}, Parts()) == {"text": PROSE}
