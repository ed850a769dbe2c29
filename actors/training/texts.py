"""Metrics of what a model says: the next token of a text, a transcript, an answer."""

from __future__ import annotations

import re
import string
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from math import log
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ...models.heads.transcription import beam_search, greedy
from ...models.multimodal import MultimodalModel, described, documented
from ...models.spec import MODALITIES
from ...pipelines.reading import CorpusReader
from ...pipelines.spec import BOS, EOS, Sizes
from .bias import EVERYTHING, Parts
from .data import Batch, batches, make_batch
from .metrics import Bootstrap, Progress, report

HEAD_TOKENS = 4096
"""Tokens whose probabilities are held at once."""


def bits_per_byte(
    model: MultimodalModel,
    reader: CorpusReader,
    memory_lengths: Sequence[int],
    how: Bootstrap,
    progress: Progress,
    parts: Parts = EVERYTHING,
) -> list[dict[str, Any]]:
    """Bits a byte of every document, each read from its beginning, by length of the memory.

    Args:
        model: with a language head.
        reader: of the split.
        memory_lengths: positions remembered; empty takes the model's own.
        how: intervals are made, by document.
        progress: told documents done and all.
        parts: of the split, that are reported as well.
    """
    text, head = model.text, model.heads.language
    assert text is not None
    assert head is not None
    own = text.memory_length
    rows: list[dict[str, Any]] = []
    lengths = memory_lengths or (own,)
    for number, length in enumerate(lengths):
        text.remember(length)
        bits: list[float] = []
        sizes: list[float] = []
        for row in range(len(reader)):
            found = reader.table(np.array([row]), ["text", "text_tokens"]).to_pylist()[0]
            tokens = torch.tensor([found["text_tokens"]])
            with torch.inference_mode():
                hidden = text(tokens)[0][0, :-1]
                nll = [
                    head.nll(part, targets).double().sum()
                    for part, targets in zip(
                        hidden.split(HEAD_TOKENS), tokens[0, 1:].split(HEAD_TOKENS), strict=True
                    )
                ]
            bits.append(float(torch.stack(nll).sum()) / log(2))
            sizes.append(float(len(found["text"].encode())))
            progress(number * len(reader) + row + 1, len(lengths) * len(reader))
        name = f"bits per byte, memory {length}"
        by = parts.of(range(len(bits)), spoken=True)
        rows.append(report(name, bits, range(len(bits)), 8.0, how, weights=sizes, unit="bits", parts=by))
    text.remember(own)
    return rows


def word_error_rates(
    model: MultimodalModel,
    reader: CorpusReader,
    tokenizer: Path,
    beams: int,
    batch_rows: int,
    how: Bootstrap,
    progress: Progress,
    parts: Parts = EVERYTHING,
) -> list[dict[str, Any]]:
    """Word error rate of the transcripts: greedy, and by beam search.

    Case and punctuation make no difference.

    Args:
        model: with a transcription head.
        reader: of the split.
        tokenizer: file of the corpus's.
        beams: of the beam search.
        batch_rows: clips transcribed together.
        how: intervals are made, by group.
        progress: told clips done and all.
        parts: of the split, that are reported as well.
    """
    decoder = Tokenizer.from_file(str(tokenizer))
    references: list[str] = []
    groups: list[int] = []
    places: list[int] = []
    said: dict[str, list[str]] = {"greedy": [], f"{beams} beams": []}
    for rows, batch in batches(reader, model.spec, batch_rows, progress, transcript=True):
        wanted = [MODALITIES.index("text"), MODALITIES.index("speech")]
        kept = batch["present"][:, wanted].all(dim=1) & described(batch).any(dim=1)
        with torch.inference_mode():
            log_probs, mask = model.transcribe(batch["mel"][kept], batch["mel_mask"][kept])
        said["greedy"] += decoder.decode_batch(greedy(log_probs, mask))
        beamed = [tokens for tokens, _ in beam_search(log_probs, mask, beams)]
        said[f"{beams} beams"] += decoder.decode_batch(beamed)
        references += _spell(decoder, batch["tokens"][kept])
        groups += batch["group"][kept].tolist()
        places += rows[kept.numpy()].tolist()
    spoken = [number for number, text in enumerate(references) if plain(text)]
    metrics: list[dict[str, Any]] = []
    for how_said, texts in said.items():
        errors: list[float] = []
        words: list[float] = []
        for number in spoken:
            found = jiwer.process_words(plain(references[number]), plain(texts[number]))
            errors.append(found.substitutions + found.deletions + found.insertions)
            words.append(found.substitutions + found.deletions + found.hits)
        name = f"word error rate, {how_said}"
        by = parts.of([places[n] for n in spoken], spoken=True)
        of = [groups[n] for n in spoken]
        metrics.append(report(name, errors, of, 1.0, how, weights=words, parts=by))
    return metrics


