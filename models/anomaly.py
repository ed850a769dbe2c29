"""How unlike normal patches a picture's patches are: features of each, and a mixture of Gaussians over them.

Shape letters: B pictures, S side of a picture, C channels, R side of the features' grid, D features,
K components.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .vision import VisionEncoder

FARTHEST = 3e4
"""Greatest squared distance of a patch from a component, in deviations: beyond, all are as far (half
precision ends at 65,504)."""
REACH = 3.0
"""Deviations at which a Gaussian ends."""
COLOURS = ((1 / 3, 1 / 3, 1 / 3), (1.0, -1.0, 0.0), (0.5, 0.5, -1.0))
"""Brightness, red against green, and yellow against blue."""


class LocalJet(nn.Module):
    """Fixed filters: derivatives of Gaussians up to the second order, of brightness and two opponent colours.

    They are what tells a place's structure at a scale (Koenderink and van Doorn 1987); multiplied by powers
    of the scale, so that one edge weighs as much at all. Of brightness itself only its change is taken,
    since light differs from picture to picture.

    Args:
        scales: deviations of the Gaussians, pixels.
        stride: pixels from one place to the next.
    """

    def __init__(self, scales: Sequence[float], stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.reach = math.ceil(REACH * max(scales))
        filters = torch.cat([_derivatives(scale, self.reach) for scale in scales])
        mixed = torch.einsum("oc,fhw->ofchw", torch.tensor(COLOURS), filters)
        smooth = torch.arange(len(scales)) * 6
        kept = torch.ones(mixed.shape[:2], dtype=torch.bool)
        kept[0, smooth] = False
        self.filters = nn.Buffer(mixed[kept])

    @property
    def width(self) -> int:
        """Features of a place."""
        return len(self.filters)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, S, S) → (B, D, R, R); beyond the edge a picture goes on as its mirror image."""
        before = (self.stride - 1) // 2  # a place lies in the middle of its stride
        wide = F.pad(image, [self.reach - before, self.reach + before] * 2, mode="reflect")
        return F.conv2d(wide, self.filters, stride=self.stride)


class PatchFeatures(nn.Module):
    """What is known of each patch, wherever it lies.

    Args:
        vision: the encoder whose scales are taken, brought to the finest grid; None for none.
        filters: deviations of fixed filters, pixels; empty for none.
        stride: pixels from one patch to the next.

    Raises:
        ValueError: when neither is taken.
    """

    def __init__(self, vision: VisionEncoder | None, filters: Sequence[float], stride: int) -> None:
        super().__init__()
        if vision is None and not filters:
            raise ValueError("patches have no features: neither an encoder's nor filters'")
        self.vision, self.stride = vision, stride
        self.jet = LocalJet(filters, stride) if filters else None

    @property
    def width(self) -> int:
        """Features of a patch."""
        deep = sum(self.vision.channels) if self.vision is not None else 0
        return deep + (self.jet.width if self.jet is not None else 0)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, S, S) → (B, D, R, R)."""
        side = -(-image.shape[-1] // self.stride)
        found: list[Tensor] = []
        if self.vision is not None:
            for scale, resolution in zip(self.vision.scales(image), self.vision.resolutions, strict=True):
                grid = scale.transpose(1, 2).unflatten(2, (resolution, resolution))
                found.append(F.interpolate(grid, size=(side, side), mode="bilinear", align_corners=False))
        if self.jet is not None:
            found.append(self.jet(image))
        return torch.cat(found, dim=1)


class MixtureDensity(nn.Module):
    """Negative log-density of patches under a mixture of Gaussians, in standardised features.

    Args:
        width: features, D.
        num_components: K.
    """

    def __init__(self, width: int, num_components: int) -> None:
        super().__init__()
        self.shift = nn.Buffer(torch.zeros(width))
        self.scale = nn.Buffer(torch.ones(width))
        self.whitening = nn.Buffer(torch.eye(width).repeat(num_components, 1, 1))
        self.offsets = nn.Buffer(torch.zeros(num_components, width))
        self.constants = nn.Buffer(torch.zeros(num_components))

    def set_(self, shift: Tensor, scale: Tensor, weights: Tensor, means: Tensor, covariances: Tensor) -> None:
        """Take a mixture's parameters, in double precision.

        Args:
            shift: (D,) that is taken from the features.
            scale: (D,) that they are then divided by.
            weights: (K,).
            means: (K, D).
            covariances: (K, D, D).
        """
        factors = torch.linalg.cholesky(covariances)
        identity = torch.eye(len(shift), dtype=factors.dtype).expand_as(factors)
        whitening = torch.linalg.solve_triangular(factors, identity, upper=False)
        log_volumes = factors.diagonal(dim1=1, dim2=2).log().sum(dim=1)
        constants = weights.log() - log_volumes - len(shift) * math.log(2 * math.pi) / 2
        offsets = (whitening @ means.unsqueeze(-1)).squeeze(-1)
        for buffer, value in (
            (self.shift, shift), (self.scale, scale), (self.whitening, whitening),
            (self.offsets, offsets), (self.constants, constants),
        ):  # fmt: skip
            buffer.copy_(value)

    def forward(self, features: Tensor) -> Tensor:
        """(B, D, R, R) → (B, R, R), nats."""
        x = (features.movedim(1, -1) - self.shift) / self.scale
        # one component after the other: all at once would take K times the memory
        parts = zip(self.whitening, self.offsets, strict=True)
        distances = [(x @ white.T - offset).square().sum(dim=-1) for white, offset in parts]
        joint = self.constants - torch.stack(distances, dim=-1).clamp(max=FARTHEST) / 2
        return -torch.logsumexp(joint, dim=-1)


class AnomalyDetector(nn.Module):
    """Tells of each pixel how unlike a normal one it is.

    Args:
        features: of patches.
        num_components: of the mixture over them.

    Attributes:
        threshold: nats, from which on a pixel is told.
        spread: nats; see `scores`.
    """

    def __init__(self, features: PatchFeatures, num_components: int) -> None:
        super().__init__()
        self.features = features
        self.density = MixtureDensity(features.width, num_components)
        self.threshold = nn.Buffer(torch.zeros(()))
        self.spread = nn.Buffer(torch.ones(()))

    def forward(self, image: Tensor) -> Tensor:
        """Negative log-density (B, S, S) of pictures (B, 3, S, S), nats; between patches it is linear."""
        found = self.density(self.features(image))
        size = image.shape[-2:]
        return F.interpolate(found.unsqueeze(1), size=size, mode="bilinear", align_corners=False).squeeze(1)

    def scores(self, image: Tensor) -> Tensor:
        """From 0 to 1 (B, 1, S, S): a half at the threshold; one `spread` more are odds e times as great.

        They order pixels as nats do, and are no probabilities.
        """
        return torch.sigmoid((self(image) - self.threshold) / self.spread).unsqueeze(1)


def _derivatives(scale: float, reach: int) -> Tensor:
    """Filters (6, 2*reach+1, 2*reach+1): the Gaussian, its two slopes, and its three curvatures."""
    x = torch.arange(-reach, reach + 1, dtype=torch.float64) / scale
    smooth = torch.exp(-x.square() / 2)
    smooth = smooth / smooth.sum()
    slope, curvature = x * smooth, (x.square() - 1) * smooth
    curvature = curvature - curvature.sum() * smooth  # of what is flat, nothing
    pairs = [(smooth, smooth), (smooth, slope), (slope, smooth)]
    pairs += [(smooth, curvature), (curvature, smooth), (slope, slope)]
    return torch.stack([torch.outer(down, across) for down, across in pairs]).float()
