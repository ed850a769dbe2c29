"""The interface of OpenAI's API, so that its clients work unchanged (platform.openai.com/docs/api-reference).

The model has no memory of a conversation and follows no instructions: it answers the user's last text from
the latest picture and the latest speech. What it can't do is refused, never left out silently.
"""

from __future__ import annotations

import base64
import json
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, File, Form
from fastapi.responses import PlainTextResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from .answering import Answered
from .batching import Segment, Transcript
from .decoding import Piece, Sampling
from .messages import Input, refusal
from .model import Model
from .problems import OpenAIProblem, RefusedError, described

MAX_CHOICES = 8
ANY = "eagleray"
"""A name for whatever is served."""


class OpenAIMessage(BaseModel):
    """Base of what is read: closed to what it doesn't know, since that would be left out silently."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class EmbeddingsRequest(OpenAIMessage):
    """Texts to embed."""

    model: str
    input: Annotated[str, Field(min_length=1)] | Annotated[list[Input | str], Field(min_length=1)]
    """A text, or several; here also objects with one of `text`, `image` and `speech`."""
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    """The width that the model has, or nothing."""
    user: str | None = None


class TextPart(OpenAIMessage):
    """A text."""

    type: Literal["text"]
    text: str


class ImageURL(OpenAIMessage):
    """A picture as a data URI."""

    url: str
    detail: Literal["auto", "low", "high"] = "auto"


class ImagePart(OpenAIMessage):
    """A picture."""

    type: Literal["image_url"]
    image_url: ImageURL


class InputAudio(OpenAIMessage):
    """Encoded speech as base64."""

    data: str
    format: str = "wav"


class AudioPart(OpenAIMessage):
    """Speech."""

    type: Literal["input_audio"]
    input_audio: InputAudio


Part = Annotated[TextPart | ImagePart | AudioPart, Field(discriminator="type")]


class ChatMessage(OpenAIMessage):
    """Something somebody said."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part] | None = None
    name: str | None = None
    refusal: str | None = None


class StreamOptions(OpenAIMessage):
    """Of a stream."""

    include_usage: bool = False


class ChatRequest(OpenAIMessage):
    """A conversation, the last text of which is to be answered."""

    model: str
    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(0.0, ge=0, le=2)
    """0, unlike OpenAI's 1: the likeliest token at each step."""
    top_p: float | None = Field(1.0, gt=0, le=1)
    n: int | None = Field(1, ge=1, le=MAX_CHOICES)
    seed: int | None = Field(0, ge=0, lt=2**63)
    stop: str | list[str] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    logprobs: bool | None = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    presence_penalty: Literal[0] | None = 0
    frequency_penalty: Literal[0] | None = 0
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: Literal[False] | None = False