def answer_accuracies(
    model: MultimodalModel,
    reader: CorpusReader,
    tokenizer: Path,
    batch_rows: int,
    how: Bootstrap,
    progress: Progress,
    parts: Parts = EVERYTHING,
) -> list[dict[str, Any]]:
    """Share of answers that are the right one word by word, over all and by type of question.

    Chance is the share of the type's most frequent answer.

    Args:
        model: with a decoder of answers.
        reader: of the split.
        tokenizer: file of the corpus's.
        batch_rows: questions answered together.
        how: intervals are made, by group.
        progress: told questions done and all.
        parts: of the split, that are reported as well.
    """
    decoder = Tokenizer.from_file(str(tokenizer))
    assert model.spec.decoder is not None
    names = [*(kind.name for kind in model.spec.decoder.question_types), "other"]
    right: list[float] = []
    wanted: list[str] = []
    kinds: list[str] = []
    groups: list[int] = []
    asked_in: list[int] = []
    for rows, batch in batches(reader, model.spec, batch_rows, progress):
        made, _ = model.answer(batch, BOS, EOS, batch["answer"].shape[1])
        asked = batch["answer_mask"].any(dim=1)
        expected = [plain(text) for text in _spell(decoder, batch["answer"][asked])]
        found = [plain(text) for text in _spell(decoder, made.tokens[asked])]
        right += [float(a == b) for a, b in zip(found, expected, strict=True)]
        wanted += expected
        kinds += [names[kind] for kind in batch["question_type"][asked].tolist()]
        groups += reader.groups_of(rows[asked.numpy()])
        asked_in += rows[asked.numpy()].tolist()
    by_type: dict[str, list[int]] = defaultdict(list)
    for number, kind in enumerate(kinds):
        by_type["all"].append(number)
        by_type[kind].append(number)
    metrics: list[dict[str, Any]] = []
    for kind, numbers in by_type.items():
        frequent = Counter(wanted[n] for n in numbers).most_common(1)[0][1]
        values, places = [right[n] for n in numbers], [groups[n] for n in numbers]
        by = parts.of([asked_in[n] for n in numbers]) if kind == "all" else {}
        chance = frequent / len(numbers)
        metrics.append(report(f"answers right, {kind}", values, places, chance, how, parts=by))
    return metrics


def document_accuracies(
    model: MultimodalModel,
    reader: CorpusReader,
    batch_rows: int,
    how: Bootstrap,
    progress: Progress,
    parts: Parts = EVERYTHING,
) -> list[dict[str, Any]]:
    """Share of the documents whose likeliest category is the right one, over all and by category.

    A document is read whole, however long. Chance is the share of the most frequent category.

    Args:
        model: with a head for documents.
        reader: of the split.
        batch_rows: documents read together.
        how: intervals are made, by group.
        progress: told documents done and all.
        parts: of the split, that are reported as well.
    """
    right = np.zeros(len(reader))
    labels = np.full(len(reader), -1)
    for done, (rows, batch) in enumerate(_whole_documents(model, reader, batch_rows), 1):
        with torch.inference_mode():
            logits = model.classify_documents(batch["tokens"], batch["token_mask"])
        labels[rows] = documented(batch).numpy()
        right[rows] = (logits.argmax(dim=-1) == batch["label"]).numpy()
        progress(min(done * batch_rows, len(reader)), len(reader))
    known = np.flatnonzero(labels >= 0)
    if not len(known):
        return []
    groups = np.array(reader.groups_of(known))
    chance = float(np.bincount(labels[known]).max() / len(known))
    metrics = [report("documents right, all", right[known], groups, chance, how, parts=parts.of(known))]
    for number, name in enumerate(reader.info.classes):
        of = labels[known] == number
        if of.any():
            metrics.append(report(f"documents right, {name}", right[known][of], groups[of], chance, how))
    return metrics


def _whole_documents(
    model: MultimodalModel, reader: CorpusReader, batch_rows: int
) -> Iterator[tuple[NDArray[np.int64], Batch]]:
    """Rows and what is read of them; of like length, so that little of it is padding."""
    everything = np.arange(len(reader))
    lengths = np.concatenate(
        [np.zeros(0, np.int64), *(reader.document_lengths(n) for n in range(len(reader.chunk_starts) - 1))]
    )
    order = everything[np.argsort(lengths, kind="stable")]
    for start in range(0, len(order), batch_rows):
        rows = order[start : start + batch_rows]
        sizes = Sizes(tokens=max(1, int(lengths[rows].max())), answer=1, frames=1)
        arrays = reader.examples(rows, None, [slice(None)] * len(rows), sizes=sizes)
        yield rows, make_batch(arrays, model.spec, reader.info)


def plain(text: str) -> str:
    """A text without case and punctuation, its words parted by one space."""
    return " ".join(re.sub(f"[{re.escape(string.punctuation)}]", " ", text.casefold()).split())


def _spell(decoder: Tokenizer, tokens: torch.Tensor) -> list[str]:
    """Texts of tokens (B, T), each up to its end."""
    rows = [[token for token in row if token != BOS] for row in tokens.tolist()]
    return decoder.decode_batch([row[: row.index(EOS)] if EOS in row else row for row in rows])
