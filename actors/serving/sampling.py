"""What a bundle is tried with that marks pictures or volumes, as a request carries it."""

from __future__ import annotations

import base64

import nibabel
import numpy as np

from ...pipelines.media.image import Pixels, encode
from ...pipelines.spec import Slicing


def picture_sample(pixels: Pixels) -> str:
    """A picture (H, W, 3) as a PNG in base64."""
    return base64.b64encode(encode(pixels)).decode()


def volume_sample(pixels: Pixels, slicing: Slicing) -> str:
    """The three slices (H, W, 3) of a patch as NIfTI in base64: nothing to assess, but a volume."""
    shares = pixels.transpose(1, 0, 2).astype(np.float32) / 255  # NIfTI's first axis is the width
    values = np.rint(slicing.low_hu + shares * (slicing.high_hu - slicing.low_hu)).astype(np.int16)
    depth, height, width = slicing.spacing_mm
    affine = np.diag([width, height, depth * slicing.gap, 1.0])
    return base64.b64encode(nibabel.Nifti1Image(values, affine).to_bytes()).decode()  # pyright: ignore[reportAttributeAccessIssue]
