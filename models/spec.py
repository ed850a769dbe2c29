"""How large each part of the model is: frozen pydantic models, no torch."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

MODALITIES = ("image", "text", "speech")
"""What a sample may have, in the order of every `present` mask and weight vector."""


class PartSpec(BaseModel):
    """Base of the model's specs: frozen, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def _check_heads(where: str, width: int, num_heads: int) -> None:
    if width % num_heads:
        raise ValueError(f"{where}: {num_heads} heads do not divide a width of {width}")


SWIN_V2: dict[str, dict[str, Any]] = {
    "swinv2-tiny": {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)},
    "swinv2-small": {"embed_dim": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24)},
    "swinv2-base": {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)},
    "swinv2-large": {"embed_dim": 192, "depths": (2, 2, 18, 2), "num_heads": (6, 12, 24, 48)},
    "swinv2-huge": {
        "embed_dim": 352,
        "depths": (2, 2, 18, 2),
        "num_heads": (11, 22, 44, 88),
        "norm_main_every": 6,
    },
}
"""Published variant → the fields it sets beside `PUBLISHED` (section 4.1; heads of 32 channels)."""
PUBLISHED: dict[str, Any] = {"image_size": 256, "window_size": 8}


class VisionSpec(PartSpec):
    """Swin Transformer V2 (arXiv 2111.09883)."""

    variant: Literal["swinv2-tiny", "swinv2-small", "swinv2-base", "swinv2-large", "swinv2-huge"] | None = (
        None
    )
    """Sets every size to a published model's; any field given beside it wins."""
    image_size: int = Field(default=64, ge=1)
    """Height and width of a picture, pixels."""
    patch_size: int = Field(default=4, ge=1)
    """Height and width of a patch, pixels."""
    window_size: int = Field(default=8, ge=1)
    """Height and width of an attention window, patches; a smaller feature map is one window."""
    pretrained_window_sizes: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Window of each scale that the weights were first trained with, if `window_size` is another; 0: none."""
    embed_dim: int = Field(default=32, ge=1)
    """Channels of the first scale; they double at each following one."""
    depths: tuple[int, ...] = Field(default=(2, 2, 2), min_length=1)
    """Blocks of each scale."""
    num_heads: tuple[int, ...] = (2, 4, 8)
    """Attention heads of each scale."""
    mlp_ratio: float = Field(default=4.0, gt=0)
    """Hidden width of an MLP over its width."""
    norm_main_every: int = Field(default=0, ge=0)
    """Blocks of a scale after which the main branch is normalised once more; 0 is never."""
    pyramid_width: int = Field(default=0, ge=0)
    """Channels of the feature pyramid that fuses all scales; 0 leaves it out."""
    findings: tuple[str, ...] = ()
    """What is told from each other where a picture's pixels are marked; other labels mean nothing."""
    compares: bool = False
    """What is marked is told by comparing a picture with a reference: how the same thing should look."""
    focal_weight: float = Field(default=1.0, ge=0)
    """Of the focal loss beside Dice, where pixels are marked: more makes fewer false alarms."""
    reads_text: bool = False
    """What is marked hangs on the text beside a picture, too, where a row has one: a scan's report, say."""
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    """How often, in training, a picture goes past a branch of the last block; of earlier ones, less."""

    @model_validator(mode="before")
    @classmethod
    def _expand_variant(cls, data: Any) -> Any:  # noqa: ANN401 - pydantic hands over whatever was given
        if not isinstance(data, Mapping) or data.get("variant") not in SWIN_V2:
            return data
        return PUBLISHED | SWIN_V2[data["variant"]] | dict(data)

    @model_validator(mode="after")
    def _check(self) -> VisionSpec:
        if len(self.num_heads) != len(self.depths):
            raise ValueError(f"num_heads has {len(self.num_heads)} scales, depths has {len(self.depths)}")
        if self.pretrained_window_sizes and len(self.pretrained_window_sizes) != len(self.depths):
            raise ValueError(
                f"pretrained_window_sizes has {len(self.pretrained_window_sizes)} scales, "
                f"depths has {len(self.depths)}"
            )
        if min(*self.depths, *self.num_heads) < 1:
            raise ValueError("depths and num_heads must all be at least 1")
        if self.patch_size > self.image_size:
            raise ValueError(f"patch_size {self.patch_size} exceeds image_size {self.image_size}")
        if self.findings and self.image_size % 2:
            raise ValueError(f"image_size {self.image_size} must be even where findings are marked")
        for scale, heads in enumerate(self.num_heads):
            _check_heads(f"num_heads[{scale}]", self.embed_dim * 2**scale, heads)
        return self

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Side of each scale's feature map, finest first."""
        sides = [-(-self.image_size // self.patch_size)]
        for _ in self.depths[1:]:
            sides.append((sides[-1] + 1) // 2)
        return tuple(sides)

    @property
    def windows(self) -> tuple[tuple[int, int], ...]:
        """Window and shift of each scale: a feature map that is no larger than a window is one, unshifted.

        The published code rounds down for this what it rounds up for the map itself.
        """
        sides = [max(1, self.image_size // self.patch_size // 2**i) for i, _ in enumerate(self.depths)]
        return tuple(
            (self.window_size, self.window_size // 2) if side > self.window_size else (side, 0)
            for side in sides
        )


class TextSpec(PartSpec):
    """Transformer-XL (arXiv 1901.02860)."""

    d_model: int = Field(default=128, ge=2, multiple_of=2)
    """Width."""
    num_layers: int = Field(default=3, ge=1)
    """Blocks."""
    num_heads: int = Field(default=4, ge=1)
    """Attention heads; they divide `d_model`."""
    max_tokens: int = Field(default=32, ge=1)
    """Of a segment; a longer text is taken segment after segment."""
    memory_length: int = Field(default=32, ge=0)
    """Positions of earlier segments that are attended to."""
    overlap: int = Field(default=0, ge=0)
    """Tokens that follow-up segments of a document have in common where it is read for its category."""
    window: int = Field(default=0, ge=0)
    """Positions that a token attends to, itself included, in memory and segment; 0 is all."""
    adaptive_cutoffs: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Of the head that predicts the next token (adaptive softmax, arXiv 1609.04309): tokens below the first
    have full width there, those below each further one a quarter of the one before; empty is a plain softmax.
    """
    tied: bool = False
    """Predict the next token with the weights that tokens are embedded by (arXiv 1608.05859)."""
    mlp_ratio: float = Field(default=4.0, gt=0)
    """Hidden width of an MLP over its width."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of what each branch adds that is dropped in training."""

    @model_validator(mode="after")
    def _check(self) -> TextSpec:
        _check_heads("num_heads", self.d_model, self.num_heads)
        if self.tied and self.adaptive_cutoffs:
            raise ValueError("tied and adaptive_cutoffs: an adaptive softmax's weights are of other shapes")
        if self.overlap >= self.max_tokens:
            raise ValueError(f"overlap {self.overlap} is not smaller than max_tokens {self.max_tokens}")
        return self


class AudioSpec(PartSpec):
    """Convolutions over frames, then attention along time and along frequency."""

    n_mels: int = Field(default=64, ge=1)
    """Mel bins of a frame."""
    max_frames: int = Field(default=256, ge=1)
    """Longest clip, frames."""
    num_bands: int = Field(default=4, ge=1)
    """Frequency bands that attention tells apart; each has n_mels / num_bands bins."""
    num_convs: int = Field(default=4, ge=1)
    """Convolutions over frames; each halves their number."""
    kernel_size: int = Field(default=5, ge=1)
    """Frames that a convolution sees; odd."""
    axes: Literal["time-frequency", "time"] = "time-frequency"
    """Axes that a block attends along, one after the other."""
    chunk: int = Field(default=0, ge=0)
    """Positions of a chunk, for streaming: attention along time sees none that is later; 0 is all."""
    left_chunks: int = Field(default=2, ge=0)
    """Chunks before its own that a position attends to."""
    d_model: int = Field(default=96, ge=2, multiple_of=2)
    """Width."""
    num_layers: int = Field(default=3, ge=1)
    """Blocks."""
    num_heads: int = Field(default=4, ge=1)
    """Attention heads; they divide `d_model`."""
    mlp_ratio: float = Field(default=4.0, gt=0)
    """Hidden width of an MLP over its width."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of what each branch adds that is dropped in training."""

    @model_validator(mode="after")
    def _check(self) -> AudioSpec:
        _check_heads("num_heads", self.d_model, self.num_heads)
        if self.n_mels % self.num_bands:
            raise ValueError(f"num_bands {self.num_bands} does not divide n_mels {self.n_mels}")
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size {self.kernel_size} is even, so a frame has no middle")
        return self


class QuestionType(PartSpec):
    """A type of question, how it is told, and where its answer is looked for before anything is learned."""

    name: str
    """Of the type; a corpus's category of that name is of it."""
    words: tuple[str, ...] = ()
    """A question with one of these in it, in small letters, is of this type; the first that fits counts."""
    image: float = Field(gt=0)
    """Weight of the picture."""
    text: float = Field(gt=0)
    """Weight of the words."""
    speech: float = Field(default=1e-4, gt=0)
    """Weight of the recording."""

    @property
    def pattern(self) -> str:
        """Regular expression for questions of this type, in small letters."""
        return "|".join(rf"\b{re.escape(word)}\b" for word in self.words) or r"(?!)"

    @property
    def weights(self) -> tuple[float, ...]:
        """In the order of `MODALITIES`."""
        return self.image, self.text, self.speech


QUESTION_TYPES = (
    QuestionType(name="colour", words=("colour", "color"), image=0.7, text=0.3),
    QuestionType(name="location", words=("where", "which side"), image=0.8, text=0.2),
    QuestionType(name="count", words=("how many", "number of"), image=0.9, text=0.1),
    QuestionType(name="object", words=("what is", "what are"), image=0.7, text=0.3),
    QuestionType(name="sound", words=("hear", "sound", "voice", "said"), image=0.1, text=0.2, speech=0.7),
)


class DecoderSpec(PartSpec):
    """A causal decoder of captions or answers that reads every modality a sample has."""

    d_model: int = Field(default=128, ge=2, multiple_of=2)
    """Width."""
    num_layers: int = Field(default=2, ge=1)
    """Blocks."""
    num_heads: int = Field(default=4, ge=1)
    """Attention heads; they divide `d_model`."""
    tied: bool = False
    """Predict the next token with the weights that tokens are embedded by (arXiv 1608.05859)."""
    mlp_ratio: float = Field(default=4.0, gt=0)
    """Hidden width of an MLP over its width."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of what each branch adds that is dropped in training."""
    gate: Literal["learned", "table", "equal"] = "learned"
    """Weights of the modalities: those of `question_types` and, from there on, learned by the question; those
    alone; or all alike."""
    question_types: tuple[QuestionType, ...] = QUESTION_TYPES
    """Where the answer to a type of question is looked for at first; to any other, everywhere alike."""

    @model_validator(mode="after")
    def _check(self) -> DecoderSpec:
        _check_heads("num_heads", self.d_model, self.num_heads)
        return self

    def question_type(self, question: str) -> int:
        """Number of the first type that a question is of; -1 if it is of none."""
        found = (re.search(kind.pattern, question.casefold()) for kind in self.question_types)
        return next((number for number, match in enumerate(found) if match), -1)


PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {},
    "small": {
        "vision": {"image_size": 128, "embed_dim": 64, "depths": (2, 2, 6), "num_heads": (2, 4, 8)},
        "text": {"d_model": 256, "num_layers": 6, "num_heads": 8},
        "audio": {"d_model": 192, "num_layers": 6, "num_heads": 6, "num_bands": 8, "num_convs": 3},
        "decoder": {"d_model": 256, "num_layers": 4, "num_heads": 8},
        "embed_dim": 256,
    },
    "base": {
        "vision": {"image_size": 256, "embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (4, 8, 16, 32)},
        "text": {"d_model": 512, "num_layers": 12, "num_heads": 8, "memory_length": 128},
        "audio": {"d_model": 384, "num_layers": 12, "num_heads": 8, "num_bands": 8, "num_convs": 2},
        "decoder": {"d_model": 512, "num_layers": 6, "num_heads": 8},
        "embed_dim": 512,
    },
}
"""Preset → the fields it sets; `tiny` is every field's default."""


Task = Literal[
    "contrastive",
    "alignment",
    "caption",
    "answer",
    "language",
    "transcription",
    "classification",
    "document",
    "segmentation",
]
NEEDS: dict[Task, tuple[str, ...]] = {
    "contrastive": (),
    "alignment": (),
    "caption": ("decoder",),
    "answer": ("decoder", "text"),
    "language": ("text",),
    "transcription": ("audio",),
    "classification": ("vision",),
    "document": ("text",),
    "segmentation": ("vision",),
}
"""Task → the parts of a model that it needs; the first two need any two encoders."""


EMBEDDED: frozenset[Task] = frozenset({"contrastive", "alignment"})
"""Tasks that need an embedding of each modality."""
DECODED: frozenset[Task] = frozenset({"caption", "answer"})
"""Tasks that need the decoder."""


class ModelSpec(PartSpec):
    """The whole model: `preset` sets every size, and any field given beside it wins.

    A part that is null is left out.
    """

    preset: Literal["tiny", "small", "base"] = "tiny"
    """Sets every size: `tiny` trains on a laptop, `small` and `base` want accelerators."""
    vision: VisionSpec | None = VisionSpec()
    """Encoder of pictures."""
    text: TextSpec | None = TextSpec()
    """Encoder of texts."""
    audio: AudioSpec | None = AudioSpec()
    """Encoder of speech."""
    decoder: DecoderSpec | None = DecoderSpec()
    """Decoder of captions or answers."""
    embed_dim: int = Field(default=128, ge=1)
    """Width of the embedding that all modalities share."""
    alignment_heads: int = Field(default=4, ge=1)
    """Heads of the attention between modalities; they divide the width of each encoder."""

    @model_validator(mode="before")
    @classmethod
    def _expand_preset(cls, data: Any) -> Any:  # noqa: ANN401 - pydantic hands over whatever was given
        if not isinstance(data, Mapping):
            return data
        given: dict[str, Any] = dict(data)
        for name, value in PRESETS.get(given.get("preset", "tiny"), {}).items():
            if not isinstance(value, dict):
                given.setdefault(name, value)
            elif isinstance(given.get(name, {}), Mapping):
                given[name] = value | dict(given.get(name, {}))
        return given

    @model_validator(mode="after")
    def _check(self) -> ModelSpec:
        if not self.parts & {"vision", "text", "audio"}:
            raise ValueError("a model needs an encoder: vision, text or audio")
        return self

    @property
    def parts(self) -> set[str]:
        """Names of the parts that it has."""
        return {name for name in ("vision", "text", "audio", "decoder") if getattr(self, name) is not None}

    @property
    def findings(self) -> tuple[str, ...]:
        """What is told from each other in pictures' pixels."""
        return self.vision.findings if self.vision is not None else ()

    @property
    def compares(self) -> bool:
        """Whether pictures are compared with references."""
        return self.vision is not None and self.vision.compares

    def parts_for(self, tasks: Collection[Task]) -> set[str]:
        """Names of the parts that run for some tasks."""
        needed = {"decoder"} if DECODED & set(tasks) else set[str]()
        if EMBEDDED & set(tasks) or "answer" in tasks:
            needed |= {"vision", "text", "audio"}
        if "caption" in tasks:
            needed |= {"vision", "audio"}
        for task in tasks:
            needed |= set(NEEDS[task])
        if "segmentation" in tasks and self.marks_by_text:
            needed.add("text")
        return needed & self.parts

    @property
    def marks_by_text(self) -> bool:
        """Whether what is marked in pictures hangs on their texts, too."""
        return self.vision is not None and self.vision.reads_text

    @property
    def drops(self) -> bool:
        """Whether anything is dropped in training, for which a batch must have seeds."""
        towers = self.text, self.audio, self.decoder
        rates = [tower.dropout for tower in towers if tower is not None]
        return any(rates) or (self.vision is not None and self.vision.drop_path > 0)

    def missing_for(self, task: Task) -> str:
        """What a task needs that the model lacks, in words; empty if nothing."""
        if task in ("contrastive", "alignment"):
            return "" if len(self.parts - {"decoder"}) > 1 else "a second encoder"
        if task == "segmentation" and self.vision is not None:
            lacks = [
                ("vision.pyramid_width", self.vision.pyramid_width),
                ("vision.findings", self.vision.findings),
                ("text, which vision.reads_text is about", not self.marks_by_text or self.text is not None),
            ]
            return " and ".join(name for name, value in lacks if not value)
        return " and ".join(part for part in NEEDS[task] if part not in self.parts)
