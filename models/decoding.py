"""A decoder of captions and answers that reads every modality a sample has, and none that it lacks.

Shape letters: B batch, T tokens, N memory positions, D width, V vocabulary, M modalities.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .heads.vocabulary import Vocabulary
from .layers import MLP, CrossAttention, KeyValues, RowDropout, init_weights
from .spec import MODALITIES, DecoderSpec
from .text import BlockCache, RelativeAttention

Memories = Mapping[str, tuple[Tensor, Tensor]]
"""Modality → its hidden states (B, N, width) and where they are valid (B, N) bool."""


class ModalityGate(nn.Module):
    """How much of a sample's evidence is to come from each modality.

    The weights are softmax(log table[type] + score(question)). The score starts at zero: before training, a
    question of a known type gets what the table says, and any other the same of all.

    Args:
        width: of the question.
        spec: the table, and whether it is learned on from.
    """

    log_table: Tensor

    def __init__(self, width: int, spec: DecoderSpec) -> None:
        super().__init__()
        self.width = width
        self.score = nn.Linear(width, len(MODALITIES)) if spec.gate == "learned" else None
        if self.score is not None:
            nn.init.zeros_(self.score.weight)
            nn.init.zeros_(self.score.bias)
        kinds = () if spec.gate == "equal" else spec.question_types
        alike = (1.0,) * len(MODALITIES)
        # one row more, which -1 finds: no type
        table = torch.tensor([*(kind.weights for kind in kinds), alike]).log()
        self.register_buffer("log_table", table, persistent=False)

    def forward(self, question: Tensor, kind: Tensor, present: Tensor) -> Tensor:
        """Weigh the modalities of each row.

        Args:
            question: (B, D).
            kind: (B,) int64, number of the question's type; -1 for none.
            present: (B, M) bool, in the order of `MODALITIES`.

        Returns:
            (B, M); a row's weights sum to 1 over what is present and are exactly 0 elsewhere;
            where nothing is present, all are 0.
        """
        known = len(self.log_table) - 1
        logits = self.log_table[kind.where(kind < known, -1)].to(question.dtype)
        if self.score is not None:
            logits = logits + self.score(question.to(self.score.weight.dtype))
        # no softmax over nothing: such a row is left unmasked, and then zeroed
        hidden = ~present & present.any(dim=1, keepdim=True)
        weights = logits.masked_fill(hidden, float("-inf")).softmax(dim=-1)
        return weights.masked_fill(~present, 0)


class DecoderCache(NamedTuple):
    """What a decoder block keeps between tokens.

    Attributes:
        own: of the tokens so far.
        evidence: modality → its projected memory, and where it is read (B, N) bool.
    """

    own: BlockCache
    evidence: Mapping[str, tuple[KeyValues, Tensor]]


class Evidence(nn.ModuleDict):
    """Attention to each modality, mixed by weight.

    Args:
        width: of questions and of what is found.
        widths: modality → width of its memory.
        num_heads: divides `width`.
    """

    def __init__(self, width: int, widths: Mapping[str, int], num_heads: int) -> None:
        super().__init__({m: CrossAttention(width, widths[m], num_heads) for m in MODALITIES if m in widths})

    def forward(self, question: Tensor, memories: Memories, weights: Tensor) -> Tensor:
        """What a question (B, T, D) finds (B, T, D).

        Args:
            question: (B, T, D).
            memories: modality → its positions (B, N, width) and where they are valid (B, N).
            weights: (B, M); of a modality with weight 0 nothing is read, be it NaN.
        """
        return self.look_up(question, self.project(memories, weights), weights)

    def project(self, memories: Memories, weights: Tensor) -> dict[str, tuple[KeyValues, Tensor]]:
        """Keys and values of each memory, and where they are read (B, N)."""
        projected: dict[str, tuple[KeyValues, Tensor]] = {}
        for i, modality, cross in self._read(memories):
            memory, mask = memories[modality]
            valid = mask & (weights[:, i, None] > 0)
            projected[modality] = cross.project(memory.masked_fill(~valid.unsqueeze(-1), 0)), valid
        return projected

    def look_up(
        self, question: Tensor, projected: Mapping[str, tuple[KeyValues, Tensor]], weights: Tensor
    ) -> Tensor:
        """The same as `forward`, of memories that are projected already."""
        found = torch.zeros_like(question)
        for i, modality, cross in self._read(projected):
            weight = weights[:, i, None, None].to(question.dtype)
            found = found + weight * cross.look_up(question, *projected[modality])
        return found

    def looked_at(
        self, question: Tensor, projected: Mapping[str, tuple[KeyValues, Tensor]], weights: Tensor
    ) -> dict[str, Tensor]:
        """Modality → how much of what a question (B, T, D) finds is from where (B, T, N).

        A row sums to 1 over all modalities, or to 0 if it has none.
        """
        return {
            modality: weights[:, i, None, None] * cross.looked_at(question, *projected[modality])
            for i, modality, cross in self._read(projected)
        }

    def _read(self, given: Container[str]) -> Iterator[tuple[int, str, CrossAttention]]:
        for i, modality in enumerate(MODALITIES):
            if modality in given and modality in self:
                cross = self[modality]
                assert isinstance(cross, CrossAttention)
                yield i, modality, cross


class DecoderBlock(nn.Module):
    """Causal self-attention, attention to each modality mixed by weight, and an MLP.

    Args:
        spec: sizes.
        widths: modality → width of its memory.
    """

    def __init__(self, spec: DecoderSpec, widths: Mapping[str, int]) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(spec.d_model)
        self.attention = RelativeAttention(spec.d_model, spec.num_heads)
        self.norm_cross = nn.LayerNorm(spec.d_model)
        self.cross = Evidence(spec.d_model, widths, spec.num_heads)
        self.norm_mlp = nn.LayerNorm(spec.d_model)
        self.mlp = MLP(spec.d_model, spec.mlp_ratio)
        self.drop_attention, self.drop_cross, self.drop_mlp = (RowDropout(spec.dropout) for _ in range(3))

    def forward(
        self, hidden: Tensor, memories: Memories, weights: Tensor, seeds: Tensor | None = None
    ) -> Tensor:
        """Transform hidden (B, T, D).

        Args:
            hidden: (B, T, D).
            memories: see `Evidence`.
            weights: (B, M).
            seeds: (B,) in training.
        """
        mixed = self.attention(self.norm_attention(hidden))
        hidden = hidden + self.drop_attention(mixed, seeds)
        found = self.cross(self.norm_cross(hidden), memories, weights)
        return self._finish(hidden + self.drop_cross(found, seeds), seeds)

    def start(self, memories: Memories, weights: Tensor, capacity: int) -> DecoderCache:
        """An empty cache of so many tokens, for `step`."""
        relative = self.attention.distances(capacity, self.attention.query.weight)
        return DecoderCache(BlockCache(None, relative), self.cross.project(memories, weights))

    def step(
        self, hidden: Tensor, cache: DecoderCache, weights: Tensor, lengths: Tensor | None = None
    ) -> tuple[Tensor, DecoderCache, Tensor]:
        """Transform hidden (B, T, D), which follows on what the cache holds.

        Args:
            hidden: (B, T, D).
            cache: of what came before.
            weights: (B, M).
            lengths: see `RelativeAttention.step`.

        Returns:
            The same as `forward` (B, T, D), the cache with hidden in it, and what the evidence was asked
            (B, T, D).
        """
        mixed, own = self.attention.step(self.norm_attention(hidden), cache.own, lengths)
        hidden = hidden + mixed
        question = self.norm_cross(hidden)
        found = self.cross.look_up(question, cache.evidence, weights)
        return self._finish(hidden + found, None), DecoderCache(own, cache.evidence), question

    def _finish(self, hidden: Tensor, seeds: Tensor | None) -> Tensor:
        return hidden + self.drop_mlp(self.mlp(self.norm_mlp(hidden)), seeds)


class Generated(NamedTuple):
    """Texts that were generated.

    Attributes:
        tokens: (B, L) int64, without the one they begin with; after a text's end, the end again.
        log_probs: (B, L) of each token; 0 after the end.
        lengths: (B,) int64 tokens before the end.
    """

    tokens: Tensor
    log_probs: Tensor
    lengths: Tensor


class JointDecoder(nn.Module):
    """Next-token logits of a text, given any of a sample's modalities.

    Args:
        spec: sizes.
        vocab_size: of the tokenizer.
        widths: modality → width of its memory, for those that are read.

    Attributes:
        width: of the hidden states before `head`.
    """

    def __init__(self, spec: DecoderSpec, vocab_size: int, widths: Mapping[str, int]) -> None:
        super().__init__()
        self.width, self.tied = spec.d_model, spec.tied
        self.embed = nn.Embedding(vocab_size, spec.d_model)
        self.blocks = nn.ModuleList(DecoderBlock(spec, widths) for _ in range(spec.num_layers))
        self.norm = nn.LayerNorm(spec.d_model)
        self.head = Vocabulary(spec.d_model, vocab_size)
        self.apply(init_weights)

    def forward(self, tokens: Tensor, memories: Memories, weights: Tensor) -> Tensor:
        """Logits (B, T, V) of the token after each of tokens (B, T); see `DecoderBlock`."""
        hidden = self.embed(tokens)
        for block in self.blocks:
            hidden = block(hidden, memories, weights)
        return self.head(self.norm(hidden))

    def start(self, memories: Memories, weights: Tensor, capacity: int) -> list[DecoderCache]:
        """Empty caches of so many tokens, for `step`."""
        return [block.start(memories, weights, capacity) for block in self._blocks]

    def step(
        self,
        tokens: Tensor,
        caches: Sequence[DecoderCache],
        weights: Tensor,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, list[DecoderCache], list[Tensor]]:
        """Go on by tokens (B, T), which follow on those that the caches hold.

        Returns:
            Log-probabilities (B, T, V) of the token after each, the caches with these tokens in them, and
            what each block asked the evidence (B, T, D).
        """
        hidden = self.embed(tokens)
        kept: list[DecoderCache] = []
        asked: list[Tensor] = []
        for block, cache in zip(self._blocks, caches, strict=True):
            hidden, cache, question = block.step(hidden, cache, weights, lengths)
            kept.append(cache)
            asked.append(question)
        return self.head(self.norm(hidden)).log_softmax(dim=-1), kept, asked

    def looked_at(
        self, asked: Sequence[Tensor], caches: Sequence[DecoderCache], weights: Tensor
    ) -> dict[str, Tensor]:
        """Modality → how much of what was found is from where (B, T, N), the mean over blocks; see `step`."""
        each = [
            block.cross.looked_at(question, cache.evidence, weights)
            for block, question, cache in zip(self._blocks, asked, caches, strict=True)
        ]
        return {
            modality: torch.stack([found[modality] for found in each]).mean(dim=0) for modality in each[0]
        }

    @property
    def attentions(self) -> list[RelativeAttention]:
        """Of each block, to the tokens so far."""
        return [block.attention for block in self._blocks]

    @property
    def _blocks(self) -> list[DecoderBlock]:
        return [block for block in self.blocks if isinstance(block, DecoderBlock)]

    @torch.no_grad()
    def generate(
        self, memories: Memories, weights: Tensor, begin: int, end: int, max_tokens: int
    ) -> Generated:
        """Generate a text for each row, at each step the likeliest token.

        Args:
            memories: as in `forward`.
            weights: (B, M).
            begin: token that a text begins with.
            end: token that ends it.
            max_tokens: of a text, without the one it begins with.
        """
        caches = self.start(memories, weights, max_tokens)
        last = torch.full((len(weights), 1), begin, device=weights.device)
        going = torch.ones(len(weights), dtype=torch.bool, device=weights.device)
        tokens: list[Tensor] = []
        log_probs: list[Tensor] = []
        while len(tokens) < max_tokens and (going.any() or not tokens):
            found, caches, _ = self.step(last, caches, weights)
            likeliest, last = found.max(dim=-1)
            last = last.masked_fill(~going[:, None], end)
            tokens.append(last)
            log_probs.append(likeliest.masked_fill(~going[:, None], 0))
            going = going & (last[:, 0] != end)
        found = torch.cat(tokens, dim=1)
        return Generated(found, torch.cat(log_probs, dim=1), (found != end).int().cumprod(1).sum(1))
