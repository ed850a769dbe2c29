"""Perceptual hashes, MinHash, and close pairs."""

from __future__ import annotations

import io
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageEnhance

from eagleray.pipelines.media.similarity import (
    PERMUTATIONS,
    band_rows,
    hash_clusters,
    minhash,
    perceptual_hash,
    signature_clusters,
)


def scene(seed: int, size: int = 200) -> Image.Image:
    """A picture with shapes on a gradient."""
    random = np.random.default_rng(seed)
    picture = Image.fromarray(random.integers(0, 256, (4, 4, 3), np.uint8)).resize(
        (size, size), Image.Resampling.BICUBIC
    )
    draw = ImageDraw.Draw(picture)
    for _ in range(6):
        x, y, width, height = random.integers(0, size, 4).tolist()
        draw.ellipse(
            (x, y, x + width // 2 + 9, y + height // 2 + 9), fill=tuple(random.integers(0, 256, 3).tolist())
        )
    return picture


def hash_of(picture: Image.Image) -> int:
    return perceptual_hash(np.asarray(picture.convert("RGB").resize((72, 72), Image.Resampling.LANCZOS)))


def recompressed(picture: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=30)
    return Image.open(buffer)


@pytest.mark.parametrize(
    "change",
    [
        recompressed,
        lambda picture: picture.resize((91, 91)),
        lambda picture: ImageEnhance.Brightness(picture).enhance(1.15),
        lambda picture: picture.convert("L").convert("RGB"),
    ],
    ids=["recompressed", "resized", "brighter", "grey"],
)
def test_a_picture_keeps_its_hash_when_it_hardly_changes(change):
    distances = [(hash_of(scene(i)) ^ hash_of(change(scene(i)))).bit_count() for i in range(40)]
    assert np.mean([distance <= 4 for distance in distances]) > 0.8


def test_other_pictures_have_other_hashes():
    hashes = [hash_of(scene(i)) for i in range(60)]
    distances = [(a ^ b).bit_count() for i, a in enumerate(hashes) for b in hashes[:i]]
    assert min(distances) > 4
    assert np.mean(distances) == pytest.approx(32, abs=3)


def joined(num_items: int, close) -> set[frozenset[int]]:
    """The clusters that comparing every two gives."""
    labels = list(range(num_items))
    for j in range(num_items):
        for i in range(j):
            if close(i, j):
                labels = [labels[i] if label == labels[j] else label for label in labels]
    return as_sets(labels)


def as_sets(labels) -> set[frozenset[int]]:
    labels = list(labels)
    return {frozenset(i for i, other in enumerate(labels) if other == label) for label in labels}


@given(st.lists(st.integers(0, 2**64 - 1), max_size=25), st.integers(0, 8), st.data())
@settings(deadline=None)
def test_hashes_are_joined_as_when_every_two_are_compared(hashes, distance, data):
    for base in list(hashes[:8]):
        bits = data.draw(st.lists(st.integers(0, 63), max_size=distance + 1, unique=True))
        hashes.append(base ^ sum(1 << bit for bit in bits))
    unique = np.unique(np.array(hashes, np.uint64))
    near = lambda i, j: (int(unique[i]) ^ int(unique[j])).bit_count() <= distance  # noqa: E731
    assert as_sets(hash_clusters(unique, distance)) == joined(len(unique), near)


@given(st.integers(2, 40), st.integers(0, 60), st.integers(0, 2**32))
@settings(deadline=None)
def test_signatures_are_joined_as_when_every_two_are_compared(count, changed, seed):
    """Far enough from the threshold: near it one in a hundred may be missed."""
    random = np.random.default_rng(seed)
    signatures = np.repeat(random.integers(0, 2**32, (3, PERMUTATIONS), np.uint32), count, axis=0)
    for row in signatures:
        row[random.choice(PERMUTATIONS, min(changed, 8), replace=False)] = random.integers(0, 2**32)
    near = lambda i, j: (signatures[i] == signatures[j]).mean() >= 0.8  # noqa: E731
    assert as_sets(signature_clusters(signatures, 0.8)) == joined(3 * count, near)


def test_what_is_joined_by_others_is_one_cluster():
    chain = np.array([0, 0b1, 0b11, 0b111, 0b111 << 60], np.uint64)
    assert as_sets(hash_clusters(chain, 1)) == {frozenset((0, 1, 2, 3)), frozenset((4,))}
    assert as_sets(hash_clusters(chain, 0)) == {frozenset((i,)) for i in range(5)}


def test_a_large_cluster_is_joined_without_comparing_every_two():
    """As of filings that differ in the company's name only."""
    random = np.random.default_rng(0)
    signatures = np.repeat(random.integers(0, 2**32, (1, PERMUTATIONS), np.uint32), 20_000, axis=0)
    changed = random.random(signatures.shape) < 0.03
    signatures[changed] = random.integers(0, 2**32, changed.sum(), np.uint32)
    tracemalloc.start()
    labels = signature_clusters(signatures, 0.8)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(set(labels.tolist())) == 1
    assert peak_bytes < 100e6  # the 200 million pairs there are would take 3 GB


@pytest.mark.parametrize("threshold", [0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1])
def test_of_texts_at_the_threshold_hardly_any_is_missed(threshold):
    rows = band_rows(threshold)
    random = np.random.default_rng(0)
    agreeing = random.random((20_000, PERMUTATIONS)) < threshold
    met = agreeing.reshape(len(agreeing), -1, rows).all(axis=2).any(axis=1)
    assert met.mean() > 0.985
    assert rows == 1 or 0.3**rows * (PERMUTATIONS // rows) < 1.2  # and few unrelated ones are compared


WORDS = [f"word{i}" for i in range(500)]


def text(seed: int, length: int = 200) -> list[str]:
    return np.random.default_rng(seed).choice(WORDS, length).tolist()


def test_the_share_of_equal_rows_is_the_share_of_common_shingles():
    one = text(0, 400)
    for kept in (380, 300, 200):
        other = one[:kept] + text(1, 400 - kept)
        a, b = ({tuple(w[i : i + 3]) for i in range(len(w) - 2)} for w in (one, other))
        estimate = (minhash(" ".join(one), 3) == minhash(" ".join(other), 3)).mean()
        assert estimate == pytest.approx(len(a & b) / len(a | b), abs=0.12)


def test_texts_with_a_few_words_changed_are_found_and_unrelated_ones_are_not():
    texts = [text(i) for i in range(100)]
    for i in range(30):
        changed = list(texts[i])
        changed[50 + i] = "changed"
        texts.append(changed)
    signatures = np.stack([minhash(" ".join(words), 5) for words in texts])
    groups = {group for group in as_sets(signature_clusters(signatures, 0.8)) if len(group) > 1}
    assert groups == {frozenset((i, 100 + i)) for i in range(30)}
