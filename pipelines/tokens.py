"""A corpus's tokenizer, and the tokens of its captions and documents."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable
from itertools import pairwise

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from .compute import pc
from .contracts import COLUMNS
from .media import text
from .spec import Preparation, Terms

TOKENIZER_BYTES = 64 << 20
"""Text that a tokenizer is trained on, at most; more makes no better one."""
_WORD = re.compile(r"\w+")
TEXTS = {"captions": "tokens", "answer": "answer_tokens", "text": "text_tokens"}
"""Columns of text → those of their tokens."""


def token_columns(schema: pa.Schema) -> list[str]:
    """Columns of tokens that records with these columns have."""
    return [tokens for name, tokens in TEXTS.items() if name in schema.names]


def train(training: Iterable[pa.Table], vocab_size: int) -> tuple[Tokenizer, int]:
    """Train a tokenizer.

    Args:
        training: columns of text of records to train on, some rows at a time.
        vocab_size: most tokens it may have.

    Returns:
        The tokenizer, and how many texts it was trained on.
    """
    texts: list[str] = []
    size_bytes = 0
    for rows in training:
        found = _texts(rows)
        texts += found
        size_bytes += sum(map(len, found))
        if size_bytes > TOKENIZER_BYTES:
            break
    return text.train_tokenizer(texts, vocab_size), len(texts)


def extend(
    tokenizer: Tokenizer, training: Iterable[pa.Table], terms: Terms, words: Collection[str]
) -> Tokenizer:
    """Give terms tokens of their own.

    Args:
        tokenizer: what is extended.
        training: columns of text of records to train on, some rows at a time.
        terms: which.
        words: of the dictionary, in small letters.
    """
    counts: Counter[str] = Counter()
    for rows in training:
        for found in _texts(rows):
            counts.update(one for one in _WORD.findall(found.casefold()) if one in words)
    frequent = [word for word, count in counts.most_common(terms.most) if count >= terms.min_count]
    return text.extend_tokenizer(tokenizer, (*terms.words, *sorted(frequent)))


def _texts(rows: pa.Table) -> list[str]:
    """Captions, answers and documents of rows."""
    found: list[str] = []
    if "captions" in rows.schema.names:
        found += rows["captions"].combine_chunks().flatten().field("text").to_pylist()
    for name in ("answer", "text"):
        if name in rows.schema.names:
            found += rows[name].drop_null().to_pylist()
    return found


def with_tokens(rows: pa.Table, tokenizer: Tokenizer, preparation: Preparation) -> pa.Table:
    """Rows with the tokens of their captions and documents."""
    if "captions" in rows.schema.names:
        captions = rows["captions"].combine_chunks()
        said = captions.flatten().field("text").to_pylist()
        encoded = text.token_ids(tokenizer, said, preparation.max_tokens)
        ends = [0, *np.cumsum(captions.value_lengths().to_numpy()).tolist()]
        lists = [encoded[start:end] for start, end in pairwise(ends)]
        rows = rows.append_column(COLUMNS["tokens"], pa.array(lists, COLUMNS["tokens"].type))
    for name, most in (("answer", preparation.max_tokens), ("text", None)):
        if name not in rows.schema.names:
            continue
        field = COLUMNS[TEXTS[name]]
        documents = rows[name].to_pylist()
        encoded = iter(text.token_ids(tokenizer, [one for one in documents if one is not None], most))
        lists = [None if one is None else np.array(next(encoded), np.int32) for one in documents]
        rows = rows.append_column(field, pa.array(lists, field.type))
    return rows


def num_tokens(rows: pa.Table) -> list[int]:
    """Tokens of each row's document; 0 where there is none."""
    return pc.fill_null(pc.list_value_length(rows["text_tokens"]), 0).to_pylist()
