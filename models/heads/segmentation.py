"""From a picture and the finest level of its feature pyramid to what is marked in each pixel."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GRAIN = 2
"""Side of the blocks of pixels that convolutions see as one place: so many channels more, so few places."""
PRIOR = 0.01
"""Probability of anything in a pixel before training (arXiv 1708.02002, section 4.1): from a half on, the
first steps would only learn that nearly everywhere there is nothing."""


class SegmentationHead(nn.Module):
    """Fuses shallow edges with deep semantics: convolutions over the pixels, and the pyramid between them.

    The pyramid knows what is there, at a patch's grain (arXiv 1612.03144); a crack or a scratch is narrower,
    and its edges are in the pixels. Those are taken in blocks and given back so (arXiv 1609.05158): nothing
    is lost, and a convolution costs a quarter.

    A trace that is cut short, or one too many, differs from others only by what the layout should be. With a
    reference both pictures go through the same convolutions, and what follows sees each and how they differ.

    Whether there is anything, and what it is, are told apart, as detectors do (arXiv 1506.02640): so the
    first is learned from all kinds, however rare each is.

    Args:
        width: of the pyramid.
        channels: of the convolutions.
        num_findings: kinds of structures.
        compares: pictures come with a reference.
    """

    def __init__(self, width: int, channels: int, num_findings: int, compares: bool = False) -> None:
        super().__init__()
        blocks = GRAIN**2
        self.shallow = _convolution(3 * blocks, channels)
        self.compared = _convolution(3 * channels, channels) if compares else None
        self.edges = _convolution(channels, channels)
        self.deep = nn.Conv2d(width, channels, 1)
        self.fuse = _convolution(channels, channels)
        self.logits = nn.Conv2d(channels, blocks * (1 + num_findings * (num_findings > 1)), 1)
        assert self.logits.bias is not None
        nn.init.constant_(self.logits.bias[:blocks], math.log(PRIOR / (1 - PRIOR)))

    def forward(self, image: Tensor, dense: Tensor, reference: Tensor | None = None) -> Tensor:
        """Logits (B, 1 + K, H, W) of anything, and of its being each of K kinds; (B, 1, H, W) for one kind.

        Args:
            image: (B, 3, H, W) pictures of even sides.
            dense: (B, width, R, R) their pyramid's finest level.
            reference: (B, 3, H, W) how they should look, if they are compared.
        """
        seen = self._seen(image)
        if self.compared is not None:
            assert reference is not None
            wanted = self._seen(reference)
            seen = self.compared(torch.cat((seen, wanted, (seen - wanted).abs()), dim=1))
        deep = F.interpolate(self.deep(dense), seen.shape[-2:], mode="bilinear", align_corners=False)
        seen = seen + self.edges(seen) + deep
        seen = seen + self.fuse(seen)
        return F.pixel_shuffle(self.logits(seen), GRAIN)

    def _seen(self, image: Tensor) -> Tensor:
        return self.shallow(F.pixel_unshuffle(image, GRAIN))


def _convolution(inputs: int, channels: int) -> nn.Sequential:
    """3 x 3 and a ReLU: no other activation costs as little where each pixel has its own."""
    found = nn.Conv2d(inputs, channels, 3, padding=1)
    nn.init.kaiming_normal_(found.weight)
    assert found.bias is not None
    nn.init.zeros_(found.bias)
    return nn.Sequential(found, nn.ReLU())


def probabilities(logits: Tensor) -> Tensor:
    """How likely each finding is (B, K, H, W), by the head's logits; together, how likely anything is."""
    anything = logits[:, :1].sigmoid()
    return anything * logits[:, 1:].softmax(dim=1) if logits.shape[1] > 1 else anything
