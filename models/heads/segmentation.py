"""From a picture and the finest level of its feature pyramid to what is marked in each pixel."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers import init_weights

GRAIN = 2
"""Side of the blocks of pixels that convolutions see as one place: so many channels more, so few places."""


class SegmentationHead(nn.Module):
    """Fuses shallow edges with deep semantics: convolutions over the pixels, and the pyramid between them.

    The pyramid knows what is there, at a patch's grain (arXiv 1612.03144); a crack or a scratch is narrower,
    and its edges are in the pixels. Those are taken in blocks and given back so (arXiv 1609.05158): nothing
    is lost, and a convolution costs a quarter.

    A trace that is cut short, or one too many, differs from others only by what the layout should be. With a
    reference both pictures go through the same convolutions, and what follows sees each and how they differ.

    Args:
        width: of the pyramid.
        channels: of the convolutions.
        num_findings: kinds of structures.
        compares: pictures come with a reference.
    """

    def __init__(self, width: int, channels: int, num_findings: int, compares: bool = False) -> None:
        super().__init__()
        blocks = GRAIN**2
        self.shallow = nn.Conv2d(3 * blocks, channels, 3, padding=1)
        self.compared = nn.Conv2d(3 * channels, channels, 3, padding=1) if compares else None
        self.edges = nn.Conv2d(channels, channels, 3, padding=1)
        self.deep = nn.Conv2d(width, channels, 1)
        self.fuse = nn.Conv2d(channels, channels, 3, padding=1)
        self.logits = nn.Conv2d(channels, blocks * num_findings, 1)
        self.apply(init_weights)

    def forward(self, image: Tensor, dense: Tensor, reference: Tensor | None = None) -> Tensor:
        """Logits (B, K, H, W) of pictures (B, 3, H, W), their finest level (B, width, R, R) and, for those
        that are compared, how they should look (B, 3, H, W).
        """
        seen = self._seen(image)
        if self.compared is not None:
            assert reference is not None
            wanted = self._seen(reference)
            seen = F.gelu(self.compared(torch.cat((seen, wanted, (seen - wanted).abs()), dim=1)))
        edges = self.edges(seen)
        deep = F.interpolate(self.deep(dense), edges.shape[-2:], mode="bilinear", align_corners=False)
        fused = F.gelu(self.fuse(F.gelu(edges + deep)))
        return F.pixel_shuffle(self.logits(fused), GRAIN)

    def _seen(self, image: Tensor) -> Tensor:
        return F.gelu(self.shallow(F.pixel_unshuffle(image, GRAIN)))
