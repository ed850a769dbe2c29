"""The whole model as one ordered list of layers, so that any contiguous slice is a pipeline stage.

A model has the towers its spec has, and the heads its tasks need.

Shape letters: B rows, N positions of a modality, T tokens, D width, E embedding, K classes, M modalities.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import permutations
from zlib import crc32

import torch
from torch import Tensor, nn

from .alignment import CrossModalAttention
from .audio import AudioEncoder
from .decoding import Generated, JointDecoder, Memories, ModalityGate
from .heads.classification import ClassificationHead
from .heads.conditioning import TextModulation, modulated
from .heads.document import DocumentHead, Found, pooled, segmented
from .heads.embedding import EmbeddingHead
from .heads.language import LanguageHead
from .heads.segmentation import SegmentationHead, probabilities
from .heads.transcription import TranscriptionHead, ctc_nll
from .layers import RowDropout, seeds_of_parts
from .losses import classification_nll, marks_loss, promoted
from .spec import DECODED, EMBEDDED, MODALITIES, ModelSpec, Task
from .text import TextEncoder
from .vision import PatchMerging, VisionEncoder

DENSE = "image.dense"
"""State that marked pictures are told by: the feature pyramid's finest level."""
WORDS = ("tokens", "label", "image", "reference", "marks")
"""Of a batch, what heads read besides states."""
READ_AT_TOP: frozenset[Task] = frozenset({*EMBEDDED, *DECODED, "classification"})
"""Tasks that read pictures where their encoder ends, and not at the pyramid's finest level alone."""
SEGMENTS = 64
"""Of documents, that are read at once where no gradient is wanted."""
TOWERS = {"vision": "image", "audio": "speech", "text": "text"}
"""Encoder → what it makes, in the order in which they run."""


