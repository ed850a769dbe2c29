"""Texts: normalisation, and a byte-level BPE by `tokenizers`."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from ..spec import BOS, EOS, PAD, SPECIAL_TOKENS

ROUNDS = 8
"""Times that words are looked at again, whose pieces other words' merges have joined."""


def normalise(caption: str) -> str:
    """A caption's identity: case, spacing, compatibility forms and a final full stop make no difference."""
    folded = unicodedata.normalize("NFKC", caption).casefold()
    return " ".join(folded.split()).rstrip(" .!")


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE; every string can be encoded, whatever its script.

    Args:
        texts: captions and documents; their order makes no difference.
        vocab_size: most tokens it may have, special ones included.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sorted(texts), trainer)
    # The special tokens keep their ids, but "[EOS]" in a caption shall be five characters, not a token.
    plain = {**json.loads(tokenizer.to_str()), "added_tokens": []}
    return Tokenizer.from_str(json.dumps(plain, ensure_ascii=False))


def extend_tokenizer(tokenizer: Tokenizer, words: Iterable[str]) -> Tokenizer:
    """Give words that follow a space tokens of their own.

    Merges of their pieces are added after all others, so that what a text was before is merged first, and
    other words stay what they are but where they hold the same pieces. Ids of tokens don't change.

    Args:
        tokenizer: a byte-level BPE.
        words: single ones, without spaces.
    """
    wanted = list(dict.fromkeys(words))
    for _ in range(ROUNDS):
        state = json.loads(tokenizer.to_str())
        vocab: dict[str, int] = state["model"]["vocab"]
        merges: list[list[str]] = state["model"]["merges"]
        known = {tuple(pair) for pair in merges}
        whole = True
        for one in tokenizer.encode_batch(wanted, add_special_tokens=False):
            left, *others = one.tokens
            for right in others:
                if (left, right) not in known:
                    known.add((left, right))
                    merges.append([left, right])
                left += right
                vocab.setdefault(left, len(vocab))
            whole = whole and not others
        if whole:
            return tokenizer
        tokenizer = Tokenizer.from_str(json.dumps(state, ensure_ascii=False))
    return tokenizer  # the few whose pieces are merged otherwise in company stay in pieces


def pieces_of(tokenizer: Tokenizer, extended: Tokenizer) -> list[list[int]]:
    """Ids in a tokenizer of what each token consists of that another has beyond it, in order; none where the
    other is no extension: its first tokens are others, or it merges otherwise.
    """
    ours, theirs = (json.loads(one.to_str())["model"] for one in (tokenizer, extended))
    is_longer = len(theirs["vocab"]) > len(ours["vocab"])
    is_same = ours["vocab"].items() <= theirs["vocab"].items()
    if not (is_longer and is_same and theirs["merges"][: len(ours["merges"])] == ours["merges"]):
        return []
    added = sorted(theirs["vocab"], key=theirs["vocab"].__getitem__)[len(ours["vocab"]) :]
    return [[piece.id for piece in tokenizer.model.tokenize(token)] for token in added]


def token_ids(tokenizer: Tokenizer, texts: Sequence[str], max_tokens: int | None = None) -> list[list[int]]:
    """Encode to lists of ids from BOS to EOS, each cut to `max_tokens`, if given, with its EOS kept."""
    encoded = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    whole = [[BOS, *one.ids, EOS] for one in encoded]
    return whole if max_tokens is None else [cut(ids, max_tokens) for ids in whole]


def cut(ids: Sequence[int], max_tokens: int) -> list[int]:
    """At most `max_tokens` ids of those from BOS to EOS, with both kept."""
    return [*ids[: max_tokens - 1], EOS] if len(ids) > max_tokens else list(ids)


def pad(ids: Sequence[Sequence[int]], max_tokens: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Lists of ids → tokens (B, max_tokens) filled up with PAD, and which are real (B, max_tokens)."""
    tokens = np.full((len(ids), max_tokens), PAD, np.int64)
    mask = np.zeros((len(ids), max_tokens), np.bool_)
    for row, one in enumerate(ids):
        tokens[row, : len(one)] = one
        mask[row, : len(one)] = True
    return tokens, mask


def encode(
    tokenizer: Tokenizer, texts: Sequence[str], max_tokens: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Encode to tokens (B, max_tokens) and their mask: BOS … EOS, then PAD."""
    return pad(token_ids(tokenizer, texts, max_tokens), max_tokens)