def router(model: Model) -> APIRouter:
    """The routes.

    Args:
        model: what answers.
    """
    routes = APIRouter(prefix="/v1", tags=["openai"], responses=described(OpenAIProblem))
    name, bundle = model.health.application, model.health.bundle

    @routes.get("/models")
    async def models() -> dict[str, Any]:
        """List what is served."""
        return {"object": "list", "data": [_describe(model)]}

    @routes.get("/models/{model_name}")
    async def one_model(model_name: str) -> dict[str, Any]:
        """Describe what is served."""
        _check_model(model, model_name)
        return _describe(model)

    @routes.post("/embeddings")
    async def embeddings(request: EmbeddingsRequest) -> dict[str, Any]:
        """Embed texts, pictures and speech as unit vectors of one space."""
        _check_model(model, request.model)
        if request.dimensions not in (None, model.health.embed_dim):
            raise _refused("dimensions", f"embeddings have {model.health.embed_dim} numbers", "leave it out")
        given = [request.input] if isinstance(request.input, str) else request.input
        inputs = [Input.model_validate({"text": one}) if isinstance(one, str) else one for one in given]
        vectors = await model.embed(inputs)
        is_float = request.encoding_format == "float"
        data = [
            {"object": "embedding", "index": i, "embedding": v.tolist() if is_float else _base64(v)}
            for i, v in enumerate(vectors)
        ]
        return {
            "object": "list",
            "data": data,
            "model": name,
            "usage": {"prompt_tokens": len(inputs), "total_tokens": len(inputs)},
        }

    @routes.post("/chat/completions", response_model=None)
    async def chat(request: ChatRequest) -> dict[str, Any] | StreamingResponse:
        """Answer the last text of the user from the latest picture and speech."""
        _check_model(model, request.model)
        question, inputs = _read(request.messages)
        sampling = _sampling(request)
        encoded = await model.encode(question, inputs)
        head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": name,
            "system_fingerprint": bundle[:12],
        }
        prompt = sum(int(part["token_mask"].sum()) for part in encoded.parts.values() if "token_mask" in part)
        if request.stream:
            if (request.n or 1) > 1:
                raise _refused("n", "a stream has one choice", "set n to 1, or stream to false")
            pieces = model.stream(encoded, question, sampling)
            first = await anext(pieces)  # what is refused, is refused before the stream begins
            events = _events(first, pieces, head, request, prompt)
            return StreamingResponse(events, media_type="text/event-stream")
        choices: list[dict[str, Any]] = []
        completion = 0
        for i in range(request.n or 1):
            told = await model.decode(encoded, question, replace(sampling, seed=sampling.seed + i))
            completion += len(told.pieces)
            choices.append(
                {
                    "index": i,
                    "message": {"role": "assistant", "content": told.text, "refusal": None},
                    "logprobs": _log_probs(told.pieces) if request.logprobs else None,
                    "finish_reason": told.pieces[-1].end,
                }
            )
        return {**head, "object": "chat.completion", "choices": choices, "usage": _usage(prompt, completion)}

    @routes.post("/audio/transcriptions", response_model=None)
    async def transcriptions(
        file: Annotated[bytes, File()],
        model_name: Annotated[str, Form(alias="model")],
        response_format: Annotated[Literal["json", "text", "srt", "verbose_json", "vtt"], Form()] = "json",
        language: Annotated[str | None, Form()] = None,
        temperature: Annotated[float, Form()] = 0.0,
    ) -> Response | dict[str, Any]:
        """Make a text of speech; `language` and `temperature` change nothing."""
        _check_model(model, model_name)
        told = await model.transcribe(file)
        if response_format == "json":
            return {"text": told.text}
        if response_format == "verbose_json":
            return _verbose(told, language)
        shown = {"text": f"{told.text}\n", "srt": _srt(told.segments), "vtt": _vtt(told.segments)}
        return PlainTextResponse(shown[response_format])

    return routes


def _check_model(model: Model, asked: str) -> None:
    if asked not in (model.health.application, ANY):
        raise RefusedError(
            refusal(
                404,
                "model_not_found",
                f"the model {asked!r} is not served here",
                f"ask for {model.health.application!r}",
            )
        )


def _describe(model: Model) -> dict[str, Any]:
    return {"id": model.health.application, "object": "model", "created": 0, "owned_by": "eagleray"}


def _refused(where: str, message: str, remedy: str) -> RefusedError:
    return RefusedError(refusal(400, "unsupported", f"{where}: {message}", remedy))


def _read(messages: Sequence[ChatMessage]) -> tuple[str | None, list[Input]]:
    """The question, if there is one, and all inputs."""
    latest: dict[str, str] = {}
    for i, message in enumerate(messages):
        if message.role in ("system", "developer"):
            raise _refused(
                f"messages.{i}", f"the model follows no instructions of the {message.role}", "leave it out"
            )
        if message.role != "user":
            continue
        latest.pop("text", None)
        content = message.content or []
        parts = [TextPart(type="text", text=content)] if isinstance(content, str) else content
        texts = [part.text for part in parts if isinstance(part, TextPart) and part.text.strip()]
        if texts:
            latest["text"] = "\n".join(texts)
        for part in parts:
            if isinstance(part, ImagePart):
                if not part.image_url.url.startswith("data:"):
                    raise _refused(
                        f"messages.{i}.image_url", "no address is fetched", "send the picture as a data URI"
                    )
                latest["image"] = part.image_url.url
            elif isinstance(part, AudioPart):
                latest["speech"] = part.input_audio.data
    if not latest:
        raise _refused("messages", "the user said and showed nothing", "send a text, a picture or speech")
    return latest.get("text"), [Input.model_validate({name: one}) for name, one in latest.items()]


