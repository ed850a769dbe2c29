"""Perceptual hashes, MinHash, and close pairs."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageEnhance

from eagleray.pipelines.media.similarity import (
    clusters,
    minhash,
    perceptual_hash,
    similar_hashes,
    similar_signatures,
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


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=25), st.integers(0, 8), st.data())
@settings(deadline=None)
def test_all_close_pairs_are_found_and_no_others(hashes, distance, data):
    """Against comparing every two; some are made close."""
    for base in list(hashes[:8]):
        bits = data.draw(st.lists(st.integers(0, 63), max_size=distance + 1, unique=True))
        hashes.append(base ^ sum(1 << bit for bit in bits))
    unique = np.unique(np.array(hashes, np.uint64))
    found = {tuple(pair) for pair in similar_hashes(unique, distance).tolist()}
    expected = {
        (i, j)
        for j in range(len(unique))
        for i in range(j)
        if (int(unique[i]) ^ int(unique[j])).bit_count() <= distance
    }
    assert found == expected


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
    pairs = {tuple(pair) for pair in similar_signatures(signatures, 0.8).tolist()}
    assert pairs == {(i, 100 + i) for i in range(30)}


def test_what_is_joined_by_others_is_one_cluster():
    found = clusters(6, np.array([[0, 2], [2, 5], [1, 3]]))
    assert len(set(found)) == 3
    assert found[0] == found[2] == found[5]
    assert found[1] == found[3]
    assert clusters(3, np.empty((0, 2), np.int64)).tolist() == [0, 1, 2]
