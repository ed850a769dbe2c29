"""What a bundle's graphs compute: each a torch module over tensors that have no free dimension but the rows.

Shape letters: B rows, N positions, D width, M modalities, L blocks, H heads, K head width, C tokens of the
longest answer, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from ...models.anomaly import AnomalyDetector
from ...models.decoding import DecoderCache, JointDecoder
from ...models.layers import KeyValues
from ...models.multimodal import MultimodalModel
from ...models.text import BlockCache
from ...pipelines.bundle import (
    CLASS_LOGITS,
    EMBEDDING,
    EVIDENCE_INPUTS,
    GRAPH_INPUTS,
    LOG_PROBS,
    MAP,
    MEMORY,
    MODULATION,
    OF_QUESTIONS,
    OWN,
    PROBABILITIES,
    SCORES,
    SEEN,
    STATES,
    STEP_INPUTS,
    TRANSCRIPT,
    WEIGHTS,
)


class Graph(nn.Module):
    """Base of all.

    Args:
        model: in eval mode.

    Attributes:
        inputs: names of what it takes.
        outputs: names of what it gives.
        is_variadic: whether `forward` takes what the model has.
    """

    is_variadic = False
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def __init__(self, model: MultimodalModel) -> None:
        super().__init__()
        self.model = model


class ImageGraph(Graph):
    """Pictures (B, 3, H, W) → embedding, hidden states, and category logits if the model has categories."""

    def __init__(self, model: MultimodalModel) -> None:
        super().__init__(model)
        self.inputs = GRAPH_INPUTS["image"]
        classified = model.heads.classifier is not None
        self.outputs = (EMBEDDING, STATES, CLASS_LOGITS) if classified else (EMBEDDING, STATES)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        embedding, states = self.model.encode_image(image)
        classifier = self.model.heads.classifier
        return (embedding, states) if classifier is None else (embedding, states, classifier(states.mean(1)))


class TextGraph(Graph):
    """Tokens (B, T) under their mask (B, T) → embedding and hidden states."""

    def __init__(self, model: MultimodalModel) -> None:
        super().__init__(model)
        self.inputs, self.outputs = GRAPH_INPUTS["text"], (EMBEDDING, STATES)

    def forward(self, tokens: Tensor, token_mask: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        return self.model.encode_text(tokens, token_mask)


class SpeechGraph(Graph):
    """Frames (B, F, n_mels) under their mask (B, F) → embedding, hidden states, and the transcript's
    log-probabilities (B, N, V), those of what is beyond the recording all of the blank, if it transcribes.
    """

    def __init__(self, model: MultimodalModel) -> None:
        super().__init__(model)
        self.inputs = GRAPH_INPUTS["speech"]
        transcribes = model.heads.transcription is not None
        self.outputs = (EMBEDDING, STATES, TRANSCRIPT) if transcribes else (EMBEDDING, STATES)

    def forward(self, mel: Tensor, mel_mask: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        embedding, states, mask = self.model.encode_speech(mel, mel_mask)
        head = self.model.heads.transcription
        if head is None:
            return embedding, states
        log_probs = head(states)
        nothing = torch.full_like(log_probs, -1e9)
        nothing = torch.cat((torch.zeros_like(nothing[..., :1]), nothing[..., 1:]), dim=-1)
        return embedding, states, torch.where(mask.unsqueeze(-1), log_probs, nothing)


class DocumentGraph(Graph):
    """Segments of documents (B, L) under their mask (B, L) → what each token adds to its segment's logits
    (B, L, K), and how much the segment counts (B,), before the softmax over a document's.
    """

    def __init__(self, model: MultimodalModel) -> None:
        super().__init__(model)
        self.inputs, self.outputs = GRAPH_INPUTS["text"], ("evidence", "scores")

    def forward(self, tokens: Tensor, token_mask: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        return self.model.read_segments(tokens, token_mask)


class MarksGraph(Graph):
    """Pictures (B, 3, S, S) → probabilities of findings in each pixel (B, K, S, S).

    It takes, too, what pictures are compared with, if they are, of that shape, and what the texts beside
    them change (B, 2*C), where those are read.
    """

    is_variadic = True

    def __init__(self, model: MultimodalModel) -> None:
        super().__init__(model)
        compared = ("reference",) if model.spec.compares else ()
        beside = (MODULATION,) if model.heads.modulation is not None else ()
        self.inputs, self.outputs = ("image", *compared, *beside), (PROBABILITIES,)

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        return (self.model.segment(**dict(zip(self.inputs, given, strict=True))),)


class AnomalyGraph(Graph):
    """Pictures (B, 3, S, S) → how unlike normal ones their pixels are (B, 1, S, S), from 0 to 1."""

    def __init__(self, model: MultimodalModel, detector: AnomalyDetector) -> None:
        super().__init__(model)
        self.detector = detector
        self.inputs, self.outputs = GRAPH_INPUTS["image"], (SCORES,)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        return (self.detector.scores(image),)


class BesideGraph(Graph):
    """Texts (B, T) under their mask (B, T) → what they change in how pictures are marked (B, 2*C),
    zeros where there is no text.
    """

    def __init__(self, model: MultimodalModel) -> None:
        super().__init__(model)
        self.inputs, self.outputs = GRAPH_INPUTS["text"], (MODULATION,)

    def forward(self, tokens: Tensor, token_mask: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        return (self.model.modulate(tokens, token_mask),)


class EvidenceGraph(Graph):
    """What an answer is decoded from: hidden states of a row's modalities → their weights (B, M), and for
    each modality that is read its keys and values in all blocks (B, L, 2, H, N, K), and where (B, N).
    """

    is_variadic = True

    def __init__(self, model: MultimodalModel) -> None:
        super().__init__(model)
        self.decoder, self.read = _decoder(model)
        asks = "text" in self.read
        self.inputs = tuple(name for name in EVIDENCE_INPUTS if asks or name not in OF_QUESTIONS)
        self.outputs = _evidence(self.read)

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        """See the class; what `present` says is absent may be anything."""
        batch = dict(zip(self.inputs, given, strict=True))
        state = {modality: batch[f"{modality}_states"] for modality in self.read}
        weights = self.model.weigh(state, batch)
        caches = self.decoder.start(self.model.memories(state, batch), weights, 1)
        memories: list[Tensor] = []
        for modality in self.read:
            each = [cache.evidence[modality][0] for cache in caches]
            memories.append(torch.stack([torch.stack(tuple(pair), dim=1) for pair in each], dim=1))
        return weights, *memories, *(caches[0].evidence[modality][1] for modality in self.read)


class StepGraph(Graph):
    """One token more of answers: the last token (B, 1), how many there are with it (B,), keys and values of
    those before (B, L, 2, H, C, K), the last at the end, and the evidence → log-probabilities of the next
    (B, V), keys and values with this one's, and for each modality where it was looked at (B, N).
    """

    is_variadic = True

    def __init__(self, model: MultimodalModel, capacity: int) -> None:
        super().__init__(model)
        self.decoder, self.read = _decoder(model)
        self.capacity = capacity
        self.inputs = (*STEP_INPUTS, *_evidence(self.read))
        self.outputs = (LOG_PROBS, OWN, *(MAP + m for m in self.read))

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        token, length, own, weights, *evidence = given
        memories, seen = evidence[: len(self.read)], evidence[len(self.read) :]
        caches: list[DecoderCache] = []
        for i, relative in enumerate(self._distances()):
            looked_up = {
                modality: (KeyValues(memory[:, i, 0], memory[:, i, 1]), mask)
                for modality, memory, mask in zip(self.read, memories, seen, strict=True)
            }
            caches.append(
                DecoderCache(BlockCache(KeyValues(own[:, i, 0], own[:, i, 1]), relative), looked_up)
            )
        log_probs, caches, asked = self.decoder.step(token, caches, weights, length)
        kept = torch.stack([torch.stack(_past(cache), dim=1) for cache in caches], dim=1)
        looked = self.decoder.looked_at(asked, caches, weights)
        return log_probs[:, -1], kept, *(looked[modality][:, -1] for modality in self.read)

    def empty(self, num_rows: int) -> Tensor:
        """Keys and values of no tokens (B, L, 2, H, C, K)."""
        distances = list(self._distances())
        heads, width, _ = distances[0].shape
        return distances[0].new_zeros(num_rows, len(distances), 2, heads, self.capacity, width)

    def _distances(self) -> Iterator[Tensor]:
        for attention in self.decoder.attentions:
            yield attention.distances(self.capacity, attention.query.weight)


def _decoder(model: MultimodalModel) -> tuple[JointDecoder, Sequence[str]]:
    """The decoder, and which modalities it reads."""
    assert model.decoder is not None
    return model.decoder, model.evidence


def _evidence(read: Sequence[str]) -> tuple[str, ...]:
    """Names of what an answer is decoded from."""
    return (WEIGHTS, *(MEMORY + modality for modality in read), *(SEEN + modality for modality in read))


def _past(cache: DecoderCache) -> tuple[Tensor, ...]:
    assert cache.own.past is not None
    return tuple(cache.own.past)
