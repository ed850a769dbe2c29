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

HASH_SIDE = 8
SAMPLED_SIDE = 32
BANDS = 21
BAND_ROWS = 6
PERMUTATIONS = BANDS * BAND_ROWS
"""With 21 bands of 6 rows, two texts that share 80 % of their shingles meet in a band in 99.8 % of cases."""


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


def similar_hashes(hashes: Hashes, max_distance: int) -> Pairs:
    """Pairs (B, 2) of hashes (N,) that differ in at most `max_distance` bits.

    Cut into one band more than bits may differ, two such hashes have at least one band in common.
    """
    edges = [64 * band // (max_distance + 1) for band in range(max_distance + 2)]
    found: list[Pairs] = []
    for low, high in pairwise(edges):
        keys = (hashes >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)

        def close(first: Pairs, second: Pairs) -> NDArray[np.bool_]:
            return np.bitwise_count(hashes[first] ^ hashes[second]) <= max_distance

        found.append(_pairs_in_buckets(keys, close))
    return np.unique(np.concatenate(found), axis=0)


def similar_signatures(signatures: NDArray[np.uint32], threshold: float) -> Pairs:
    """Pairs (B, 2) of signatures (N, P) that agree in a share of at least `threshold`."""
    found: list[Pairs] = []

    def close(first: Pairs, second: Pairs) -> NDArray[np.bool_]:
        return (signatures[first] == signatures[second]).mean(axis=1) >= threshold

    for band in range(BANDS):
        part = np.ascontiguousarray(signatures[:, band * BAND_ROWS : (band + 1) * BAND_ROWS])
        _, keys = np.unique(part.view(np.dtype((np.void, part.strides[0]))).ravel(), return_inverse=True)
        found.append(_pairs_in_buckets(keys.astype(np.uint64), close))
    return np.unique(np.concatenate(found), axis=0)


def clusters(num_items: int, pairs: Pairs) -> NDArray[np.int64]:
    """The number of each item's cluster (N,), where pairs (B, 2) and what they lead to belong together."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ones = np.ones(len(pairs), np.bool_)
    graph = coo_array((ones, (pairs[:, 0], pairs[:, 1])), shape=(num_items, num_items))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def _pairs_in_buckets(keys: Hashes, close: Callable[[Pairs, Pairs], NDArray[np.bool_]]) -> Pairs:
    """Close pairs (B, 2) among items with equal keys (N,)."""
    order = np.argsort(keys, kind="stable")
    ranked = keys[order]
    found: list[Pairs] = [np.empty((0, 2), np.int64)]
    for distance in range(1, len(keys)):
        same = np.flatnonzero(ranked[distance:] == ranked[:-distance])
        if not len(same):
            break
        first, second = order[same], order[same + distance]
        near = close(first, second)
        found.append(np.sort(np.stack([first[near], second[near]], axis=1), axis=1))
    return np.concatenate(found)
