"""Judging pictures."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFilter

from eagleray.pipelines.operators.image import ImageQualitySpec, ImageSizeSpec, image_quality, image_size
from eagleray.pipelines.quarantine import Refused
from eagleray.pipelines.spec import Preparation

from ..media.test_similarity import scene

PREPARATION = Preparation(image_size=64, stored_image_size=64)


def record(picture: Image.Image, width: int = 640, height: int = 480) -> dict:
    pixels = np.asarray(picture.convert("RGB").resize((64, 64))).tobytes()
    return {"image": {"address": "x", "width": width, "height": height, "pixels": pixels}}


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


def test_blurred_and_flat_pictures_are_left_out_and_sharp_ones_stay():
    apply = image_quality(ImageQualitySpec(), PREPARATION)
    for seed in range(10):
        assert apply(record(scene(seed)), lambda *args: None) is None
        with pytest.raises(Refused) as refused:
            apply(record(scene(seed).filter(ImageFilter.GaussianBlur(30))), lambda *args: None)
        assert refused.value.reason in ("blurred-image", "low-contrast-image")
    with pytest.raises(Refused, match="deviation"):
        apply(record(Image.new("RGB", (64, 64), (90, 90, 92))), lambda *args: None)
