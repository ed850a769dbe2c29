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

PROSE = """The boat came back before noon with nothing in its nets, and the men who pulled it up the
beach said little. A child asked them where the fish had gone. Nobody answered her; one of them pointed at the
water, which was flat and very clear, so that you could count the stones on the bottom far out to where the
shelf drops off. In the village they had heard the engine stop and knew what that meant, for it had
been the same all week. By evening two families were packing their things."""


class Parts(list):
    """Notes what is refused."""

    def __call__(self, refused, address, content=None, whole=False):
        assert not whole
        self.append((refused.reason, refused.wanted))


def captions(*texts: str, language: str = "en") -> dict:
    return {"id": "r", "captions": [{"language": language, "text": text} for text in texts]}


def test_captions_and_documents_are_cleaned_alike():
    assert normalise_text(NormaliseTextSpec(), Preparation())(captions(" a  b"), Parts()) == {
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
    spec = DetectLanguageSpec(of="captions", verify=False)
    assert detect_language(spec, Preparation())(row, parts) == {"captions": row["captions"]}
    assert len(parts) == 1


@pytest.mark.parametrize("declared", ["de", "de_AT", "de-CH", "de_DE@euro"])
def test_of_what_a_caption_declares_the_language_counts(declared):
    row = captions("Der braune Fuchs springt über den faulen Hund im Garten.", language=declared)
    spec = DetectLanguageSpec(of="captions", keep=("de",))
    assert detect_language(spec, Preparation())(row, Parts()) == {"captions": row["captions"]}


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
        (PROSE + " # tags" * 20, "as many symbols"),
        (PROSE + " wait..." * 40, "as many symbols"),
        ("12 34 56 " * 40, "characters|words"),
        (PROSE + " 1917 1918" * 20, "have a letter"),
        (PROSE + " Donaudampfschiffahrtsgesellschaftskapitän" * 60, "its words have"),
        ("\n".join(f"- {line}" for line in PROSE.splitlines()), "a bullet"),
        ("\n".join(f"{line}..." for line in PROSE.split(". ")), "an ellipsis"),
        ("\n".join([*PROSE.splitlines(), *(f"{i}" for i in range(3)), *["Home"] * 9]), "lines came before"),
        (f"{PROSE}\n\n{PROSE}", "came before"),
        (" ".join([PROSE, PROSE]).replace("\n", " "), "phrases of 5 words that came before"),
        (PROSE + " order before tomorrow" * 12, "one phrase of 2 words"),
    ],
)
def test_what_is_no_prose_is_left_out_with_the_rule_it_breaks(text, why):
    apply = text_quality(TextQualitySpec(), Preparation())
    with pytest.raises(Refused, match=why) as refused:
        apply({"text": text}, Parts())
    assert (refused.value.reason, refused.value.wanted) == ("low-quality-text", True)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"max_words": 60}, "95 words, 50 to 60"),
        ({"min_characters": 1000}, "characters, 1000 to"),
        ({"max_characters": 100}, "characters, 0 to 100"),
        ({"min_stop_words": 8}, "6 stop words"),
    ],
)
def test_bounds_are_options(options, why):
    with pytest.raises(Refused, match=why):
        text_quality(TextQualitySpec(**options), Preparation())({"text": PROSE}, Parts())


@pytest.mark.parametrize("options", [{}, {"min_stop_words": 2}])
def test_prose_stays(options):
    assert text_quality(TextQualitySpec(**options), Preparation())({"text": PROSE}, Parts()) == {
        "text": PROSE
    }


def test_a_caption_that_is_left_out_is_refused_under_its_record():
    """None goes without a trace."""
    for apply, reason in (
        (text_quality(TextQualitySpec(of="captions", min_words=2), Preparation()), "low-quality-text"),
        (normalise_text(NormaliseTextSpec(), Preparation()), "empty-text"),
        (detect_language(DetectLanguageSpec(of="captions", keep=("de",)), Preparation()), "other-language"),
    ):
        refused = []
        row = captions("\u200b \x00")
        assert apply(row, lambda one, address, noted=refused: noted.append((one.reason, address))) == {
            "captions": []
        }
        assert refused == [(reason, "r")]


def test_an_empty_document_is_refused():
    with pytest.raises(Refused, match="nothing is left") as refused:
        normalise_text(NormaliseTextSpec(of="text"), Preparation())({"text": "\x00 \u200b"}, Parts())
    assert (refused.value.reason, refused.value.wanted) == ("empty-text", False)
