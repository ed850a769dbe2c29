"""Documents are read in segments, and the sentences that told are named."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eagleray.pipelines.assessing.documents import LONGEST, DocumentAssessor, sentences
from eagleray.pipelines.assessing.spec import NotAssessable
from eagleray.pipelines.bundle import Reading
from eagleray.pipelines.media.text import train_tokenizer

TOKENIZER = train_tokenizer(["profit rose oil fell nothing here at all ."] * 9, 320)


class Bundle:
    """Says profit where there is the word, oil where there is that one; all segments count alike."""

    tokenizer = TOKENIZER
    info = SimpleNamespace(document=Reading(length=12, overlap=4), classes=("oil", "profit"))

    def run(self, graph, feed):
        tokens, mask = feed["tokens"], feed["token_mask"]
        assert tokens.shape[1] == 12
        evidence = np.zeros((*tokens.shape, 2), np.float32)
        for number, word in enumerate(self.info.classes):
            (token,) = TOKENIZER.encode(word).ids
            evidence[..., number] = (tokens == token) & mask
        return {"evidence": evidence, "scores": np.where(mask.any(axis=1), 0, -1e4).astype(np.float32)}


ASSESSOR = DocumentAssessor(Bundle())


def test_the_sentence_that_told_is_named_with_its_place():
    text = "Nothing here at all. Here profit rose.\nAll fell."
    found = ASSESSOR.assess(text)
    assert found.category == "profit"
    assert found.probabilities["profit"] > found.probabilities["oil"]
    assert [one.text for one in found.evidence] == ["Here profit rose."]
    assert text[found.evidence[0].start :].startswith("Here profit rose.")
    assert found.evidence[0].share == pytest.approx(1)


def test_evidence_of_a_long_document_is_found_wherever_it_is():
    text = "Nothing here at all. " * 200 + "Here oil fell. " + "Nothing here at all. " * 300
    found = ASSESSOR.assess(text)
    assert found.category == "oil"
    assert found.segments == -(-(found.tokens + 2 - 4) // 8)
    assert found.evidence[0].text == "Here oil fell."


@pytest.mark.parametrize("text", ["", " ", "all"])
def test_a_text_of_next_to_nothing_is_not_assessed(text):
    found = ASSESSOR.assess(text)
    assert isinstance(found, NotAssessable)
    assert found.reason == "too-short"


@given(st.text(st.sampled_from("ab .\n!?\t"), max_size=300))
def test_sentences_follow_each_other_and_hold_every_word(text):
    spans = list(sentences(text))
    assert "".join("".join(text[start:end].split()) for start, end in spans) == "".join(text.split())
    assert all(one[1] <= other[0] for one, other in pairwise(spans))


def test_a_text_without_full_stops_is_told_in_parts():
    spans = list(sentences("word " * (2 * LONGEST + 1)))
    assert len(spans) == 3
