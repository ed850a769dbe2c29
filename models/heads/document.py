"""From segments of a document to its category, as a sum over its tokens that tells where it was found."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from ..layers import init_weights

NOTHING = -1e4
"""Score of what isn't there: as good as minus infinity, and a number in half precision."""


class Found(NamedTuple):
    """What segments say.

    Attributes:
        evidence: (S, L, K) what each token adds to its segment's logits; 0 where there is none.
        scores: (S,) how much each segment counts, before the softmax over a document's.
    """

    evidence: Tensor
    scores: Tensor


class DocumentHead(nn.Module):
    """Attention over a segment's tokens, then gated attention over segments (Ilse et al. 2018, equation 9).

    The classifier is linear, so a document's logits are a sum over its tokens: what is told as evidence is
    what was decided by.

    Shape letters: S segments, L tokens, D width, K categories, B documents.

    Args:
        width: of the hidden states.
        num_classes: how many categories.
    """

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.token_score = nn.Linear(width, 1, bias=False)
        self.content = nn.Linear(width, width)
        self.gate = nn.Linear(width, width)
        self.segment_score = nn.Linear(width, 1, bias=False)  # a softmax has no use for one
        self.classifier = nn.Linear(width, num_classes)
        self.apply(init_weights)

    def forward(self, hidden: Tensor, mask: Tensor) -> Found:
        """Read hidden (S, L, D) where mask (S, L) is True; a segment without a token counts nothing."""
        hidden = hidden.masked_fill(~mask.unsqueeze(-1), 0)
        scores = self.token_score(hidden).squeeze(-1).masked_fill(~mask, NOTHING)
        weights = scores.softmax(dim=-1).masked_fill(~mask, 0)
        pooled = (weights.unsqueeze(1) @ hidden).squeeze(1)
        gated = self.content(pooled).tanh() * self.gate(pooled).sigmoid()
        counts = self.segment_score(gated).squeeze(-1).masked_fill(~mask.any(dim=1), NOTHING)
        return Found(weights.unsqueeze(-1) * self.classifier(hidden), counts)


def pooled(logits: Tensor, scores: Tensor, documents: int) -> Tensor:
    """Logits (B, K) of documents that have the same number of segments each, those of one side by side.

    A document without a token has logits of 0.

    Args:
        logits: (B*S, K) of the segments: the sum over what their tokens add.
        scores: (B*S,) how much each segment counts; see `Found`.
        documents: how many.
    """
    evidence = logits.unflatten(0, (documents, -1))
    weights = scores.unflatten(0, (documents, -1)).softmax(dim=-1)
    return (weights.unsqueeze(1) @ evidence).squeeze(1)


def segmented(tokens: Tensor, length: int, overlap: int) -> Tensor:
    """Overlapping segments (B, S, L) of tokens or their mask (B, T), the last one filled up with 0.

    There are as many as it takes for each token to be in one.
    """
    stride = length - overlap
    count = max(1, -(-(tokens.shape[1] - overlap) // stride))
    missing = overlap + count * stride - tokens.shape[1]
    return F.pad(tokens, (0, missing)).unfold(1, length, stride)
