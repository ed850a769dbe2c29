"""What goes over the wire: requests, answers, and the one shape of an error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ...pipelines.bundle import Modality


class Message(BaseModel):
    """Base of what is sent and received: frozen, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Input(Message):
    """One text, picture or spoken sentence: exactly one of the three fields."""

    text: str | None = Field(None, min_length=1, examples=["A frog."])
    """Text in any language of the corpus."""
    image: str | None = Field(None, min_length=1)
    """An encoded picture (PNG, JPEG, …) as base64 or as a data URI."""
    speech: str | None = Field(None, min_length=1)
    """Encoded speech (WAV, Ogg, FLAC) as base64 or as a data URI."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [name for name in ("text", "image", "speech") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of text, image and speech, not {len(given)}")
        return self

    @property
    def modality(self) -> Modality:
        """Which of the three fields is set."""
        return "text" if self.text is not None else "image" if self.image is not None else "speech"


class EmbedRequest(Message):
    """Inputs to embed, of any mixture of modalities."""

    inputs: list[Input] = Field(min_length=1)


class EmbedResponse(Message):
    """One unit vector for each input, in the order of the inputs."""

    embeddings: list[list[float]]
    dim: int
    bundle: str
    """Digest of the bundle that answered."""


class SearchRequest(Input):
    """A query of any modality."""

    top_k: int = Field(5, ge=1, le=100)
    """How many pictures to give."""


class SearchResult(Message):
    """A picture of the corpus."""

    id: str
    caption: str
    category: str
    score: float
    """Cosine of the picture's embedding with the query's."""


class SearchResponse(Message):
    """Pictures, the best first."""

    results: list[SearchResult]
    bundle: str
    """Digest of the bundle that answered."""


class Health(Message):
    """What answers here."""

    status: str
    bundle: str
    embed_dim: int
    application: str


class Problem(Message):
    """Every error has this shape."""

    code: str
    """Stable, for programs."""
    message: str
    """What happened."""
    remedy: str
    """What to do about it; empty when nothing can be done."""


@dataclass(frozen=True)
class Refusal:
    """A problem and its HTTP status; a value, so that it crosses processes without a traceback."""

    status: int
    problem: Problem
    retry_after_s: int | None = None


def refusal(
    status: int, code: str, message: str, remedy: str = "", *, retry_after_s: int | None = None
) -> Refusal:
    """Make a refusal."""
    return Refusal(status, Problem(code=code, message=message, remedy=remedy), retry_after_s)
