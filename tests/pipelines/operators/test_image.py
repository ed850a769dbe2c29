"""Judging pictures."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageFilter

from eagleray.pipelines.operators.decode import DecodeImageSpec, decode_image
from eagleray.pipelines.operators.image import ImageQualitySpec, ImageSizeSpec, image_quality, image_size
from eagleray.pipelines.quarantine import Refused
from eagleray.pipelines.spec import Preparation

from ..conftest import svg
from ..media.test_similarity import scene

PREPARATION = Preparation(image_size=64, stored_image_size=64)


def record(picture: Image.Image, width: int = 640, height: int = 640) -> dict:
    pixels = np.asarray(picture.convert("RGB").resize((64, 64))).tobytes()
    return {"image": {"address": "x", "width": width, "height": height, "pixels": pixels}}


def decoded(picture: Image.Image) -> dict:
    """A record as decoding gives it."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    row = {"picture": {"address": "x", "content": buffer.getvalue()}}
    return decode_image(DecodeImageSpec(), PREPARATION)(row, lambda *args: None) or {}


@pytest.mark.parametrize(
    ("size", "reason"),
    [((63, 500), "image-too-small"), ((20_000, 9000), "image-too-wide"), ((401, 100), "image-too-narrow")],
)
def test_pictures_of_odd_sizes_are_left_out(size, reason):
    apply = image_size(ImageSizeSpec(), PREPARATION)
    with pytest.raises(Refused) as refused:
        apply(record(scene(0), *size), lambda *args: None)
    assert (refused.value.reason, refused.value.wanted) == (reason, True)
    assert apply(record(scene(0), 400, 100), lambda *args: None) is None
    assert apply({"image": None}, lambda *args: None) is None


def test_a_vector_picture_has_a_shape_but_no_size():
    apply = image_size(ImageSizeSpec(), PREPARATION)
    drawing = {"picture": {"address": "x.svg", "content": svg()}}
    assert apply(record(scene(0), 32, 64) | drawing, lambda *args: None) is None
    with pytest.raises(Refused, match="1:4"):
        apply(record(scene(0), 15, 64) | drawing, lambda *args: None)


def test_blurred_and_flat_pictures_are_left_out_and_sharp_ones_stay():
    apply = image_quality(ImageQualitySpec(), PREPARATION)
    for seed in range(10):
        assert apply(record(scene(seed)), lambda *args: None) is None
        with pytest.raises(Refused) as refused:
            apply(record(scene(seed).filter(ImageFilter.GaussianBlur(30))), lambda *args: None)
        assert refused.value.reason in ("blurred-image", "low-contrast-image")
    with pytest.raises(Refused, match="deviation"):
        apply(record(Image.new("RGB", (64, 64), (90, 90, 92))), lambda *args: None)


@pytest.mark.parametrize(("shade", "reason"), [(4, "dark-image"), (251, "bright-image")])
def test_dark_and_bright_pictures_are_left_out(shade, reason):
    apply = image_quality(ImageQualitySpec(), PREPARATION)
    speckled = np.random.default_rng(0).integers(shade - 4, shade + 5, (64, 64, 3), np.uint8)
    with pytest.raises(Refused, match="a mean of") as refused:
        apply(record(Image.fromarray(speckled)), lambda *args: None)
    assert (refused.value.reason, refused.value.wanted) == (reason, True)


@pytest.mark.parametrize("size", [(64, 20), (20, 64)])
def test_bars_beside_a_picture_are_no_part_of_it(size):
    """They would make any picture bright, and their edges sharp and full of contrast."""
    apply = image_quality(ImageQualitySpec(), PREPARATION)
    grain = np.random.default_rng(0).integers(0, 2, (size[1], size[0], 3), np.uint8)
    for shade, reason in ((0, "dark-image"), (110, "low-contrast-image")):
        with pytest.raises(Refused) as refused:
            apply(decoded(Image.fromarray(grain + np.uint8(shade))), lambda *args: None)
        assert refused.value.reason == reason
    smooth = Image.linear_gradient("L").resize(size)
    with pytest.raises(Refused) as refused:
        apply(decoded(smooth), lambda *args: None)
    assert refused.value.reason == "blurred-image"
