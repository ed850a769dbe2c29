"""Captions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eagleray.pipelines.media import text
from eagleray.pipelines.spec import BOS, EOS, PAD, SPECIAL_TOKENS

CAPTIONS = ["A red frog.", "A blue frog.", "Una rana roja.", "Une grenouille.", "A red truck."] * 3
TOKENIZER = text.train_tokenizer(CAPTIONS, 320)


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=40))
def test_any_string_comes_back_from_its_tokens(caption):
    ids = TOKENIZER.encode(caption, add_special_tokens=False).ids
    assert TOKENIZER.decode(ids).removeprefix(" ") == TOKENIZER.normalizer.normalize_str(
        caption
    ).removeprefix(" ")


def test_training_does_not_depend_on_the_order_of_the_captions():
    assert text.train_tokenizer(reversed(CAPTIONS), 320).to_str() == TOKENIZER.to_str()


def test_special_tokens_have_their_places():
    assert [TOKENIZER.token_to_id(token) for token in SPECIAL_TOKENS] == [PAD, BOS, EOS]


def test_a_caption_cannot_smuggle_in_special_tokens():
    tokens, _ = text.encode(TOKENIZER, ["[EOS] frog"], 30)
    assert (tokens == EOS).sum() == 1


@given(st.lists(st.text(max_size=60), min_size=1, max_size=4), st.integers(4, 20))
def test_rows_run_from_bos_to_eos_and_then_pad(captions, max_tokens):
    tokens, mask = text.encode(TOKENIZER, captions, max_tokens)
    assert tokens.shape == mask.shape == (len(captions), max_tokens)
    lengths = mask.sum(axis=1)
    assert (tokens[:, 0] == BOS).all()
    assert (tokens[np.arange(len(captions)), lengths - 1] == EOS).all()
    assert np.array_equal(mask, np.arange(max_tokens) < lengths[:, None])
    assert (tokens[~mask] == PAD).all()


@pytest.mark.parametrize("other", ["a frog", "A  FROG.", " A frog. ", "Ａ frog!"])
def test_case_spacing_and_final_stops_make_no_other_caption(other):
    assert text.normalise(other) == text.normalise("A frog.")


def test_other_words_make_another_caption():
    assert text.normalise("A frog.") != text.normalise("A green frog.")
