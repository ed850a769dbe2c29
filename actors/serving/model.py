"""The served model as the HTTP interfaces see it: calls to its replicas within a time, and their answers."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import replace
from http import HTTPStatus
from typing import Literal, Protocol, TypeAlias, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from ...pipelines.assessing.spec import Assessment
from ...pipelines.index import Hit
from . import deadlines
from .answering import Answered, Parts
from .batching import Encoded, Observed, Transcript
from .deadlines import Outlook
from .decoding import Floats, Piece, Sampling
from .drift import DriftResponse
from .inputs import longest_text
from .measuring import InHand
from .messages import (
    AnswerRequest,
    AnswerResponse,
    AssessRequest,
    Health,
    Input,
    Judgement,
    Looked,
    Refusal,
    Timings,
    Verdict,
    refusal,
)
from .moderating.moderator import Moderator, admit
from .moderating.noting import note
from .moderating.policy import blocks, verdict
from .problems import RefusedError, accept
from .spec import LimitsSpec
from .tokens import Scope

_T = TypeVar("_T")
_U = TypeVar("_U")
Kind: TypeAlias = Literal[
    "embed", "search", "transcribe", "encode", "decode", "moderate", "classify", "assess"
]
"""What is asked of replicas."""
ROOM = 1.25
"""A request is refused unless it has this many times what an answer is expected to take: that is a mean."""


class Replicas(Protocol):
    """Reaches the replicas; see `batching.Encoder` and `answering.Decoder`. Refusals are values."""

    def embed(self, query: Input) -> Awaitable[NDArray[np.float32] | Refusal]:
        """Embed one input (E,)."""
        ...

    def search(self, query: Input, top_k: int) -> Awaitable[list[Hit] | Refusal]:
        """Rank the indexed pictures."""
        ...

    def encode(self, queries: Sequence[Input], neighbours: int | None = None) -> Awaitable[Encoded | Refusal]:
        """Encode one input of each of some modalities; with `neighbours`, tell what moderation asks."""
        ...

    def observe(self, queries: Sequence[Input], neighbours: int) -> Awaitable[Observed | Refusal]:
        """Find out about inputs what moderation asks."""
        ...

    def classify(self, query: Input) -> Awaitable[NDArray[np.float32] | Refusal]:
        """Probabilities of a picture's categories (K,)."""
        ...

    def transcribe(self, data: bytes) -> Awaitable[Transcript | Refusal]:
        """Make a text of encoded speech."""
        ...

    def assess(self, request: AssessRequest) -> Awaitable[Assessment | Refusal]:
        """Assess a document, a picture or a volume."""
        ...

    def drift(self) -> Awaitable[DriftResponse | Refusal]:
        """How far what one replica was asked lies from what was trained on."""
        ...

    def answer(self, parts: Parts, question: str, sampling: Sampling) -> Awaitable[Answered | Refusal]:
        """Answer, all at once."""
        ...

    def stream(
        self, parts: Parts, question: str, sampling: Sampling
    ) -> AsyncGenerator[Piece | Answered | Refusal]:
        """Tell an answer's tokens as they are found, and then the whole."""
        ...


