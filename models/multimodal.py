"""The whole model as one ordered list of layers, so that any contiguous slice is a pipeline stage.

Shape letters: B rows, N positions of a modality, T tokens, D width, E embedding, V vocabulary,
K classes, M modalities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .audio import AudioEncoder
from .decoding import JointDecoder, ModalityGate
from .heads.classification import ClassificationHead
from .heads.embedding import EmbeddingHead
from .spec import MODALITIES, ModelSpec
from .text import TextEncoder
from .vision import VisionEncoder

STATE = ("image", "speech", "text", "weights", "decoder")
"""What flows between layers, in the order in which it first exists."""

EVIDENCE = ("image", "speech")
"""What a caption is decoded from: it is the answer, and no evidence for itself."""

_MAKES = {"vision": "image", "audio": "speech", "text": "text", "decoder": "decoder"}


class Outputs(NamedTuple):
    """What the last layer gives, one row per sample.

    Attributes:
        image, text, speech: (B, E) unit embeddings.
        caption_logits: (B, T, V).
        class_logits: (B, K).
        scale: (B,) the learned inverse temperature, repeated, so that it crosses process borders.
    """

    image: Tensor
    text: Tensor
    speech: Tensor
    caption_logits: Tensor
    class_logits: Tensor
    scale: Tensor


class Heads(nn.Module):
    """What stands on top of the encoders: embeddings, categories and the temperature.

    The temperature is learned as a logarithm and bounded at 100 (CLIP, arXiv 2103.00020, 2.5).
    """

    def __init__(self, widths: Mapping[str, int], embed_dim: int, num_classes: int) -> None:
        super().__init__()
        self.image = EmbeddingHead(widths["image"], embed_dim)
        self.text = EmbeddingHead(widths["text"], embed_dim)
        self.speech = EmbeddingHead(widths["speech"], embed_dim)
        self.classifier = ClassificationHead(embed_dim, num_classes)
        self.log_scale = nn.Parameter(torch.tensor([2.659]))  # log(1 / 0.07)

    def forward(self, state: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Embed the hidden states (B, N, D) under their masks (B, N); see `Outputs`."""
        image = self.image(state["image"], masks["image"])
        text = self.text(state["text"], masks["text"])
        speech = self.speech(state["speech"], masks["speech"])
        scale = self.log_scale.clamp(max=4.605).exp().repeat(image.shape[0])
        return image, text, speech, self.classifier(image), scale


class MultimodalModel(nn.Module):
    """Swin V2, Transformer-XL and axial audio encoders, a joint decoder, and heads.

    Args:
        spec: widths and depths.
        vocab_size: of the tokenizer.
        num_classes: of the picture categories.
    """

    def __init__(self, spec: ModelSpec, vocab_size: int, num_classes: int) -> None:
        super().__init__()
        self.spec = spec
        self.vision = VisionEncoder(spec.vision)
        self.audio = AudioEncoder(spec.audio)
        self.text = TextEncoder(spec.text, vocab_size)
        widths = {"image": self.vision.width, "text": self.text.width, "speech": self.audio.width}
        self.gate = ModalityGate(spec.decoder.d_model)
        self.decoder = JointDecoder(spec.decoder, vocab_size, {m: widths[m] for m in EVIDENCE})
        self.heads = Heads(widths, spec.embed_dim, num_classes)

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Every layer's module path, in the order in which they run."""
        names: list[str] = []
        for tower in ("vision", "audio", "text", "decoder"):
            blocks = self.get_submodule(f"{tower}.blocks")
            names += [f"{tower}.embed", *(f"{tower}.blocks.{i}" for i, _ in enumerate(blocks.children()))]
            names.append(f"{tower}.norm")
        return (*names, "heads")

    def forward(self, batch: Mapping[str, Tensor]) -> Outputs:
        """Run all layers on a batch (see `Outputs`)."""
        state: dict[str, Tensor] = {}
        self.run_layers(self.layer_names, state, batch)
        return self.outputs(state, batch)

    def run_layers(self, names: Sequence[str], state: dict[str, Tensor], batch: Mapping[str, Tensor]) -> None:
        """Run the named layers, but for `heads`, updating `state` in place.

        Args:
            names: a contiguous part of `layer_names`.
            state: what earlier layers left, by the names in `STATE`.
            batch: image (B, 3, H, W), tokens (B, T), token_mask (B, T), mel (B, F, n_mels),
                mel_mask (B, F), present (B, M).
        """
        for name in names:
            tower, _, layer = name.partition(".")
            if tower == "heads":
                continue
            module, key = self.get_submodule(name), _MAKES[tower]
            if layer == "embed":
                state[key] = self._embed(tower, module, state, batch)
            elif tower == "audio" and layer != "norm":
                state[key] = module(state[key], self.audio.mask(batch["mel_mask"]))
            elif tower == "decoder" and layer != "norm":
                state[key] = module(state[key], self._memories(state, batch), state["weights"])
            else:
                state[key] = module(state[key])

    def outputs(self, state: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Outputs:
        """Apply the heads to the final state."""
        image, text, speech, class_logits, scale = self.heads(state, self._masks(state, batch))
        return Outputs(image, text, speech, self.decoder.head(state["decoder"]), class_logits, scale)

    def embed_image(self, image: Tensor) -> Tensor:
        """Embed pictures (B, 3, H, W) as unit vectors (B, E)."""
        hidden = self.vision(image)
        return self.heads.image(hidden, hidden.new_ones(hidden.shape[:2], dtype=torch.bool))

    def embed_text(self, tokens: Tensor, token_mask: Tensor) -> Tensor:
        """Embed texts (B, T) under their mask (B, T) as unit vectors (B, E)."""
        hidden, _ = self.text(tokens)
        return self.heads.text(hidden, token_mask)

    def embed_speech(self, mel: Tensor, mel_mask: Tensor) -> Tensor:
        """Embed log-mel frames (B, F, n_mels) under their mask (B, F) as unit vectors (B, E)."""
        hidden, mask = self.audio(mel, mel_mask)
        return self.heads.speech(hidden, mask)

    def classify(self, image_embedding: Tensor) -> Tensor:
        """Category logits (B, K) of picture embeddings (B, E)."""
        return self.heads.classifier(image_embedding)

    def _embed(
        self, tower: str, module: nn.Module, state: dict[str, Tensor], batch: Mapping[str, Tensor]
    ) -> Tensor:
        if tower == "vision":
            return module(batch["image"])
        if tower == "audio":
            return module(batch["mel"], batch["mel_mask"])
        hidden = module(batch["tokens"])
        if tower == "decoder":
            evidence = torch.tensor([m in EVIDENCE for m in MODALITIES], device=hidden.device)
            state["weights"] = self.gate(hidden[:, 0], batch["present"] & evidence)
        return hidden

    def _masks(self, state: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            "image": torch.ones(state["image"].shape[:2], dtype=torch.bool, device=state["image"].device),
            "text": batch["token_mask"],
            "speech": self.audio.mask(batch["mel_mask"]),
        }

    def _memories(
        self, state: Mapping[str, Tensor], batch: Mapping[str, Tensor]
    ) -> dict[str, tuple[Tensor, Tensor]]:
        masks = self._masks(state, batch)
        return {m: (state[m], masks[m]) for m in EVIDENCE}
