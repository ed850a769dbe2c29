"""A caption decoder that reads every modality a sample has, and none that it lacks.

Shape letters: B batch, T tokens, N memory positions, D width, V vocabulary, M modalities.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from .layers import MLP, CrossAttention, init_weights
from .spec import MODALITIES, DecoderSpec
from .text import RelativeAttention

Memories = Mapping[str, tuple[Tensor, Tensor]]
"""Modality → its hidden states (B, N, width) and where they are valid (B, N) bool."""


class ModalityGate(nn.Module):
    """How much of a sample's evidence is to come from each modality.

    Args:
        width: of the question.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.score = nn.Linear(width, len(MODALITIES))
        self.apply(init_weights)

    def forward(self, question: Tensor, present: Tensor) -> Tensor:
        """Weigh the modalities of each row.

        Args:
            question: (B, D).
            present: (B, M) bool, in the order of `MODALITIES`.

        Returns:
            (B, M); a row's weights sum to 1 over what is present and are exactly 0 elsewhere;
            where nothing is present, all are 0.
        """
        # no softmax over nothing: such a row is left unmasked, and then zeroed
        hidden = ~present & present.any(dim=1, keepdim=True)
        weights = self.score(question).masked_fill(hidden, float("-inf")).softmax(dim=-1)
        return weights.masked_fill(~present, 0)


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
        self.cross = nn.ModuleDict(
            {m: CrossAttention(spec.d_model, widths[m], spec.num_heads) for m in MODALITIES if m in widths}
        )
        self.norm_mlp = nn.LayerNorm(spec.d_model)
        self.mlp = MLP(spec.d_model, spec.mlp_ratio)

    def forward(self, hidden: Tensor, memories: Memories, weights: Tensor) -> Tensor:
        """Transform hidden (B, T, D).

        Args:
            hidden: (B, T, D).
            memories: modality → its positions (B, N, width) and where they are valid (B, N).
            weights: (B, M); of a modality with weight 0 nothing is read, be it NaN.
        """
        normed = self.norm_attention(hidden)
        hidden = hidden + self.attention(normed, None, normed.shape[1], 0)
        question = self.norm_cross(hidden)
        for i, modality in enumerate(MODALITIES):
            if modality in memories:
                memory, mask = memories[modality]
                weight = weights[:, i, None, None].to(hidden.dtype)
                valid = mask & (weight[:, :, 0] > 0)
                evidence = self.cross[modality](question, memory.masked_fill(~valid.unsqueeze(-1), 0), valid)
                hidden = hidden + weight * evidence
        return hidden + self.mlp(self.norm_mlp(hidden))


class JointDecoder(nn.Module):
    """Next-token logits of a caption, given any of a sample's modalities.

    Args:
        spec: sizes.
        vocab_size: of the tokenizer.
        widths: modality → width of its memory, for those that are read.

    Attributes:
        width: of the hidden states before `head`.
    """

    def __init__(self, spec: DecoderSpec, vocab_size: int, widths: Mapping[str, int]) -> None:
        super().__init__()
        self.width = spec.d_model
        self.embed = nn.Embedding(vocab_size, spec.d_model)
        self.blocks = nn.ModuleList(DecoderBlock(spec, widths) for _ in range(spec.num_layers))
        self.norm = nn.LayerNorm(spec.d_model)
        self.head = nn.Linear(spec.d_model, vocab_size)
        self.apply(init_weights)

    def forward(self, tokens: Tensor, memories: Memories, weights: Tensor) -> Tensor:
        """Logits (B, T, V) of the token after each of tokens (B, T); see `DecoderBlock`."""
        hidden = self.embed(tokens)
        for block in self.blocks:
            hidden = block(hidden, memories, weights)
        return self.head(self.norm(hidden))