def _sampling(request: ChatRequest) -> Sampling:
    stop = [request.stop] if isinstance(request.stop, str) else request.stop or []
    return Sampling(
        max_tokens=request.max_completion_tokens or request.max_tokens,
        temperature=request.temperature or 0.0,
        top_p=request.top_p or 1.0,
        seed=request.seed or 0,
        stop=tuple(one for one in stop if one),
        top=(request.top_logprobs or 0) if request.logprobs else 0,
    )


async def _events(
    first: Piece | Answered,
    rest: AsyncGenerator[Piece | Answered],
    head: dict[str, Any],
    request: ChatRequest,
    prompt: int,
) -> AsyncGenerator[str]:
    """Server-sent events, one for each token that has a text, and one for the end."""

    def event(choices: list[dict[str, Any]], **fields: object) -> str:
        body = {**head, "object": "chat.completion.chunk", "choices": choices, **fields}
        return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"

    def choice(delta: dict[str, Any], told: Sequence[Piece], end: str | None) -> dict[str, Any]:
        shown = _log_probs(told) if request.logprobs and told else None
        return {"index": 0, "delta": delta, "logprobs": shown, "finish_reason": end}

    yield event([choice({"role": "assistant", "content": ""}, (), None)])
    count, is_first = 0, True
    piece: Piece | Answered = first
    async with aclosing(rest):  # whoever asked may be gone
        while isinstance(piece, Piece):
            count += 1
            text = piece.text.lstrip() if is_first else piece.text
            is_first = is_first and not text
            if text or request.logprobs:
                yield event([choice({"content": text}, (piece,), None)])
            if piece.end is not None:
                yield event([choice({}, (), piece.end)])
            piece = await anext(rest)
    if request.stream_options is not None and request.stream_options.include_usage:
        yield event([], usage=_usage(prompt, count))
    yield "data: [DONE]\n\n"


def _log_probs(pieces: Sequence[Piece]) -> dict[str, Any]:
    content = [
        {
            "token": piece.text,
            "logprob": piece.log_prob,
            "bytes": list(piece.text.encode()),
            "top_logprobs": [
                {"token": text, "logprob": log_prob, "bytes": list(text.encode())}
                for text, log_prob in piece.likeliest
            ],
        }
        for piece in pieces
    ]
    return {"content": content, "refusal": None}


def _usage(prompt: int, completion: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def _base64(vector: np.ndarray[Any, Any]) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def _verbose(told: Transcript, language: str | None) -> dict[str, Any]:
    segments = [
        {"id": i, "seek": 0, "start": one.start_s, "end": one.end_s, "text": one.text}
        for i, one in enumerate(told.segments)
    ]
    return {
        "task": "transcribe",
        "language": language or "",
        "duration": told.segments[-1].end_s if told.segments else 0.0,
        "text": told.text,
        "segments": segments,
    }


def _srt(segments: Sequence[Segment]) -> str:
    return "\n".join(
        f"{i}\n{_clock(one.start_s, ',')} --> {_clock(one.end_s, ',')}\n{one.text}\n"
        for i, one in enumerate(segments, 1)
    )


def _vtt(segments: Sequence[Segment]) -> str:
    cues = (f"{_clock(one.start_s, '.')} --> {_clock(one.end_s, '.')}\n{one.text}\n" for one in segments)
    return "\n".join(("WEBVTT\n", *cues))


def _clock(seconds: float, point: str) -> str:
    minutes, milliseconds = divmod(round(seconds * 1000), 60_000)
    whole = f"{minutes // 60:02}:{minutes % 60:02}:{milliseconds // 1000:02}"
    return f"{whole}{point}{milliseconds % 1000:03}"
