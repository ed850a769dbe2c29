"""From a picture and the finest level of its feature pyramid to what is marked in each pixel."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ..layers import init_weights


class SegmentationHead(nn.Module):
    """Fuses shallow edges with deep semantics: convolutions over the pixels, and the pyramid between them.

    The pyramid knows what is there, at a patch's grain (arXiv 1612.03144); a crack or a scratch is narrower,
    and its edges are in the pixels.

    Args:
        width: of the pyramid.
        channels: of the convolutions.
        num_findings: kinds of structures.
    """

    def __init__(self, width: int, channels: int, num_findings: int) -> None:
        super().__init__()
        self.shallow = nn.Conv2d(3, channels, 3, padding=1)
        self.edges = nn.Conv2d(channels, channels, 3, padding=1)
        self.deep = nn.Conv2d(width, channels, 1)
        self.fuse = nn.Conv2d(channels, channels, 3, padding=1)
        self.logits = nn.Conv2d(channels, num_findings, 1)
        self.apply(init_weights)

    def forward(self, image: Tensor, dense: Tensor) -> Tensor:
        """Logits (B, K, H, W) of pictures (B, 3, H, W) and their finest level (B, width, R, R)."""
        edges = self.edges(F.gelu(self.shallow(image)))
        deep = F.interpolate(self.deep(dense), image.shape[-2:], mode="bilinear", align_corners=False)
        return self.logits(F.gelu(self.fuse(F.gelu(edges + deep))))
