"""Terms: words that become single tokens of a tokenizer that has others."""

from hypothesis import given, settings
from hypothesis import strategies as st

from eagleray.pipelines.media.text import extend_tokenizer, pieces_of, token_ids, train_tokenizer

BASE = train_tokenizer(["net profit rose", "the profit of the ship fell", "a loss of profits"] * 4, 300)
WORDS = ["amortisation", "amortised", "profitable", "über", "loss", "2007"]


def test_terms_are_single_tokens_and_all_else_is_what_it_was():
    extended = extend_tokenizer(BASE, WORDS)
    for word in WORDS:
        (term,) = extended.encode(word).ids
        assert extended.encode(f"the {word}").ids[-1] == term
    assert BASE.get_vocab().items() <= extended.get_vocab().items()
    assert token_ids(extended, ["the ship fell"]) == token_ids(BASE, ["the ship fell"])


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.text(min_size=1).filter(lambda one: not any(c.isspace() for c in one)), max_size=6), st.text()
)
def test_any_text_comes_back(words, text):
    extended = extend_tokenizer(BASE, words)
    ids = extended.encode(text).ids
    assert extended.decode(ids) == BASE.decode(BASE.encode(text).ids)
    assert extend_tokenizer(BASE, words).to_str() == extended.to_str()


def test_new_tokens_know_their_pieces():
    extended = extend_tokenizer(BASE, WORDS)
    pieces = pieces_of(BASE, extended)
    assert len(pieces) == extended.get_vocab_size() - BASE.get_vocab_size()
    names = {number: token for token, number in BASE.get_vocab().items()}
    added = sorted(set(extended.get_vocab().items()) - set(BASE.get_vocab().items()), key=lambda one: one[1])
    assert ["".join(names[piece] for piece in some) for some in pieces] == [token for token, _ in added]


def test_a_tokenizer_that_is_no_extension_has_none():
    other = train_tokenizer(["something else entirely"] * 4, 320)
    assert pieces_of(BASE, BASE) == pieces_of(BASE, other) == []
