"""Tensor parallelism of a vocabulary: each worker embeds, and gives logits of, a part of the tokens.

No worker ever has all logits: of each position the workers tell each other three numbers (Megatron-LM, arXiv
1909.08053, section 3).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...models.heads.vocabulary import Vocabulary
from ...models.losses import IGNORED, promoted
from .local import local_part
from .team import Team, copy


class Divided:
    """Has a part of the tokens, as many as every other worker.

    Attributes:
        team: the tensor-parallel workers.
    """

    team: Team


class ParallelEmbedding(Divided, nn.Embedding):
    """Embeds a part of the tokens; the workers' sum has all of them."""

    def forward(self, input: Tensor) -> Tensor:
        """Embed tokens (...) as (..., D); 0 where another worker has the token."""
        weight = local_part(self.weight)
        places, mine = _places(input, self.team, weight.shape[0])
        return F.embedding(places, weight) * mine[..., None]


class ParallelVocabulary(Divided, Vocabulary):
    """Logits of a part of the tokens."""

    def forward(self, input: Tensor) -> Tensor:
        """Logits (..., V / workers) of this worker's tokens after hidden states (..., D)."""
        bias = self.bias if self.bias is None else local_part(self.bias)  # pyright: ignore[reportUnnecessaryComparison]
        return F.linear(copy(input, self.team), local_part(self.weight), bias)

    def nll(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Negative log-likelihoods (...) of targets (...) among all workers' tokens; 0 where `IGNORED`."""
        logits = promoted(self(hidden)).flatten(0, -2)
        nll = _CrossEntropy.apply(logits, targets.flatten(), self.team)
        assert isinstance(nll, Tensor)
        return nll.unflatten(0, targets.shape)


def _places(tokens: Tensor, team: Team, count: int) -> tuple[Tensor, Tensor]:
    """Where a worker has tokens, any place for those it hasn't; and which it has."""
    places = tokens - team.rank * count
    mine = (places >= 0) & (places < count)
    return places.clamp(0, count - 1), mine


class _CrossEntropy(torch.autograd.Function):
    """Cross-entropy of logits (N, V / workers) with targets (N,), each of which one worker has."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,  # noqa: ANN401 - torch's own type lacks what it has here
        logits: Tensor,
        targets: Tensor,
        team: Team,
    ) -> Tensor:
        most = logits.amax(dim=1)
        team.all_reduce(most, largest=True)
        powers = (logits - most[:, None]).exp()
        places, mine = _places(targets, team, logits.shape[1])
        own = (logits.gather(1, places[:, None]).squeeze(1) - most) * mine
        sums = torch.stack((powers.sum(dim=1), own))
        team.all_reduce(sums)
        counted = targets != IGNORED
        ctx.save_for_backward(powers.div_(sums[0][:, None]), places, mine, counted)
        return (sums[0].log() - sums[1]) * counted

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,  # noqa: ANN401
        gradient: Tensor,
    ) -> tuple[Tensor, None, None]:
        shares, places, mine, counted = ctx.saved_tensors
        of_each = (gradient * counted)[:, None]
        found = shares * of_each
        found.scatter_add_(1, places[:, None], -of_each * mine[:, None])
        return found, None, None
