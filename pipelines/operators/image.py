"""Leaving out pictures by their size and by how they look."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ..operator import Apply, Operator, OperatorSpec
from ..quarantine import Refuse, Refused
from ..source import Row
from ..spec import Preparation


class ImageSizeSpec(OperatorSpec):
    """Leave out pictures that are too small, too large or too narrow."""

    kind: Literal["image-size"] = "image-size"
    min_side: int = Field(default=64, ge=1)
    """Least width and height of the original, in pixels; a vector picture has none."""
    max_side: int = Field(default=16_384, ge=1)
    """Greatest width and height of the original, in pixels."""
    max_aspect: float = Field(default=4.0, ge=1)
    """Greatest ratio of the longer side to the shorter."""


class ImageQualitySpec(OperatorSpec):
    """Leave out pictures that are blurred, too dark, too bright, or nearly of one tone."""

    kind: Literal["image-quality"] = "image-quality"
    min_sharpness: float = Field(default=20.0, ge=0)
    """Least variance of the luma's Laplacian, at the stored size (Pech-Pacheco et al. 2000)."""
    min_contrast: float = Field(default=8.0, ge=0)
    """Least standard deviation of the luma, of 255."""
    min_brightness: float = Field(default=10.0, ge=0, le=255)
    """Least mean of the luma, of 255."""
    max_brightness: float = Field(default=250.0, ge=0, le=255)
    """Greatest mean of the luma, of 255."""


def image_size(spec: ImageSizeSpec, preparation: Preparation) -> Apply:
    """Judges `image` by the original's size."""
    from ..media.image import is_vector

    def apply(row: Row, refuse: Refuse) -> None:
        if row["image"] is None:
            return
        width, height = row["image"]["width"], row["image"]["height"]
        size = f"{width}x{height} pixels"
        rendered = row.get("picture") is not None and is_vector(row["picture"]["content"])
        if not rendered and min(width, height) < spec.min_side:
            raise Refused("image-too-small", f"{size}, at least {spec.min_side} a side", wanted=True)
        if not rendered and max(width, height) > spec.max_side:
            raise Refused("image-too-wide", f"{size}, at most {spec.max_side} a side", wanted=True)
        if max(width, height) > spec.max_aspect * min(width, height):
            raise Refused("image-too-narrow", f"{size}, sides at most 1:{spec.max_aspect:g}", wanted=True)

    return apply


def image_quality(spec: ImageQualitySpec, preparation: Preparation) -> Apply:
    """Judges `image` by its stored pixels, without the bars beside them."""
    import numpy as np
    from scipy.ndimage import laplace

    from ..media.image import without_bars

    side = preparation.stored_image_size
    weights = np.array([0.299, 0.587, 0.114], np.float32)  # Rec. 601 luma

    def apply(row: Row, refuse: Refuse) -> None:
        if row["image"] is None:
            return
        pixels = np.frombuffer(row["image"]["pixels"], np.uint8).reshape(side, side, 3)
        if preparation.fit == "letterbox":
            pixels = without_bars(pixels, row["image"]["width"], row["image"]["height"])
        luma = pixels @ weights
        brightness = float(luma.mean())
        if brightness < spec.min_brightness:
            message = f"its luma has a mean of {brightness:.1f}, at least {spec.min_brightness:g}"
            raise Refused("dark-image", message, wanted=True)
        if brightness > spec.max_brightness:
            message = f"its luma has a mean of {brightness:.1f}, at most {spec.max_brightness:g}"
            raise Refused("bright-image", message, wanted=True)
        contrast = float(luma.std())
        if contrast < spec.min_contrast:
            message = f"its luma has a deviation of {contrast:.1f}, at least {spec.min_contrast:g}"
            raise Refused("low-contrast-image", message, wanted=True)
        sharpness = float(laplace(luma).var())
        if sharpness < spec.min_sharpness:
            message = f"its Laplacian has a variance of {sharpness:.1f}, at least {spec.min_sharpness:g}"
            raise Refused("blurred-image", message, wanted=True)

    return apply


SIZE = Operator(
    spec=ImageSizeSpec,
    summary="leave out pictures that are too small, too large or too narrow",
    needs=lambda spec: ("image",),
    start=image_size,
)
QUALITY = Operator(
    spec=ImageQualitySpec,
    summary="leave out pictures that are blurred, too dark, too bright, or nearly of one tone",
    needs=lambda spec: ("image",),
    start=image_quality,
)
