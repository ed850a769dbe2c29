"""Sentiment by a word list."""

import pytest

from eagleray.pipelines.dictionaries import loughran_mcdonald
from eagleray.pipelines.operators.sentiment import (
    DictionarySentimentSpec,
    dictionary_sentiment,
    polarity,
)
from eagleray.pipelines.quarantine import Refused
from eagleray.pipelines.spec import Preparation
from eagleray.workflows.errors import EaglerayError

HEAD = "Word,Negative,Positive,Uncertainty,Litigious,Constraining\n"


@pytest.fixture
def folder(tmp_path):
    rows = "LOSS,2009,0,0,0,0\nGAIN,0,2009,0,0,0\nMAY,0,0,2009,0,0\nTHE,0,0,0,0,0\n"
    (tmp_path / "LM.csv").write_text(HEAD + rows)
    return tmp_path


def test_a_word_list_is_read_by_what_its_words_are(folder):
    assert loughran_mcdonald(folder) == {
        "loss": {"negative"},
        "gain": {"positive"},
        "may": {"uncertainty"},
    }


def test_a_word_list_that_is_none_is_refused(tmp_path):
    with pytest.raises(EaglerayError, match="can't be read"):
        loughran_mcdonald(tmp_path)
    (tmp_path / "LM.csv").write_text("Word,Negative\nLOSS,1\n")
    with pytest.raises(EaglerayError, match="can't be read"):
        loughran_mcdonald(tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a gain", (1, 0)),
        ("LOSS after loss", (0, 2)),
        ("not a gain", (0, 1)),
        ("no, it was never in any way a gain", (1, 0)),
        ("not a loss", (0, 1)),
        ("", (0, 0)),
    ],
)
def test_words_are_counted_and_a_negated_positive_one_is_negative(text, expected):
    assert polarity(text, frozenset({"gain"}), frozenset({"loss"})) == expected


def test_a_text_gets_the_category_that_outweighs(folder):
    apply = dictionary_sentiment(DictionarySentimentSpec(neutral=0.4), Preparation(), folder)

    def category(text):
        return apply({"text": text}, lambda *args: None)["category"]

    assert category("gain, gain, gain, loss") == "positive"
    assert category("gain, gain, loss") == "neutral"
    assert category("the loss") == "negative"
    assert category("the may") == "neutral"
    with pytest.raises(Refused, match="no text"):
        apply({"text": None}, lambda *args: None)
