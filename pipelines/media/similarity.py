"""What is nearly the same: perceptual hashes of pictures, MinHash of texts, and finding close pairs of many.

Shape letters: N items, P permutations, B pairs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ..order import mix

Hashes = NDArray[np.uint64]
Pairs = NDArray[np.int64]
Labels = NDArray[np.int64]

HASH_SIDE = 8
SAMPLED_SIDE = 32
PERMUTATIONS = 126
"""Many divisors, so that there are bands for any threshold (see `band_rows`)."""
MAX_MISSED = 0.01
COMPARED_AT_ONCE = 1 << 14


def perceptual_hash(pixels: NDArray[np.uint8]) -> int:
    """64 bits of a picture (S, S, 3) that hardly change with its size, brightness or compression.

    The signs of the 8×8 lowest frequencies of its luma at 32×32, about the median of all but the constant one
    (Zauner 2010, section 3.2.1).
    """
    from PIL import Image
    from scipy.fft import dctn

    luma = Image.fromarray(pixels).convert("L").resize((SAMPLED_SIDE, SAMPLED_SIDE), Image.Resampling.BOX)
    spectrum: NDArray[np.float64] = np.asarray(dctn(np.asarray(luma, np.float64), norm="ortho"))
    low = spectrum[:HASH_SIDE, :HASH_SIDE].ravel()
    return int.from_bytes(np.packbits(low > np.median(low[1:])).tobytes(), "big")


def minhash(text: str, shingle_words: int) -> NDArray[np.uint32]:
    """The signature (P,) of a text: in each of P orders of all shingles, its first one (Broder 1997).

    Args:
        text: normalised.
        shingle_words: words that follow each other in a shingle.
    """
    words = text.split()
    count = max(1, len(words) - shingle_words + 1)
    shingles = {" ".join(words[i : i + shingle_words]) for i in range(count)}
    hashes = np.array(
        [
            int.from_bytes(hashlib.blake2b(one.encode("utf-8", "surrogatepass"), digest_size=4).digest())
            for one in shingles
        ],
        np.uint64,
    )
    # An order of all shingles is a hash of their hashes, seeded by its number.
    orders = mix(np.arange(PERMUTATIONS, dtype=np.uint64)[:, None], hashes[None, :].astype(np.int64))
    return orders.min(axis=1).astype(np.uint32)


def hash_clusters(hashes: Hashes, max_distance: int) -> Labels:
    """The number of each hash's cluster (N,), where two that differ in at most `max_distance` bits, and what
    they lead to, belong together.

    Cut into one band more than bits may differ, two such hashes have at least one band in common.

    Args:
        hashes: (N,), each once.
        max_distance: bits.
    """
    edges = [64 * band // (max_distance + 1) for band in range(max_distance + 2)]
    found = _Clusters(len(hashes))

    def close(first: Pairs, second: Pairs) -> NDArray[np.bool_]:
        return np.bitwise_count(hashes[first] ^ hashes[second]) <= max_distance

    for low, high in pairwise(edges):
        found.join_within((hashes >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1), close)
    return found.labels


def signature_clusters(signatures: NDArray[np.uint32], threshold: float) -> Labels:
    """The number of each signature's cluster (N,), where two that agree in a share of at least `threshold`,
    and what they lead to, belong together.

    Args:
        signatures: (N, P), each once.
        threshold: of two texts that have just this in common, 1 % are missed.
    """
    rows = band_rows(threshold)
    found = _Clusters(len(signatures))

    def close(first: Pairs, second: Pairs) -> NDArray[np.bool_]:
        agreeing = np.empty(len(first), np.bool_)
        for start in range(0, len(first), COMPARED_AT_ONCE):
            part = slice(start, start + COMPARED_AT_ONCE)
            agreeing[part] = (signatures[first[part]] == signatures[second[part]]).mean(axis=1) >= threshold
        return agreeing

    for band in range(PERMUTATIONS // rows):
        part = np.ascontiguousarray(signatures[:, band * rows : (band + 1) * rows])
        _, keys = np.unique(part.view(np.dtype((np.void, part.strides[0]))).ravel(), return_inverse=True)
        found.join_within(keys.astype(np.uint64), close)
    return found.labels


def band_rows(threshold: float) -> int:
    """Rows that a band of a signature has: the more, the fewer unrelated texts are compared.

    Texts that share `threshold` of their shingles agree in all rows of a band with threshold^rows, and the
    rows are the most with which 99 % of them agree in some band.
    """
    divisors = [rows for rows in range(1, PERMUTATIONS + 1) if PERMUTATIONS % rows == 0]
    return max(rows for rows in divisors if (1 - threshold**rows) ** (PERMUTATIONS // rows) <= MAX_MISSED)


class _Clusters:
    """Which of N items belong together, in memory that grows with N and not with the pairs there are.

    Attributes:
        labels: (N,) the number of each item's cluster.
    """

    def __init__(self, num_items: int) -> None:
        self.labels: Labels = np.arange(num_items)
        self._pairs: list[Pairs] = []

    def join_within(self, keys: Hashes, close: Callable[[Pairs, Pairs], NDArray[np.bool_]]) -> None:
        """Join what is close among items with equal keys (N,); pairs within a cluster aren't compared."""
        order = np.argsort(keys, kind="stable")
        ranked = keys[order]
        places = self._unsettled(np.arange(len(keys)), order, ranked)
        for distance in range(1, len(keys)):
            places = places[: np.searchsorted(places, len(keys) - distance)]
            places = places[ranked[places + distance] == ranked[places]]
            if not len(places):
                break
            first, second = order[places], order[places + distance]
            apart = self.labels[first] != self.labels[second]
            first, second = first[apart], second[apart]
            near = close(first, second)
            self._pairs.append(np.stack([first[near], second[near]]))
            # Neighbours join most of a large cluster: the sooner that is known, the less is compared.
            if distance.bit_count() == 1 or sum(pairs.shape[1] for pairs in self._pairs) > len(keys):
                self._settle()
                places = self._unsettled(places, order, ranked)
        self._settle()

    def _settle(self) -> None:
        """Bring `labels` up to date."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        pairs = np.concatenate([np.empty((2, 0), np.int64), *self._pairs], axis=1)
        self._pairs = []
        if pairs.shape[1]:
            first, second = self.labels[pairs]
            shape = (len(self.labels), len(self.labels))
            graph = coo_array((np.ones(len(first), np.bool_), (first, second)), shape=shape)
            self.labels = connected_components(graph, directed=False)[1].astype(np.int64)[self.labels]

    def _unsettled(self, places: Pairs, order: Pairs, ranked: Hashes) -> Pairs:
        """Those of `places` whose items with an equal key aren't all in one cluster already."""
        starts = (
            np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]])) if len(ranked) else places
        )
        if not len(starts):
            return places
        labels = self.labels[order]
        mixed = np.minimum.reduceat(labels, starts) != np.maximum.reduceat(labels, starts)
        return places[mixed[np.searchsorted(starts, places, side="right") - 1]]
