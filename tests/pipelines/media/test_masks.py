"""Masks of pictures: as PNGs, fitted and cropped as their pictures are."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from eagleray.pipelines.media import image, masks
from eagleray.pipelines.quarantine import Refused

some_masks = arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=40), elements=st.integers(0, 3))


def png_of(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


@given(some_masks)
def test_a_mask_comes_back_from_its_png(mask):
    assert np.array_equal(masks.decode(masks.encode(mask)), mask)


@pytest.mark.parametrize("mode", ["1", "RGB", "RGBA", "P", "I;16"])
def test_only_one_channel_of_eight_bits_is_a_mask(mode):
    with pytest.raises(Refused, match="must be L") as refused:
        masks.decode(png_of(Image.new(mode, (4, 4))))
    assert refused.value.reason == "bad-mask"


@pytest.mark.parametrize("content", [b"", b"nothing", masks.encode(np.eye(90, dtype=np.uint8))[:60]])
def test_what_is_no_png_is_refused(content):
    with pytest.raises(Refused) as refused:
        masks.decode(content)
    assert refused.value.reason == "bad-mask"


def test_a_mask_has_its_pictures_size_and_a_label_for_what_it_marks():
    content = masks.encode(np.array([[0, 2], [1, 0], [0, 0]], np.uint8))
    assert masks.read({"labels": ["a", "b"], "content": content}, 2, 3).tolist() == [[0, 2], [1, 0], [0, 0]]
    with pytest.raises(Refused, match="the mask is 2x3, its picture 3x2"):
        masks.read({"labels": ["a", "b"], "content": content}, 3, 2)
    with pytest.raises(Refused, match="pixel of 2, and 1 labels"):
        masks.read({"labels": ["a"], "content": content}, 2, 3)


@given(some_masks, st.integers(1, 50))
def test_nothing_that_is_marked_vanishes_and_nothing_else_is_marked(mask, size):
    fitted = masks.fit(mask, size)
    assert fitted.shape == (size, size)
    assert set(np.unique(fitted)) <= {0, *np.unique(mask)}
    inner = image.without_bars(fitted, mask.shape[1], mask.shape[0])
    assert np.count_nonzero(inner) == np.count_nonzero(fitted)  # bars are 0
    assert inner.any() == mask.any()
    for row, column in np.argwhere(mask):  # the pixel that covers its middle is marked
        there = [int((at + 0.5) * to / of) for at, to, of in zip((row, column), inner.shape, mask.shape)]  # noqa: B905
        around = inner[max(0, there[0] - 1) : there[0] + 2, max(0, there[1] - 1) : there[1] + 2]
        assert around.any()


@given(some_masks, st.integers(1, 50))
def test_a_cropped_mask_is_of_the_middle_square(mask, size):
    side = min(mask.shape)
    cropped = masks.fit(mask, size, "crop")
    assert cropped.shape == (size, size)
    top, left = ((length - side + 1) // 2 for length in mask.shape)
    assert set(np.unique(cropped)) <= {0, *np.unique(mask)}
    if mask[top : top + side - 1, left : left + side - 1].any():
        assert size > side or cropped.any()


def test_a_pixel_takes_the_most_frequent_label_that_it_covers():
    mask = np.array([[0, 0, 0, 0], [0, 1, 0, 0], [2, 2, 3, 2], [2, 1, 3, 2]], np.uint8)
    assert masks.fit(mask, 2).tolist() == [[1, 0], [2, 2]]  # 1 in four, and 2 before the equally frequent 3


@pytest.mark.parametrize("how", ["letterbox", "crop"])
@pytest.mark.parametrize("size", [20, 64, 150])
@pytest.mark.parametrize("shape", [(80, 120), (120, 81), (64, 64)])
def test_a_mask_lies_where_its_picture_shows_it(how, size, shape):
    height, width = shape
    mask = np.zeros(shape, np.uint8)
    mask[height // 3 : height // 3 + 25, width // 2 : width // 2 + 30] = 1
    picture = png_of(Image.fromarray(np.where(mask[..., None] > 0, (250, 0, 0), (0, 0, 90)).astype(np.uint8)))
    reds = image.decode(picture, size, how)[..., 0].astype(int)
    if how == "letterbox":
        reds = image.without_bars(reds, width, height)
        fitted = image.without_bars(masks.fit(mask, size), width, height)
    else:
        fitted = masks.fit(mask, size, how)
    assert fitted[reds > 160].all()
    assert not fitted[reds < 8].any() or np.count_nonzero(fitted[reds < 8]) < 0.1 * np.count_nonzero(fitted)


def test_a_scratch_of_one_pixel_is_seen_at_a_tenth_of_its_size():
    mask = np.zeros((700, 500), np.uint8)
    mask[np.arange(500), np.arange(500)] = 1
    assert (image.without_bars(masks.fit(mask, 70), 500, 700).any(axis=0)).all()
    assert masks.crop(mask, 3, 4, 5, 6).shape == (6, 5)
