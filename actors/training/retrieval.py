"""Metrics of pictures, captions and speech: recall between each two, and classification.

Shape letters: Q queries, G gallery items, E embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from math import comb
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.functional.retrieval import retrieval_hit_rate

from ...models.multimodal import MultimodalModel, described
from ...models.spec import MODALITIES
from ...pipelines.reading import CorpusReader
from .bias import EVERYTHING, Parts
from .data import batches, make_batch
from .metrics import Bootstrap, Progress, report

TITLES = {"image": "image", "text": "caption", "speech": "speech"}


@dataclass(frozen=True)
class EmbeddedSplit:
    """A split's records as embeddings.

    Attributes:
        vectors: modality → (G, E) unit vectors; of a text, the caption in the reference language.
        transcripts: (G, E) of the caption in the language of the speech.
        present: (G, M) bool; a question describes nothing.
        has_transcript: (G,) bool.
        group: (G,) int64, equal where pictures share a caption.
    """

    vectors: Mapping[str, Tensor]
    transcripts: Tensor
    present: Tensor
    has_transcript: Tensor
    group: Tensor


def embed_split(
    model: MultimodalModel, reader: CorpusReader, batch_rows: int, progress: Progress
) -> EmbeddedSplit:
    """Embed every record of a split in all its modalities, without augmentation."""
    text = MODALITIES.index("text")
    vectors: dict[str, list[Tensor]] = {modality: [] for modality in model.modalities}
    others: list[tuple[Tensor, ...]] = []
    with torch.inference_mode():
        for rows, batch in batches(reader, model.spec, batch_rows, progress):
            spoken = make_batch(reader.examples(rows, None, transcript=True), model.spec, reader.info)
            if "image" in vectors:
                vectors["image"].append(model.embed_image(batch["image"]))
            if "speech" in vectors:
                vectors["speech"].append(model.embed_speech(batch["mel"], batch["mel_mask"]))
            transcripts = batch["present"].new_zeros(len(rows), 1).float()
            if "text" in vectors:
                vectors["text"].append(model.embed_text(batch["tokens"], batch["token_mask"]))
                transcripts = model.embed_text(spoken["tokens"], spoken["token_mask"])
            says = described(batch).any(dim=1)
            present = batch["present"].clone()
            present[:, text] &= says
            has_transcript = spoken["present"][:, text] & says
            others.append((transcripts, present, has_transcript, batch["group"]))
    whole = {modality: torch.cat(parts) for modality, parts in vectors.items()}
    return EmbeddedSplit(whole, *(torch.cat(column) for column in zip(*others, strict=True)))


def recalls(
    split: EmbeddedSplit, ranks: Sequence[int], how: Bootstrap, parts: Parts = EVERYTHING
) -> list[dict[str, Any]]:
    """Recall@k in each direction between two modalities that the split has."""
    rows: list[dict[str, Any]] = []
    for source, target in permutations(split.vectors, 2):
        queries, gallery, groups, kept = _direction(split, source, target)
        if not len(queries):
            continue  # a corpus without speech, say
        right = groups[:, None] == groups[None, :]
        scores = queries @ gallery.T
        for rank in ranks:
            hits = hits_at(scores, right, rank)
            name = f"recall@{rank} {TITLES[source]}→{TITLES[target]}"
            chance = float(np.mean([chance_at(len(r), int(r.sum()), rank) for r in right]))
            by = parts.of(kept, spoken="speech" in (source, target))
            rows.append(report(name, hits, groups.numpy(), chance, how, parts=by))
    return rows


def accuracy(
    model: MultimodalModel,
    reader: CorpusReader,
    batch_rows: int,
    how: Bootstrap,
    progress: Progress,
    parts: Parts = EVERYTHING,
) -> list[dict[str, Any]]:
    """Share of the pictures whose likeliest category is the right one."""
    labels: list[Tensor] = []
    correct: list[Tensor] = []
    groups: list[Tensor] = []
    kept: list[int] = []
    for rows, batch in batches(reader, model.spec, batch_rows, progress):
        seen = batch["present"][:, MODALITIES.index("image")] & (batch["label"] >= 0)
        with torch.inference_mode():
            predicted = model.classify(batch["image"][seen]).argmax(-1)
        labels.append(batch["label"][seen])
        correct.append(predicted == batch["label"][seen])
        groups.append(batch["group"][seen])
        kept += rows[seen.numpy()].tolist()
    label = torch.cat(labels)
    if not len(label):
        return []
    shares = torch.bincount(label).double() / len(label)
    chance = float(shares.square().sum())  # a guess drawn like the labels
    right = torch.cat(correct).double().numpy()
    by = parts.of(kept)
    return [report("accuracy category", right, torch.cat(groups).numpy(), chance, how, parts=by)]


def hits_at(scores: Tensor, right: Tensor, rank: int) -> NDArray[np.float64]:
    """1.0 where any right item stands among a query's first `rank`: (Q,) from (Q, G) and (Q, G) bool."""
    hits = [retrieval_hit_rate(s, r, top_k=min(rank, len(s))) for s, r in zip(scores, right, strict=True)]
    return torch.stack(hits).double().numpy()


def chance_at(items: int, right: int, rank: int) -> float:
    """Probability that a random order has one of `right` items among its first `rank`."""
    return 1.0 - comb(items - right, min(rank, items)) / comb(items, min(rank, items))


def _direction(
    split: EmbeddedSplit, source: str, target: str
) -> tuple[Tensor, Tensor, Tensor, NDArray[np.int64]]:
    """Queries, gallery, groups and rows of a direction: those records that have both modalities."""
    is_spoken = "speech" in (source, target)
    keep = torch.ones(len(split.group), dtype=torch.bool)
    for modality in (source, target):
        has = split.present[:, MODALITIES.index(modality)]
        keep = keep & (split.has_transcript if modality == "text" and is_spoken else has)
    vectors = {**split.vectors, "text": split.transcripts} if is_spoken else split.vectors
    return vectors[source][keep], vectors[target][keep], split.group[keep], np.flatnonzero(keep.numpy())