class Model:
    """What all interfaces ask.

    Args:
        replicas: reaches them.
        health: what is served.
        limits: what a request may ask for.
        moderator: judges what is asked and answered; None lets everything through.

    Attributes:
        health: see above.
        limits: see above.
    """

    def __init__(
        self, replicas: Replicas, health: Health, limits: LimitsSpec, moderator: Moderator | None = None
    ) -> None:
        self._replicas, self._moderator = replicas, moderator
        self.health, self.limits = health, limits
        self._in_hand, self._told = 0, InHand(health.bundle)
        self._outlooks = {kind: Outlook() for kind in get_args(Kind)}

    def bound(self, inputs: int) -> None:
        """Refuse a request of too many inputs."""
        if inputs > self.limits.max_inputs:
            many = f"{inputs} inputs are more than {self.limits.max_inputs}"
            raise RefusedError(refusal(413, "too-many-inputs", many, "send them in several requests"))

    async def embed(self, inputs: Sequence[Input]) -> list[NDArray[np.float32]]:
        """Embed inputs, each (E,)."""
        self.bound(len(inputs))
        self._check_embeds()
        with self._admitted("embed", len(inputs)):
            embedding = asyncio.gather(*(self._replicas.embed(one) for one in inputs))
            answers = await self._within(self._let(embedding, inputs))
            return [accept(answer, f"inputs.{i}: ") for i, answer in enumerate(answers)]

    async def search(self, query: Input, top_k: int) -> list[Hit]:
        """Rank the indexed pictures."""
        self._check_embeds()
        with self._admitted("search"):
            hits = accept(await self._within(self._let(self._replicas.search(query, top_k), [query])))
        if self._moderator is None:
            return hits
        judged = self._moderator.captions([hit.caption for hit in hits])
        kept = [number for number, one in enumerate(judged) if not blocks(one)]
        admit(one for number in kept for one in judged[number])
        return [hits[number] for number in kept]

    def _check_embeds(self) -> None:
        if not self.health.embeds:
            raise _lacks("embed pictures, texts and speech", "contrastive")

    async def transcribe(self, data: bytes) -> Transcript:
        """Make a text of encoded speech."""
        if not self.health.transcribes:
            raise _lacks("transcribe speech", "transcription")
        with self._admitted("transcribe"):
            told = accept(await self._within(self._replicas.transcribe(data)))
        if self._moderator is not None:
            admit(self._moderator.transcript(told.text))
        return told

    async def classify(self, query: Input) -> NDArray[np.float32]:
        """Probabilities of a picture's categories (K,)."""
        if not self.health.classes:
            raise _lacks("know categories", "classification")
        with self._admitted("classify"):
            return accept(await self._within(self._let(self._replicas.classify(query), [query])))

    async def assess(self, request: AssessRequest) -> Assessment:
        """Assess a document, a picture or a volume."""
        if request.kind not in self.health.assesses:
            task = "document" if request.kind == "document" else "segmentation"
            raise _lacks(f"assess a {request.kind}", task)
        with self._admitted("assess"):
            return accept(await self._within(self._replicas.assess(request)))

    async def moderate(self, inputs: Sequence[Input]) -> Verdict:
        """Judge inputs, one of each of some modalities, each by itself and together."""
        if self._moderator is None:
            raise RefusedError(
                refusal(404, "not-served", "nothing is moderated here", "serve it with --moderate")
            )
        with self._admitted("moderate", len(inputs)):
            return verdict(await self._within(self._judge(inputs, self._moderator)))

    async def drift(self) -> DriftResponse:
        """How far what one replica was asked lies from what was trained on."""
        return accept(await self._within(self._replicas.drift()))

    async def answer(self, request: AnswerRequest) -> AnswerResponse:
        """Answer a question, with where that was found."""
        begun = time.monotonic()
        encoded = await self._encode(request.question, request.inputs)
        decoding = self._decode(encoded, request.question, sampling_of(request))
        # what may not be asked, isn't answered, even if that is found out when the answer is there
        (told, remarks), asked = await _together(decoding, self._judge_encoded(request.inputs, encoded))
        admit(remarks)
        return AnswerResponse(
            answer=told.text,
            finish_reason=told.pieces[-1].end or "stop",
            weights=dict(told.weights),
            attention=looked(told, encoded),
            moderation=None if self._moderator is None else verdict((*asked, *remarks)),
            timings_ms=Timings(
                prepare=round(1e3 * encoded.prepare_s, 2),
                encode=round(1e3 * encoded.encode_s, 2),
                decode=round(1e3 * told.seconds, 2),
                total=round(1e3 * (time.monotonic() - begun), 2),
            ),
            bundle=self.health.bundle,
        )

    async def encode(self, question: str | None, inputs: Sequence[Input]) -> Encoded:
        """Encode what an answer is to be found in, if it may be asked."""
        encoded = await self._encode(question, inputs)
        return replace(encoded, remarks=await self._judge_encoded(inputs, encoded))

    async def _judge_encoded(self, inputs: Sequence[Input], encoded: Encoded) -> tuple[Judgement, ...]:
        """What moderation remarks about inputs, if they may pass."""
        if self._moderator is None:
            return ()
        found = encoded.observed
        observed = found if isinstance(found, Observed) else await self._within(found)
        return admit(await self._moderator.inputs(inputs, observed))

    async def _encode(self, question: str | None, inputs: Sequence[Input]) -> Encoded:
        """Encode what an answer is to be found in."""
        if not self.health.answers:
            raise _lacks("answer", "answer")
        if self.health.asks and question is None:
            raise RefusedError(
                refusal(422, "no-question", "the model answers questions", "say what is asked, as a text")
            )
        if not self.health.asks and question is not None:
            raise RefusedError(
                refusal(
                    422,
                    "takes-no-question",
                    "the model describes pictures and speech, and reads no question",
                    "leave the text out",
                )
            )
        with self._admitted("encode", len(inputs), before="decode"):
            neighbours = None if self._moderator is None else self._moderator.neighbours
            return accept(await self._within(self._replicas.encode(inputs, neighbours)))

    async def decode(self, encoded: Encoded, question: str | None, sampling: Sampling) -> Answered:
        """Answer, all at once; what may not be told, ends with `content_filter` and says nothing."""
        told, remarks = await self._decode(encoded, question, sampling)
        note(remarks)
        return told

    async def _decode(
        self, encoded: Encoded, question: str | None, sampling: Sampling
    ) -> tuple[Answered, tuple[Judgement, ...]]:
        """An answer, and what moderation remarks about it."""
        with self._admitted("decode"):
            answering = self._replicas.answer(encoded.parts, question or "", sampling)
            told = accept(await self._within(answering))
        return (told, ()) if self._moderator is None else self._moderator.answer(told)

    async def _let(self, call: Awaitable[_T], inputs: Sequence[Input]) -> _T:
        """What a call gives if each of its inputs may pass, which is found out meanwhile."""
        if self._moderator is None:
            return await call
        judging = asyncio.gather(*(self._judge([one], self._moderator) for one in inputs))
        found, judged = await _together(call, judging)
        admit(one for some in judged for one in some)
        return found

    async def _judge(self, inputs: Sequence[Input], moderator: Moderator) -> list[Judgement]:
        """Judge one input of each of some modalities."""
        if any(len(one.text or "") > longest_text(self.limits) for one in inputs):
            raise RefusedError(refusal(413, "text-too-long", "the text is too long", "send less of it"))
        opened = [one for one in inputs if one.text is None]
        neighbours = moderator.neighbours if len(inputs) > 1 else 0
        observed = accept(await self._replicas.observe(opened, neighbours)) if opened else Observed()
        return await moderator.inputs(inputs, observed)

    async def stream(
        self, encoded: Encoded, question: str | None, sampling: Sampling
    ) -> AsyncGenerator[Piece | Answered]:
        """Tell an answer's tokens as they are found, and then the whole."""
        told = self._replicas.stream(encoded.parts, question or "", sampling)
        if self._moderator is not None:
            told = self._moderator.stream(told)
        with self._admitted("decode"):
            try:
                while True:
                    yield accept(await self._within(anext(told)))
            except StopAsyncIteration:
                return
            finally:
                await told.aclose()

    def overloaded(self, scope: Scope) -> Refusal | None:
        """Why no more of that can be taken in, if so; whoever asks is told before anything of it is read."""
        if scope == "watch":  # it computes nothing, and is wanted most under load
            return None
        kinds: tuple[Kind, ...] = ("encode", "decode") if scope == "answer" else (scope,)
        ahead = self._expect(kinds, self._in_hand)
        if self._in_hand < self.limits.max_queued_requests and ahead <= self.limits.max_wait_s:
            return None
        message = f"{self._in_hand} inputs are in hand, which take {ahead:.3g} s"
        return refusal(
            503, "overloaded", message, "try again shortly", retry_after_s=max(1, math.ceil(ahead))
        )

    def _expect(self, kinds: Iterable[Kind], in_hand: int) -> float:
        """Seconds that something takes which is done in these parts, one after another."""
        return sum(self._outlooks[kind].expect(in_hand) for kind in kinds)

    @contextmanager
    def _admitted(self, kind: Kind, inputs: int = 1, *, before: Kind | None = None) -> Generator[None]:
        """Have some inputs in hand, if there aren't too many already, and time enough.

        Args:
            kind: what is asked for.
            inputs: of it.
            before: what comes after it.
        """
        in_hand = self._in_hand + inputs
        if in_hand > self.limits.max_queued_requests:
            message = f"{self._in_hand} inputs are in hand, and {inputs} more would be too many"
            remedy = "try again shortly, with fewer inputs if there are many"
            raise RefusedError(refusal(503, "overloaded", message, remedy, retry_after_s=1))
        expected = self._expect((kind,) if before is None else (kind, before), in_hand)
        left = deadlines.left()
        # with nothing in hand nobody is kept waiting, and what was learned may be wrong
        if left <= 0 or (self._in_hand and ROOM * expected > left):
            message = f"an answer would take {expected:.3g} s, and {max(left, 0):.3g} s are left"
            retry = max(1, math.ceil(expected - left)) if math.isfinite(left) else 1
            remedy = "try again shortly, or wait longer for it"
            raise RefusedError(refusal(503, "too-late", message, remedy, retry_after_s=retry))
        self._in_hand = in_hand
        self._told.set(in_hand)
        begun = time.monotonic()
        try:
            yield
            self._outlooks[kind].saw(in_hand, time.monotonic() - begun)
        except RefusedError as error:
            if error.refusal.status == HTTPStatus.GATEWAY_TIMEOUT:  # it takes even longer
                self._outlooks[kind].saw(in_hand, time.monotonic() - begun)
            raise
        finally:
            self._in_hand -= inputs
            self._told.set(self._in_hand)

    async def _within(self, call: Awaitable[_T]) -> _T:
        """Wait for replicas as long as the request has; then what they were asked is given up."""
        limit = min(deadlines.left(), self.limits.request_timeout_s)
        try:
            async with asyncio.timeout(limit):
                return await call
        except TimeoutError:
            late = refusal(
                HTTPStatus.GATEWAY_TIMEOUT,
                "timeout",
                "no answer in the time it had",
                "try again, or send fewer inputs",
            )
            raise RefusedError(late) from None


