"""Metrics of a trained model: recall between modalities, and classification, with intervals.

Shape letters: Q queries, G gallery items, E embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations
from math import comb
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import bootstrap
from torch import Tensor
from torchmetrics.functional.retrieval import retrieval_hit_rate

from ...models.multimodal import MultimodalModel
from ...models.spec import MODALITIES
from ...pipelines.reading import CorpusReader

TITLES = {"image": "image", "text": "caption", "speech": "speech"}


@dataclass(frozen=True)
class EmbeddedSplit:
    """A split's records as embeddings.

    Attributes:
        image, caption, transcript, speech: (G, E) unit vectors; `caption` is that in the reference language,
            `transcript` the caption in the language of the speech.
        has_image, has_speech, has_caption, has_transcript: (G,) bool.
        group: (G,) int64, equal where pictures share a caption.
        label, predicted: (G,) int64 categories; -1 where a record has none.
    """

    image: Tensor
    caption: Tensor
    transcript: Tensor
    speech: Tensor
    has_image: Tensor
    has_speech: Tensor
    has_caption: Tensor
    has_transcript: Tensor
    group: Tensor
    label: Tensor
    predicted: Tensor


def embed_split(
    model: MultimodalModel, reader: CorpusReader, batch_rows: int, progress: Callable[[int, int], None]
) -> EmbeddedSplit:
    """Embed every record of a split in all its modalities, without augmentation."""
    parts: list[tuple[Tensor, ...]] = []
    with torch.inference_mode():
        for start in range(0, len(reader), batch_rows):
            rows = np.arange(start, min(start + batch_rows, len(reader)))
            batch = {k: torch.from_numpy(v) for k, v in reader.examples(rows, None).items()}
            spoken = {k: torch.from_numpy(v) for k, v in reader.examples(rows, None, transcript=True).items()}
            image = model.embed_image(batch["image"])
            parts.append(
                (
                    image,
                    model.embed_text(batch["tokens"], batch["token_mask"]),
                    model.embed_text(spoken["tokens"], spoken["token_mask"]),
                    model.embed_speech(batch["mel"], batch["mel_mask"]),
                    batch["present"][:, MODALITIES.index("image")],
                    batch["present"][:, MODALITIES.index("speech")],
                    batch["present"][:, MODALITIES.index("text")],
                    spoken["present"][:, MODALITIES.index("text")],
                    batch["group"],
                    batch["label"],
                    model.classify(image).argmax(-1),
                )
            )
            progress(int(rows[-1]) + 1, len(reader))
    return EmbeddedSplit(*(torch.cat(column) for column in zip(*parts, strict=True)))


def measure(
    split: EmbeddedSplit, ranks: Sequence[int], resamples: int, confidence: float, seed: int
) -> list[dict[str, Any]]:
    """Recall@k in the six directions, and accuracy; each with its interval and the figure of chance.

    Returns:
        Rows of name, value, low, high, chance, queries; all but the last as shares.
    """
    rows: list[dict[str, Any]] = []
    for source, target in permutations(MODALITIES, 2):
        queries, gallery, groups = _direction(split, source, target)
        if not len(queries):
            continue  # a corpus without speech, say
        right = groups[:, None] == groups[None, :]
        scores = queries @ gallery.T
        for rank in ranks:
            hits = hits_at(scores, right, rank)
            name = f"recall@{rank} {TITLES[source]}→{TITLES[target]}"
            chance = float(np.mean([chance_at(len(r), int(r.sum()), rank) for r in right]))
            rows.append(_row(name, hits, groups.numpy(), chance, resamples, confidence, seed))
    seen = split.has_image & (split.label >= 0)
    if seen.any():
        label, group = split.label[seen], split.group[seen].numpy()
        shares = torch.bincount(label).double() / len(label)
        correct = (split.predicted[seen] == label).numpy().astype(float)
        chance = float(shares.square().sum())  # a guess drawn like the labels
        rows.append(_row("accuracy category", correct, group, chance, resamples, confidence, seed))
    return rows


def hits_at(scores: Tensor, right: Tensor, rank: int) -> NDArray[np.float64]:
    """1.0 where any right item stands among a query's first `rank`: (Q,) from (Q, G) and (Q, G) bool."""
    hits = [retrieval_hit_rate(s, r, top_k=min(rank, len(s))) for s, r in zip(scores, right, strict=True)]
    return torch.stack(hits).double().numpy()


def chance_at(items: int, right: int, rank: int) -> float:
    """Probability that a random order has one of `right` items among its first `rank`."""
    return 1.0 - comb(items - right, min(rank, items)) / comb(items, min(rank, items))


def interval(
    values: NDArray[np.float64], groups: NDArray[np.int64], resamples: int, confidence: float, seed: int
) -> tuple[float, float]:
    """Percentile bootstrap of a mean, resampling whole groups (records of a group are not independent)."""
    _, index = np.unique(groups, return_inverse=True)
    sums, counts = np.bincount(index, values), np.bincount(index).astype(float)
    if len(sums) < 2:
        return 0.0, 1.0

    def ratio(total: NDArray[np.float64], count: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
        return total.sum(axis=axis) / count.sum(axis=axis)

    found = bootstrap(
        (sums, counts),
        ratio,
        paired=True,
        n_resamples=resamples,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


def _direction(split: EmbeddedSplit, source: str, target: str) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, gallery and groups of a direction: those records that have both modalities."""
    spoken = "speech" in (source, target)
    keep = split.has_speech if spoken else torch.ones_like(split.has_speech)
    if "image" in (source, target):
        keep = keep & split.has_image
    if "text" in (source, target):
        keep = keep & (split.has_transcript if spoken else split.has_caption)
    text = split.transcript if spoken else split.caption
    vectors = {"image": split.image, "text": text, "speech": split.speech}
    return vectors[source][keep], vectors[target][keep], split.group[keep]


def _row(
    name: str,
    values: NDArray[np.float64],
    groups: NDArray[np.int64],
    chance: float,
    resamples: int,
    confidence: float,
    seed: int,
) -> dict[str, Any]:
    low, high = interval(values, groups, resamples, confidence, seed)
    return {
        "name": name,
        "value": float(values.mean()),
        "low": low,
        "high": high,
        "chance": chance,
        "queries": len(values),
    }
