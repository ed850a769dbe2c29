"""What goes over the wire: requests, answers, and the one shape of an error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ...pipelines.assessing.spec import DocumentAssessment, NotAssessable, PictureAssessment, VolumeAssessment
from ...pipelines.spec import Assessed, Form, Modality
from .spec import Action


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


class ClassifyRequest(Message):
    """A picture."""

    image: str = Field(min_length=1)
    """An encoded picture (PNG, JPEG, …) as base64 or as a data URI."""
    top_k: int = Field(5, ge=1, le=100)
    """How many categories to give."""

    @property
    def input(self) -> Input:
        """The picture by itself."""
        return Input.model_validate({"image": self.image})


class CategoryResult(Message):
    """A category that a picture may be of."""

    category: str
    probability: float
    """By the softmax over all categories."""


class ClassifyResponse(Message):
    """Categories, the likeliest first."""

    categories: list[CategoryResult]
    bundle: str
    """Digest of the bundle that answered."""


class AssessRequest(Message):
    """What is to be assessed: exactly one of text, document, image and volume, or one of the last two with a
    text beside it.
    """

    text: str | None = Field(None, min_length=1, examples=["Net profit rose by a fifth."])
    """Text of any length; beside a picture or a volume, what is known of it, such as a report."""
    document: str | None = Field(None, min_length=1)
    """A PDF, an HTML page or plain text as base64 or as a data URI."""
    image: str | None = Field(None, min_length=1)
    """An encoded picture (PNG, JPEG, …) as base64 or as a data URI."""
    reference: str | None = Field(None, min_length=1)
    """How the image should look, of its size, for a model that compares; sent as the image is."""
    volume: str | None = Field(None, min_length=1)
    """A volume (NIfTI, NRRD, MetaImage, or a zip of a series' DICOM slices) as base64 or as a data URI."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = self.model_dump(exclude_none=True, exclude={"reference"})
        beside = {"text"} if given.keys() & {"image", "volume"} else set[str]()
        if len(given.keys() - beside) != 1:
            raise ValueError(
                "give exactly one of text, document, image and volume, or a text beside an image or volume, "
                f"not {' and '.join(given) or 'nothing'}"
            )
        if self.reference is not None and self.image is None:
            raise ValueError("a reference goes with an image")
        return self

    @property
    def kind(self) -> Assessed:
        """What is to be assessed."""
        if self.image is not None:
            return "picture"
        return "volume" if self.volume is not None else "document"


class AssessResponse(Message):
    """What was found, or why nothing is said."""

    assessable: bool
    problem: NotAssessable | None = None
    """Why not; none if it is."""
    document: DocumentAssessment | None = None
    picture: PictureAssessment | None = None
    volume: VolumeAssessment | None = None
    bundle: str
    """Digest of the bundle that answered."""


class AnswerRequest(Message):
    """A question, a picture, a spoken sentence: any of them together."""

    question: str | None = Field(None, min_length=1, examples=["What colour is the frog?"])
    """What is asked; a model that describes takes none."""
    image: str | None = Field(None, min_length=1)
    """An encoded picture (PNG, JPEG, …) as base64 or as a data URI."""
    speech: str | None = Field(None, min_length=1)
    """Encoded speech (WAV, Ogg, FLAC) as base64 or as a data URI."""
    max_tokens: int | None = Field(None, ge=1)
    """Of the answer; what the model was made for by default, and at the most."""
    temperature: float = Field(0.0, ge=0, le=2)
    """0 takes the likeliest token at each step."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Only the likeliest tokens that together have this probability."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Of the draws."""
    stop: list[str] = Field(default_factory=list[str], max_length=4)
    """Texts that end the answer, and are no part of it."""

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.question is None and self.image is None and self.speech is None:
            raise ValueError("give a question, an image or speech")
        return self

    @property
    def inputs(self) -> list[Input]:
        """What is given, each by itself."""
        given = {"text": self.question, "image": self.image, "speech": self.speech}
        return [Input.model_validate({name: value}) for name, value in given.items() if value is not None]


class Looked(Message):
    """How much of an answer was found where; all numbers together make 1."""

    image: list[list[float]] | None
    """By row and column of the picture, as a grid; what stands beside it counts as the picture."""
    text: list[float] | None
    """By token of the question, with those that begin and end it."""
    speech: list[float] | None
    """By stretch of the recording, all as long."""


class Timings(Message):
    """Milliseconds that parts of an answer took."""

    prepare: float
    """Decoding picture and speech, and waiting for that."""
    encode: float
    """The encoders, and waiting for them."""
    decode: float
    """The decoder, and waiting for it."""
    total: float
    """All of it, but for HTTP."""


Judged = Literal["text", "image", "speech", "pair", "output"]
"""What is judged: a question, a picture, what is said, a picture with words, an answer."""


class Judgement(Message):
    """How likely a content is of a category, and what that comes to."""

    of: Judged
    category: str
    score: float
    """From 0 to 1."""
    threshold: float | None
    """That the score reached; none if it may pass."""
    action: Action


class Verdict(Message):
    """What may be done with a content."""

    action: Action
    """The strictest of the judgements'."""
    judgements: list[Judgement]


class ModerateRequest(Message):
    """A text, a picture, speech: any of them, judged each and together."""

    text: str | None = Field(None, min_length=1)
    image: str | None = Field(None, min_length=1)
    """An encoded picture (PNG, JPEG, …) as base64 or as a data URI."""
    speech: str | None = Field(None, min_length=1)
    """Encoded speech (WAV, Ogg, FLAC) as base64 or as a data URI."""

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.text is None and self.image is None and self.speech is None:
            raise ValueError("give a text, an image or speech")
        return self

    @property
    def inputs(self) -> list[Input]:
        """What is given, each by itself."""
        given = self.model_dump(exclude_none=True)
        return [Input.model_validate({name: value}) for name, value in given.items()]


class ModerateResponse(Verdict):
    """The verdict on a request's contents."""

    bundle: str
    """Digest of the bundle that transcribed the speech and looked at the pair."""


class AnswerResponse(Message):
    """What the model says, and where it found that."""

    answer: str
    finish_reason: str
    """`stop`, or `length` if it was cut."""
    weights: dict[str, float]
    """Modality → weight of what was found there."""
    attention: Looked
    timings_ms: Timings
    bundle: str
    """Digest of the bundle that answered."""
    moderation: Verdict | None = None
    """Whether something in it is flagged; none if nothing is moderated. What is blocked, isn't answered."""


class Health(Message):
    """What answers here."""

    status: str
    bundle: str
    embed_dim: int
    application: str
    answers: bool = False
    """Whether it answers, which needs a decoder."""
    asks: bool = False
    """Whether it takes a question; else it describes what is there."""
    transcribes: bool = False
    """Whether it makes a text of speech."""
    form: Form | None = None
    """Of the graphs; none is single precision."""
    runs_on: str = ""
    """What the graphs run on, and why on nothing faster; empty where other processes run them."""
    classes: tuple[str, ...] = ()
    """Categories of pictures that it tells apart; none if it wasn't trained for that."""
    embeds: bool = True
    """Whether it embeds pictures, texts and speech, and searches."""
    assesses: tuple[Assessed, ...] = ()
    """What it assesses."""
    moderates: bool = False
    """Whether it judges what is asked and answered."""
    fit: Literal["letterbox", "crop"] = "letterbox"
    """How it makes a square of a picture."""
    shown: float = 1.0
    """Share of that square's side that it sees, the middle."""


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