async def _together(first: Awaitable[_T], second: Awaitable[_U]) -> tuple[_T, _U]:
    """What both give; if one fails, nobody waits for the other."""
    tasks = asyncio.ensure_future(first), asyncio.ensure_future(second)
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        raise


def sampling_of(request: AnswerRequest) -> Sampling:
    """How a request wants tokens to be chosen."""
    return Sampling(
        max_tokens=request.max_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        seed=request.seed,
        stop=tuple(request.stop),
    )


def looked(told: Answered, encoded: Encoded) -> Looked:
    """Where an answer was found, of what there was."""

    def valid(modality: str, mask: str) -> list[float] | None:
        part = encoded.parts.get(modality)  # pyright: ignore[reportCallIssue, reportArgumentType]
        found = told.maps.get(modality)
        if part is None or found is None:
            return None
        length = max(1, -(-int(part[mask].sum()) * len(found) // len(part[mask])))
        return [round(float(one), 6) for one in found[:length]]

    grid = _grid(told.maps["image"]) if "image" in encoded.parts and "image" in told.maps else None
    return Looked(image=grid, text=valid("text", "token_mask"), speech=valid("speech", "mel_mask"))


def _grid(found: Floats) -> list[list[float]]:
    side = round(len(found) ** 0.5)
    rows = found.reshape(side, -1)
    return [[round(float(one), 6) for one in row] for row in rows]


def _lacks(what: str, task: str) -> RefusedError:
    return RefusedError(
        refusal(
            404,
            "not-served",
            f"the served model does not {what}",
            f"serve one that was trained with a weight for objective.{task}",
        )
    )
