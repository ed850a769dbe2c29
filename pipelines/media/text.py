"""Texts: normalisation, and a byte-level BPE by `tokenizers`."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from ..spec import BOS, EOS, PAD, SPECIAL_TOKENS


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