class Heads(nn.Module):
    """What stands on top of the encoders.

    The temperature is learned as a logarithm and bounded at 100 (CLIP, arXiv 2103.00020, 2.5).

    Args:
        spec: of the model.
        widths: modality → width of its hidden states.
        vocab_size: of the tokenizer.
        num_classes: of the categories.
        tasks: what the model is for.
    """

    def __init__(
        self,
        spec: ModelSpec,
        widths: Mapping[str, int],
        vocab_size: int,
        num_classes: int,
        tasks: Collection[Task],
    ) -> None:
        super().__init__()
        embedded = [m for m in MODALITIES if m in widths and EMBEDDED & set(tasks)]
        self.embed = nn.ModuleDict({m: EmbeddingHead(widths[m], spec.embed_dim) for m in embedded})
        self.log_scale = nn.Parameter(torch.tensor([2.659])) if embedded else None  # log(1 / 0.07)
        self.classifier = (
            ClassificationHead(widths["image"], num_classes) if "classification" in tasks else None
        )
        self.language = (
            LanguageHead(widths["text"], vocab_size, spec.text.adaptive_cutoffs)
            if "language" in tasks and spec.text is not None
            else None
        )
        self.transcription = (
            TranscriptionHead(widths["speech"], vocab_size) if "transcription" in tasks else None
        )
        self.document = DocumentHead(widths["text"], num_classes) if "document" in tasks else None
        self.segmentation = self.modulation = None
        if "segmentation" in tasks and spec.vision is not None:
            width = spec.vision.pyramid_width
            findings = len(spec.vision.findings)
            self.segmentation = SegmentationHead(width, width, findings, spec.vision.compares)
            if spec.marks_by_text:
                self.modulation = TextModulation(widths["text"], width)
        self.focal_weight = 1.0 if spec.vision is None else spec.vision.focal_weight
        pairs = list(permutations(embedded, 2)) if "alignment" in tasks else []
        self.cross = nn.ModuleDict(
            {f"{a}-{b}": CrossModalAttention(widths[a], widths[b], spec.alignment_heads) for a, b in pairs}
        )
        self.found = nn.ModuleDict({f"{a}-{b}": EmbeddingHead(widths[a], spec.embed_dim) for a, b in pairs})

    def forward(
        self,
        tasks: Collection[Task],
        state: Mapping[str, Tensor],
        masks: Mapping[str, Tensor],
        words: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        """Apply the heads of some tasks, but for decoding.

        Args:
            tasks: which.
            state: modality → hidden states (B, N, D).
            masks: modality → where they are valid (B, N).
            words: tokens (B, T), token_mask (B, T), spoken_mask (B, T), of texts that are said, label (B,),
                document_label (B,), image and reference (B, 3, H, W) and marks (B, H, W), as far as the
                tasks need them.

        Returns:
            See `MultimodalModel.outputs`.
        """
        found: dict[str, Tensor] = {}
        if EMBEDDED & set(tasks):
            assert self.log_scale is not None
            for modality, head in self.embed.items():
                found[modality] = head(state[modality], masks[modality])
            scale = self.log_scale.clamp(max=4.605).exp()
            found["scale"] = scale.repeat(len(next(iter(masks.values()))))
        if "alignment" in tasks:
            for pair, cross in self.cross.items():
                a, b = pair.split("-")
                head = self.embed[b]
                assert isinstance(head, EmbeddingHead)
                scores = head.scores(state[b], masks[b])
                seen, divergence = cross(state[a], masks[a], state[b], masks[b], scores)
                found[f"found.{pair}"] = self.found[pair](seen, masks[a])
                found[f"divergence.{pair}"] = divergence
        if "language" in tasks and self.language is not None:
            counted = words["token_mask"][:, 1:] & words["token_mask"][:, :-1]
            nll = self.language.nll(state["text"][:, :-1], words["tokens"][:, 1:])
            found["language"] = nll.masked_fill(~counted, 0).sum(dim=1)
        if "transcription" in tasks and self.transcription is not None:
            said, valid = spoken(words["tokens"], words["spoken_mask"])
            log_probs = promoted(self.transcription(state["speech"]))
            found["transcription"] = ctc_nll(log_probs, masks["speech"], said, valid)
        if "classification" in tasks and self.classifier is not None:
            logits = self.classifier(state["image"].mean(dim=1))
            found["classification"] = classification_nll(logits, words["label"])
        if "document" in tasks and self.document is not None:
            said = self.document(state["text"], masks["text"])
            logits = pooled(said.evidence.sum(dim=1), said.scores, len(words["document_label"]))
            found["document"] = classification_nll(logits, words["document_label"])
        if "segmentation" in tasks and self.segmentation is not None:
            dense = state[DENSE]
            if self.modulation is not None:
                dense = modulated(dense, self.modulation(state["text"], masks["text"]))
            logits = self.segmentation(words["image"], dense, words.get("reference"))
            found["segmentation"] = marks_loss(logits, words["marks"], self.focal_weight)
        return found


class MultimodalModel(nn.Module):
    """Swin V2, Transformer-XL and axial audio encoders, a joint decoder, and heads.

    Args:
        spec: which parts, and how large.
        vocab_size: of the tokenizer.
        num_classes: of the categories.
        tasks: what it is for; decides which heads there are.

    Attributes:
        tasks: what its outputs are for; a part of those that it has heads for, see `focus`.
        modalities: that it has an encoder for.
        tied: parameter → the one that it is the same as, by path.
    """

    def __init__(self, spec: ModelSpec, vocab_size: int, num_classes: int, tasks: Collection[Task]) -> None:
        super().__init__()
        self.spec = spec
        self.tasks: frozenset[Task] = frozenset(tasks)
        self.vision = VisionEncoder(spec.vision) if spec.vision is not None else None
        self.audio = AudioEncoder(spec.audio) if spec.audio is not None else None
        self.text = TextEncoder(spec.text, vocab_size) if spec.text is not None else None
        widths = {
            TOWERS[name]: tower.width
            for name, tower in (("vision", self.vision), ("audio", self.audio), ("text", self.text))
            if tower is not None
        }
        self.modalities = tuple(m for m in MODALITIES if m in widths)
        self.gate: ModalityGate | None = None
        self.decoder: JointDecoder | None = None
        if spec.decoder is not None and DECODED & self.tasks:
            self.gate = ModalityGate(widths.get("text", spec.decoder.d_model), spec.decoder)
            self.decoder = JointDecoder(spec.decoder, vocab_size, {m: widths[m] for m in self.evidence})
        self.heads = Heads(spec, widths, vocab_size, num_classes, self.tasks)
        self.tied: dict[str, str] = {}
        language = self.heads.language
        if self.text is not None and self.text.tied and language is not None:
            assert language.linear is not None
            language.linear.weight = self.text.embed.weight
            self.tied["heads.language.linear.weight"] = "text.embed.weight"
        if self.decoder is not None and self.decoder.tied:
            self.decoder.head.weight = self.decoder.embed.weight
            self.tied["decoder.head.weight"] = "decoder.embed.weight"
        for path, layer in self.named_modules():
            if isinstance(layer, RowDropout):
                layer.salt = crc32(path.encode())
        self._scales: dict[str, int] = {}
        if self.vision is not None and self.vision.pyramid is not None:
            blocks = enumerate(self.vision.blocks)
            merges = [f"vision.blocks.{i}" for i, block in blocks if isinstance(block, PatchMerging)]
            self._scales = {name: scale for scale, name in enumerate([*merges, "vision.norm"])}

    def focus(self, tasks: Collection[Task]) -> None:
        """Run and train for some of its tasks only: what those don't need gets no gradient."""
        self.tasks = frozenset(tasks)
        heads, parts = self.heads, self.spec.parts_for(tasks)
        needed: list[tuple[nn.Module | nn.Parameter | None, bool]] = [
            *((getattr(self, part), part in parts) for part in self.spec.parts),
            (self.gate, "decoder" in parts),
            (heads.embed, bool(EMBEDDED & self.tasks)),
            (heads.log_scale, bool(EMBEDDED & self.tasks)),
            (heads.cross, "alignment" in tasks),
            (heads.found, "alignment" in tasks),
            (heads.classifier, "classification" in tasks),
            (heads.language, "language" in tasks),
            (heads.transcription, "transcription" in tasks),
            (heads.document, "document" in tasks),
            (heads.segmentation, "segmentation" in tasks),
            (heads.modulation, "segmentation" in tasks),
        ]
        for part, is_needed in sorted(needed, key=lambda pair: pair[1]):  # weights may be another's too
            if part is not None:
                part.requires_grad_(is_needed)
        if self.vision is not None and self.vision.pyramid is not None and not READ_AT_TOP & self.tasks:
            for part in (self.vision.norm, *self.vision.pyramid.to_top):
                part.requires_grad_(False)

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Every layer's module path, in the order in which they run."""
        names: list[str] = []
        parts = self.spec.parts_for(self.tasks)
        for tower in (*TOWERS, "decoder"):
            if tower not in parts:
                continue
            blocks = self.get_submodule(f"{tower}.blocks")
            names += [f"{tower}.embed", *(f"{tower}.blocks.{i}" for i, _ in enumerate(blocks.children()))]
            names.append(f"{tower}.norm")
            if tower == "vision" and self._scales:
                names.append("vision.pyramid")
        return (*names, "heads")

    def state_after(self, num_layers: int) -> tuple[str, ...]:
        """Names of what the first `num_layers` layers leave to those that follow, in a fixed order."""
        alive: dict[str, None] = {}
        for name in self.layer_names[:num_layers]:
            tower, _, layer = name.partition(".")
            if name in self._scales:
                alive[_scale(self._scales[name])] = None
            elif layer == "pyramid":
                for scale in self._scales.values():
                    del alive[_scale(scale)]
                if "segmentation" in self.tasks:
                    alive[DENSE] = None
            elif layer == "embed":
                alive |= dict.fromkeys(("weights", "decoder") if tower == "decoder" else (TOWERS[tower],))
        return tuple(alive)

    def lengths(self, batch: Mapping[str, Tensor]) -> dict[str, int]:
        """Positions of the states of each tower that runs, but for pictures, which have as many as ever."""
        parts = self.spec.parts_for(self.tasks)
        found: dict[str, int] = {}
        if "text" in parts:
            found["text"] = self._read(batch["tokens"]).shape[1]
        if "audio" in parts:
            found["audio"] = self.speech_mask(batch["mel_mask"]).shape[1]
        if "decoder" in parts:
            found["decoder"] = self._target(batch)[0].shape[1]
        return found

    @property
    def output_names(self) -> tuple[str, ...]:
        """Of what `outputs` gives, in order."""
        names: list[str] = []
        if EMBEDDED & self.tasks:
            names += [*self.modalities, "scale"]
        if "alignment" in self.tasks:
            pairs = permutations(self.modalities, 2)
            names += [f"{kind}.{a}-{b}" for a, b in pairs for kind in ("found", "divergence")]
        order: tuple[Task, ...] = (
            *("caption", "answer", "language", "transcription"),
            *("classification", "document", "segmentation"),
        )
        return (*names, *(task for task in order if task in self.tasks))

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run all layers on a batch (see `outputs`)."""
        state: dict[str, Tensor] = {}
        self.run_layers(self.layer_names, state, batch)
        return self.outputs(state, batch)

    def run_layers(self, names: Sequence[str], state: dict[str, Tensor], batch: Mapping[str, Tensor]) -> None:
        """Run the named layers, but for `heads`, updating `state` in place.

        Args:
            names: a contiguous part of `layer_names`.
            state: what earlier layers left, by the names that `state_after` gives.
            batch: image (B, 3, H, W), tokens (B, T), token_mask (B, T), mel (B, F, n_mels),
                mel_mask (B, F), present (B, M); for answers also answer (B, A), answer_mask (B, A) and
                question_type (B,); for transcripts is_transcript (B,); for categories label (B,); for marked
                pictures marks (B, H, W), see `marks_loss`; in training of a model that drops, seed (B,).
        """
        for name in names:
            tower, _, layer = name.partition(".")
            if tower == "heads":
                continue
            module, key = self.get_submodule(name), TOWERS.get(tower, tower)
            if name in self._scales:
                state[_scale(self._scales[name])] = state[key]
            if layer == "embed":
                state[key] = self._embed(tower, module, state, batch)
            elif layer == "pyramid":
                scales = [state.pop(_scale(scale)) for scale in self._scales.values()]
                state[key], dense = module(scales, state[key])  # the pyramid's finest level
                if "segmentation" in self.tasks:
                    state[DENSE] = dense
            elif layer == "norm":
                state[key] = module(state[key])
            else:
                reads: tuple[object, ...] = ()
                if tower == "audio":
                    reads = (self.speech_mask(batch["mel_mask"]),)
                elif tower == "decoder":
                    reads = self.memories(state, batch), state["weights"]
                seeds = batch.get("seed")
                if seeds is not None and tower == "text":
                    seeds = seeds_of_parts(seeds, len(self._read(batch["tokens"])) // len(seeds))
                state[key] = module(state[key], *reads, seeds=seeds)

    def outputs(self, state: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Apply the heads to the final state.

        Returns:
            By `output_names`, one row per sample. `image`, `text`, `speech`: unit embeddings (B, E); `scale`:
            the inverse temperature, repeated, so that it crosses process borders (B,); `found.A-B` (B, E):
            what A found in B, and `divergence.A-B` (B,) how far its view is from B's own, nats; each other
            task: the negative log-likelihood of its target (B,), nats, a sum where that is a text.
            A question describes nothing: only `answer` reads it (see `described`).
        """
        words = {name: batch[name] for name in WORDS if name in batch}
        if "token_mask" in batch:
            words["token_mask"] = described(batch)
        if "transcription" in self.tasks:
            words["spoken_mask"] = transcribed(batch)
        hidden = {m: state[m] for m in (*self.modalities, DENSE) if m in state}
        masks = self._masks(state, batch)
        if "document" in self.tasks:
            words["document_label"] = documented(batch)
        elif "text" in masks:
            masks["text"] = words["token_mask"]
        found = self.heads(self.tasks, hidden, masks, words)
        if self.decoder is not None and DECODED & self.tasks:
            target, mask, task = self._target(batch)
            last = state["decoder"].to(self.decoder.head.weight.dtype)
            found[task] = self.decoder.head.next_token_nll(last, target, mask)
        return {name: found[name] for name in self.output_names}

    def embed_image(self, image: Tensor) -> Tensor:
        """Embed pictures (B, 3, H, W) as unit vectors (B, E)."""
        return self.encode_image(image)[0]

    def embed_text(self, tokens: Tensor, token_mask: Tensor) -> Tensor:
        """Embed texts (B, T) under their mask (B, T) as unit vectors (B, E)."""
        return self.encode_text(tokens, token_mask)[0]

    def embed_speech(self, mel: Tensor, mel_mask: Tensor) -> Tensor:
        """Embed log-mel frames (B, F, n_mels) under their mask (B, F) as unit vectors (B, E)."""
        return self.encode_speech(mel, mel_mask)[0]

    def encode_image(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Unit vectors (B, E) and hidden states (B, N, D) of pictures (B, 3, H, W)."""
        assert self.vision is not None
        hidden = self.vision(image)
        everywhere = hidden.new_ones(hidden.shape[:2], dtype=torch.bool)
        return self.heads.embed["image"](hidden, everywhere), hidden

    def encode_text(self, tokens: Tensor, token_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Unit vectors (B, E) and hidden states (B, T, D) of texts (B, T) under their mask (B, T)."""
        assert self.text is not None
        hidden, _ = self.text(tokens)
        return self.heads.embed["text"](hidden, token_mask), hidden

    def encode_speech(self, mel: Tensor, mel_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Unit vectors (B, E), hidden states (B, N, D) and where those are valid (B, N), of speech."""
        assert self.audio is not None
        hidden, mask = self.audio(mel, mel_mask)
        return self.heads.embed["speech"](hidden, mask), hidden, mask

    def classify(self, image: Tensor) -> Tensor:
        """Category logits (B, K) of pictures (B, 3, H, W)."""
        assert self.vision is not None
        assert self.heads.classifier is not None
        return self.heads.classifier(self.vision(image).mean(dim=1))

    def speech_mask(self, mel_mask: Tensor) -> Tensor:
        """Which positions of the audio encoder are valid (B, N), by frames (B, F)."""
        assert self.audio is not None
        return self.audio.mask(mel_mask)

    def transcribe(self, mel: Tensor, mel_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities (B, T, V) of a token or none at each position, and the valid positions (B, T)."""
        assert self.audio is not None
        assert self.heads.transcription is not None
        hidden, mask = self.audio(mel, mel_mask)
        return self.heads.transcription(hidden), mask

    def classify_documents(self, tokens: Tensor, token_mask: Tensor) -> Tensor:
        """Logits of categories (B, K) of documents (B, T) under their mask (B, T), read in segments.

        Memory doesn't grow with the documents but for what they are pooled from.
        """
        parts = (self.segments(one).split(SEGMENTS) for one in (tokens, token_mask))
        found = [self.read_segments(*some) for some in zip(*parts, strict=True)]
        said = torch.cat([one.evidence.sum(dim=1) for one in found])
        return pooled(said, torch.cat([one.scores for one in found]), len(tokens))

    def segment(
        self, image: Tensor, reference: Tensor | None = None, modulation: Tensor | None = None
    ) -> Tensor:
        """Probabilities of findings (B, K, H, W) in each pixel of pictures (B, 3, H, W).

        Args:
            image: the pictures.
            reference: (B, 3, H, W) how they should look, for a model that compares.
            modulation: (B, 2*width) what `modulate` says of the texts beside them; None where there are none.
        """
        assert self.vision is not None
        assert self.heads.segmentation is not None
        dense = self.vision.dense(image)
        seen = dense if modulation is None else modulated(dense, modulation)
        return probabilities(self.heads.segmentation(image, seen, reference))

    def modulate(self, tokens: Tensor, token_mask: Tensor) -> Tensor:
        """What texts (B, T) under their mask (B, T) change in how pictures are marked: (B, 2*width), zeros
        where there is no text.
        """
        assert self.text is not None
        assert self.heads.modulation is not None
        return self.heads.modulation(self.text(tokens)[0], token_mask)

    def segments(self, tokens: Tensor) -> Tensor:
        """Overlapping segments (B*S, L) of documents, or their mask, (B, T): what `read_segments` takes."""
        spec = self.spec.text
        assert spec is not None
        return segmented(tokens, spec.max_tokens, spec.overlap).flatten(0, 1)

    def read_segments(self, tokens: Tensor, token_mask: Tensor) -> Found:
        """What segments of documents (S, L) under their mask (S, L) say about the documents' categories."""
        assert self.text is not None
        assert self.heads.document is not None
        return self.heads.document(self.text(tokens)[0], token_mask)

    @torch.no_grad()
    def answer(
        self, batch: Mapping[str, Tensor], begin: int, end: int, max_tokens: int
    ) -> tuple[Generated, Tensor]:
        """Answer the question of each row, at each step by the likeliest token.

        Args:
            batch: as for `run_layers`; what `present` says is absent may be anything.
            begin: token that an answer begins with.
            end: token that ends it.
            max_tokens: of an answer.

        Returns:
            The answers, and the weight of each modality (B, M) that they were made with.
        """
        assert self.decoder is not None
        state: dict[str, Tensor] = {}
        encoders = [name for name in self.layer_names if name.partition(".")[0] in TOWERS]
        self.run_layers(encoders, state, batch)
        weights = self.weigh(state, batch)
        made = self.decoder.generate(self.memories(state, batch), weights, begin, end, max_tokens)
        return made, weights

    def _embed(
        self, tower: str, module: nn.Module, state: dict[str, Tensor], batch: Mapping[str, Tensor]
    ) -> Tensor:
        if tower == "vision":
            return module(batch["image"])
        if tower == "audio":
            return module(batch["mel"], batch["mel_mask"])
        if tower == "decoder":
            state["weights"] = self.weigh(state, batch)
            return module(self._target(batch)[0])
        return module(self._read(batch["tokens"]))

    def _read(self, tokens: Tensor) -> Tensor:
        """Tokens, or their mask, (B, T) as the text's encoder gets them: documents in segments (B*S, L)."""
        return self.segments(tokens) if "document" in self.tasks else tokens

    def _target(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Task]:
        """What is to be decoded (B, T), where it is (B, T), and which task that is."""
        if "answer" in self.tasks:
            return batch["answer"], batch["answer_mask"], "answer"
        return batch["tokens"], batch["token_mask"], "caption"

    def weigh(self, state: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        """Weights of the modalities (B, M) that a row's text is decoded from."""
        assert self.gate is not None
        evidence = torch.tensor(
            [m in self.evidence for m in MODALITIES],
            device=batch["present"].device,
        )
        if "answer" in self.tasks:
            mask = batch["token_mask"].unsqueeze(-1)
            question = state["text"].masked_fill(~mask, 0).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
            kind = batch["question_type"]
        else:
            question = next(iter(state.values())).new_zeros(len(batch["present"]), self.gate.width)
            kind = torch.full((len(question),), -1, device=question.device)
        return self.gate(question, kind, batch["present"] & evidence)

    def _masks(self, state: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        masks: dict[str, Tensor] = {}
        if "image" in state:
            seen = batch["present"][:, MODALITIES.index("image"), None]
            masks["image"] = seen.expand(-1, state["image"].shape[1])
        if "text" in state:
            masks["text"] = self._read(batch["token_mask"])
        if "speech" in state:
            masks["speech"] = self.speech_mask(batch["mel_mask"])
        return masks

    def memories(self, state: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Memories:
        """What a row's text is decoded from."""
        masks = self._masks(state, batch)
        return {m: (state[m], mask) for m, mask in masks.items() if self._is_evidence(m)}

    @property
    def evidence(self) -> tuple[str, ...]:
        """Modalities that texts are decoded from."""
        return tuple(modality for modality in self.modalities if self._is_evidence(modality))

    def _is_evidence(self, modality: str) -> bool:
        """Whether texts are decoded from it: a caption is no evidence for itself, a question is."""
        return modality != "text" or "answer" in self.tasks


def described(batch: Mapping[str, Tensor]) -> Tensor:
    """Where the text of a row says something about it (B, T): a row with an answer has a question there."""
    mask = batch["token_mask"]
    return mask & ~batch["answer_mask"].any(dim=1, keepdim=True) if "answer_mask" in batch else mask


def transcribed(batch: Mapping[str, Tensor]) -> Tensor:
    """Where the text of a row is what its speech says (B, T)."""
    return described(batch) & batch["is_transcript"][:, None]


def spoken(tokens: Tensor, token_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Texts (B, T) and their mask (B, T) without the tokens that begin and end them: (B, T-1) each."""
    lengths = (token_mask.sum(dim=1) - 2).clamp(min=0)
    valid = torch.arange(tokens.shape[1] - 1, device=tokens.device) < lengths[:, None]
    return tokens[:, 1:].masked_fill(~valid, 0), valid


def documented(batch: Mapping[str, Tensor]) -> Tensor:
    """Categories of rows (B,) that have a text; -1 of all others."""
    return batch["label"].masked_fill(~batch["token_mask"].any(dim=1), -1)


def _scale(number: int) -> str:
    return f"image.{number}"
