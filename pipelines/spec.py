"""How inputs are prepared, and what a corpus says about itself. Imports pydantic only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, model_validator

from ..workflows.spec import Spec

Modality: TypeAlias = Literal["image", "text", "speech"]
Assessed: TypeAlias = Literal["document", "picture", "volume"]
"""What a bundle may assess whole."""
Form: TypeAlias = Literal["int8", "int8-dynamic", "float16"]
"""Of a bundle's graphs, beside single precision."""
Accelerator: TypeAlias = Literal["auto", "tensorrt", "cuda", "cpu"]
"""What graphs run on: the fastest that works, or from one on; what can't be falls back to the next."""

Split: TypeAlias = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
SCHEMA_VERSION = 2

PAD, BOS, EOS = 0, 1, 2
SPECIAL_TOKENS = ("[PAD]", "[BOS]", "[EOS]")
BYTE_VALUES = 256

MAX_VOXELS = 1 << 29
"""Voxels of a volume, unless a spec says otherwise: 512 slices of 1024 by 1024."""

CPUS_PER_TASK = 0.5
"""CPUs a task reserves. Ray Data looks every 0.1 s for what has ended, so two tasks share a core: one goes on
while the other's successor is on its way (measured on two cores: 19 % more pictures a second)."""


class Preparation(Spec):
    """How a picture, a caption and a recording become arrays; training and serving share it."""

    image_size: int = Field(default=64, ge=8, le=1024)
    """Side of the square picture the model sees, in pixels."""
    stored_image_size: int = Field(default=72, ge=8, le=2048)
    """Side of the stored picture; what is over `image_size` is room for augmentation."""
    fit: Literal["letterbox", "crop"] = "letterbox"
    """How a picture becomes a square: all of it with bars beside it, or its middle without any."""
    sample_rate: int = Field(default=16_000, ge=4_000, le=48_000)
    """Hertz."""
    n_mels: int = Field(default=64, ge=8, le=256)
    """Mel bands."""
    hop_ms: float = Field(default=10.0, gt=0, le=100)
    """Milliseconds between the starts of two frames."""
    window_ms: float = Field(default=25.0, gt=0, le=200)
    """Milliseconds a frame looks at."""
    max_frames: int = Field(default=256, ge=8)
    """Frames kept of a recording; what is longer is cut."""
    max_tokens: int = Field(default=32, ge=4)
    """Tokens kept of a caption, with the two that mark its ends."""
    vocab_size: int = Field(default=2_000, ge=BYTE_VALUES + len(SPECIAL_TOKENS))
    """Tokens the byte-level BPE may have; a small corpus gives fewer."""
    caption_languages: tuple[str, ...] = Field(default=("en",), min_length=1)
    """Languages whose captions are kept, besides those of the speech; the first is the reference."""
    speech_languages: tuple[str, ...] = ("fr", "es", "ca", "ro")
    """Languages whose recordings are kept, in order of preference."""

    @model_validator(mode="after")
    def _room_for_augmentation(self) -> Preparation:
        if self.stored_image_size < self.image_size:
            raise ValueError(
                f"stored_image_size {self.stored_image_size} is smaller than image_size {self.image_size}"
            )
        return self

    @property
    def languages(self) -> tuple[str, ...]:
        """Languages whose captions are kept, each once."""
        return tuple(dict.fromkeys((*self.caption_languages, *self.speech_languages)))


@dataclass(frozen=True)
class Sizes:
    """How long a row's sequences are, or how long a batch's rows are filled up to."""

    tokens: int
    answer: int
    frames: int


class Splits(Spec):
    """Shares of the groups that go to each split, decided by a hash of the group.

    A source names a record's group (a speaker, a patient); where it names none, records with the same
    caption are one.
    """

    train: float = Field(default=0.8, gt=0, le=1)
    """What is trained on."""
    val: float = Field(default=0.05, ge=0, lt=1)
    """What choices are made by."""
    test: float = Field(default=0.15, ge=0, lt=1)
    """What is reported."""
    by_group: Mapping[str, Split] = Field(default_factory=dict[str, Split])
    """Pattern (`*` is anything) → split of the groups with that name, whatever the shares: a published split,
    or a patient kept for testing. Of several that fit, the longest counts."""

    @model_validator(mode="after")
    def _whole(self) -> Splits:
        total = self.train + self.val + self.test
        if abs(total - 1) > 1e-9:
            raise ValueError(f"train, val and test must add up to 1, not {total:g}")
        return self


class Slicing(Spec):
    """How a volume is cut into slices before anything is found in it."""

    spacing_mm: tuple[float, float, float]
    """Distances of voxels that it is brought to, along depth, height and width."""
    gap: int = Field(default=1, ge=1)
    """Slices from one of a picture's three colours to the next."""
    low_hu: float = -1000.0
    """What becomes 0."""
    high_hu: float = 400.0
    """What becomes 255."""


class Terms(Spec):
    """Words of a field that become single tokens: merges are added to the tokenizer's, after all it has."""

    dictionary: Literal["loughran-mcdonald"] | None = None
    """A word list that is fetched: Loughran and McDonald's of financial sentiment."""
    words: tuple[Annotated[str, Field(pattern=r"^\S+$")], ...] = ()
    """Words of your own, in small letters; they are taken however rare."""
    min_count: int = Field(default=20, ge=1)
    """Times that a word of the dictionary must be in the training split."""
    most: int = Field(default=2_000, ge=1)
    """Words of the dictionary that are taken, the most frequent."""

    @model_validator(mode="after")
    def _some(self) -> Terms:
        if self.dictionary is None and not self.words:
            raise ValueError("name a dictionary, or words")
        return self


class Packing(Spec):
    """Documents packed by length into sequences, of which each holds whole documents as far as they fit."""

    length: int = Field(default=2_048, ge=16)
    """Tokens of a sequence; a longer document becomes several."""
    window: int = Field(default=4_096, ge=1)
    """Documents packed together: more leave less room, fewer keep a sequence's pieces near each other."""


class SplitCounts(Spec):
    """What a split holds."""

    records: int = 0
    pictures: int = 0
    captions: int = 0
    clips: int = 0
    documents: int = 0
    volumes: int = 0
    packs: int = 0


class CorpusInfo(Spec):
    """What `corpus.json` says."""

    schema_version: Literal[2] = SCHEMA_VERSION
    source: str
    """The source's kind."""
    source_digest: str
    columns: tuple[str, ...]
    """Of the shards."""
    splits: Mapping[str, SplitCounts]
    classes: tuple[str, ...]
    """Categories, sorted; a label is the number of one."""
    vocab_size: int
    """Tokens that the tokenizer has; 0 without a tokenizer."""
    preparation: Preparation
    packing: Packing | None = None
    """How documents were packed, if they were."""
    quarantined: Mapping[str, int]
    """What was refused, by reason."""
