"""The Open Inference Protocol, version 2 (KServe's, Triton's), over HTTP, with tensors as JSON or as bytes.

There is a model for each thing that is done: `embed`, `search`, `answer`, `transcribe`, `classify`. All
tensors have an axis of rows, and embeddings, weights and probabilities a second one. A picture or a recording
is the bytes of its file; as JSON, base64 of them. Categories are those of `/healthz`, in that order.
"""

from __future__ import annotations

import base64
import json
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter, Request, Response
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from . import deadlines
from .guard import check_nesting
from .messages import AnswerRequest, Input, refusal
from .model import Model
from .problems import InferenceProblem, RefusedError, described, invalid
from .spec import LimitsSpec

PREFIX = "/v2"
LENGTH_HEADER = "inference-header-content-length"
TYPES: Mapping[str, str] = {"FP32": "<f4", "INT64": "<i8"}
"""Numbers that are given, and how they lie in bytes."""
FIELDS: Mapping[str, Literal["text", "image", "speech"]] = {
    "TEXT": "text",
    "QUESTION": "text",
    "IMAGE": "image",
    "SPEECH": "speech",
}
"""Input → the modality that it is of."""


class _Sent(BaseModel):
    """Base of what is read; what it doesn't know is an extension's."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class SentTensor(_Sent):
    """An input."""

    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] = Field(default_factory=dict[str, Any])
    data: list[Any] | None = None


class WantedTensor(_Sent):
    """An output that is asked for."""

    name: str
    parameters: dict[str, Any] = Field(default_factory=dict[str, Any])


class InferRequest(_Sent):
    """A request's JSON part."""

    id: str | None = None
    inputs: list[SentTensor] = Field(min_length=1)
    outputs: list[WantedTensor] | None = None
    parameters: dict[str, Any] = Field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Task:
    """One of the models.

    Attributes:
        inputs: names of its tensors; of some only one may be given.
        outputs: name → datatype and shape.
    """

    inputs: tuple[str, ...]
    outputs: Mapping[str, tuple[str, tuple[int, ...]]]


Rows = Sequence[Mapping[str, bytes]]
Outputs = Mapping[str, NDArray[Any] | Sequence[bytes]]


def tasks(model: Model) -> dict[str, Task]:
    """What a model does, by name."""
    texts, numbers = ("BYTES", (-1,)), ("FP32", (-1,))
    given = ("TEXT", "IMAGE", "SPEECH")
    found: dict[str, Task] = {}
    if model.health.embeds:
        found["embed"] = Task(given, {"EMBEDDING": ("FP32", (-1, model.health.embed_dim))})
        found["search"] = Task(given, {"ID": texts, "CAPTION": texts, "SCORE": numbers})
    if model.health.answers:
        asked = ("QUESTION", "IMAGE", "SPEECH") if model.health.asks else ("IMAGE", "SPEECH")
        found["answer"] = Task(asked, {"ANSWER": texts, "WEIGHTS": ("FP32", (-1, 3))})
    if model.health.transcribes:
        found["transcribe"] = Task(("SPEECH",), {"TEXT": texts})
    if model.health.classes:
        likely = ("FP32", (-1, len(model.health.classes)))
        found["classify"] = Task(("IMAGE",), {"CATEGORY": texts, "PROBABILITY": likely})
    return found


def router(model: Model) -> APIRouter:
    """The routes.

    Args:
        model: what answers.
    """
    routes = APIRouter(prefix=PREFIX, tags=["inference"], responses=described(InferenceProblem))
    known, version = tasks(model), model.health.bundle[:12]

    def check(name: str, asked: str | None) -> Task:
        if name not in known:
            raise _refused(404, f"no model {name!r} is served", f"there are {', '.join(known)}")
        if asked not in (None, version):
            raise _refused(404, f"version {asked!r} of {name} is not served", f"there is {version}")
        return known[name]

    @routes.get("")
    async def server() -> dict[str, Any]:
        """Say what answers."""
        return {"name": model.health.application, "version": version, "extensions": ["binary_tensor_data"]}

    @routes.get("/health/live")
    async def live() -> dict[str, bool]:
        """Say that the server is up."""
        return {"live": True}

    @routes.get("/health/ready")
    async def ready() -> dict[str, bool]:
        """Say that it can be asked."""
        return {"ready": True}

    @routes.get("/models/{name}")
    @routes.get("/models/{name}/versions/{asked}")
    async def metadata(name: str, asked: str | None = None) -> dict[str, Any]:
        """Describe a model's tensors."""
        task = check(name, asked)
        return {
            "name": name,
            "versions": [version],
            "platform": "onnxruntime",
            "inputs": [{"name": one, "datatype": "BYTES", "shape": [-1]} for one in task.inputs],
            "outputs": [
                {"name": one, "datatype": kind, "shape": list(shape)}
                for one, (kind, shape) in task.outputs.items()
            ],
        }

    @routes.get("/models/{name}/ready")
    @routes.get("/models/{name}/versions/{asked}/ready")
    async def model_ready(name: str, asked: str | None = None) -> dict[str, Any]:
        """Say that a model can be asked."""
        check(name, asked)
        return {"name": name, "ready": True}

    @routes.post("/models/{name}/infer")
    @routes.post("/models/{name}/versions/{asked}/infer")
    async def infer(name: str, request: Request, asked: str | None = None) -> Response:
        """Ask a model."""
        task = check(name, asked)
        sent, rows = read(await request.body(), request.headers.get(LENGTH_HEADER), task, model.limits)
        timeout = sent.parameters.get("timeout")  # an extension of Triton's
        if isinstance(timeout, int) and timeout > 0:
            deadlines.tighten(timeout / 1e6)
        model.bound(len(rows))
        return write(sent, name, version, await _run(model, name, rows), task)

    return routes


def read(body: bytes, header_length: str | None, task: Task, limits: LimitsSpec) -> tuple[InferRequest, Rows]:
    """A request, and its rows: input → bytes.

    Args:
        body: JSON, and after it the bytes of tensors that have `binary_data_size`.
        header_length: bytes of the JSON, where others follow.
        task: what is asked.
        limits: of the JSON.
    """
    length = len(body)
    if header_length is not None:
        if not re.fullmatch(r"[0-9]{1,12}", header_length) or int(header_length) > len(body):
            raise _refused(400, f"{LENGTH_HEADER} is {header_length!r}, of a body of {len(body)} bytes")
        length = int(header_length)
    too_deep = check_nesting(body[:length], limits)
    if too_deep is not None:
        raise RefusedError(too_deep)
    try:
        sent = InferRequest.model_validate_json(body[:length])
    except ValidationError as error:
        found = error.errors()
        raise RefusedError(invalid([{**one, "loc": ("body", *one["loc"])} for one in found])) from None
    place, columns = length, dict[str, list[bytes]]()
    for tensor in sent.inputs:
        if tensor.name not in task.inputs:
            raise _refused(400, f"there is no input {tensor.name!r}", f"give {', '.join(task.inputs)}")
        if tensor.datatype != "BYTES":
            raise _refused(400, f"{tensor.name} is {tensor.datatype}, not BYTES")
        size = tensor.parameters.get("binary_data_size")
        if size is None:
            values = _from_json(tensor)
        else:
            if not isinstance(size, int) or not 0 <= size <= len(body) - place:
                raise _refused(400, f"{tensor.name} has {len(body) - place} bytes, not {size}")
            values, place = unpack(tensor.name, body[place : place + size]), place + size
        if tensor.shape not in ([len(values)], [len(values), 1]):
            raise _refused(400, f"{tensor.name} has {len(values)} values, and the shape {tensor.shape}")
        columns[tensor.name] = values
    counts = {len(values) for values in columns.values()}
    if len(counts) != 1:
        raise _refused(400, "the inputs have different numbers of rows")
    if not any(counts):
        raise _refused(400, "the inputs have no rows", "give at least one value")
    return sent, [{name: values[i] for name, values in columns.items()} for i in range(counts.pop())]


def write(sent: InferRequest, name: str, version: str, outputs: Outputs, task: Task) -> Response:
    """The response: each output as JSON, or as bytes where that is asked for."""
    everything = sent.parameters.get("binary_data_output", False)
    wanted = (
        {one: everything for one in outputs}
        if sent.outputs is None
        else {one.name: one.parameters.get("binary_data", everything) for one in sent.outputs}
    )
    tensors: list[dict[str, Any]] = []
    chunks: list[bytes] = []
    for one, is_binary in wanted.items():
        if one not in outputs:
            raise _refused(400, f"there is no output {one!r}", f"there are {', '.join(outputs)}")
        values, kind = outputs[one], task.outputs[one][0]
        shape = list(values.shape) if isinstance(values, np.ndarray) else [len(values)]
        tensor: dict[str, Any] = {"name": one, "datatype": kind, "shape": shape}
        if is_binary:
            chunk = values.astype(TYPES[kind]).tobytes() if isinstance(values, np.ndarray) else pack(values)
            tensor["parameters"] = {"binary_data_size": len(chunk)}
            chunks.append(chunk)
        else:
            told = values.ravel().tolist() if isinstance(values, np.ndarray) else [v.decode() for v in values]
            tensor["data"] = told
        tensors.append(tensor)
    head = {"model_name": name, "model_version": version, "outputs": tensors}
    if sent.id is not None:
        head["id"] = sent.id
    content = json.dumps(head, ensure_ascii=False).encode()
    if not chunks:
        return Response(content, media_type="application/json")
    headers = {LENGTH_HEADER: str(len(content))}
    return Response(content + b"".join(chunks), media_type="application/octet-stream", headers=headers)


def pack(values: Iterable[bytes]) -> bytes:
    """A `BYTES` tensor's values, each after its length."""
    return b"".join(struct.pack("<I", len(value)) + value for value in values)


def unpack(name: str, data: bytes) -> list[bytes]:
    """The values of a `BYTES` tensor, of which each has its length before it."""
    found: list[bytes] = []
    place = 0
    while place < len(data):
        if place + 4 > len(data):
            raise _refused(400, f"{name} ends within a length")
        (size,) = struct.unpack_from("<I", data, place)
        place += 4
        if place + size > len(data):
            raise _refused(400, f"{name} ends within a value of {size} bytes")
        found.append(data[place : place + size])
        place += size
    return found


async def _run(model: Model, name: str, rows: Rows) -> Outputs:
    if name == "embed":
        return {"EMBEDDING": np.stack(await model.embed([_single(row) for row in rows]))}
    if name == "search":
        if len(rows) != 1:
            raise _refused(400, f"{len(rows)} rows are searched for", "search for one at a time")
        hits = await model.search(_single(rows[0]), 10)
        return {
            "ID": [hit.id.encode() for hit in hits],
            "CAPTION": [hit.caption.encode() for hit in hits],
            "SCORE": np.array([hit.score for hit in hits], np.float32),
        }
    if name == "classify":
        likely = np.stack([await model.classify(_single(row)) for row in rows])
        best = [model.health.classes[one].encode() for one in likely.argmax(axis=1).tolist()]
        return {"CATEGORY": best, "PROBABILITY": likely}
    if name == "transcribe":
        return {"TEXT": [(await model.transcribe(row["SPEECH"])).text.encode() for row in rows]}
    answers: list[bytes] = []
    weights: list[list[float]] = []
    for row in rows:
        given = {field: _shown(field, row[field]) for field in row}
        found = await model.answer(
            AnswerRequest.model_validate({field.lower(): value for field, value in given.items()})
        )
        answers.append(found.answer.encode())
        weights.append(list(found.weights.values()))
    return {"ANSWER": answers, "WEIGHTS": np.array(weights, np.float32)}


def _single(row: Mapping[str, bytes]) -> Input:
    if len(row) != 1:
        raise _refused(400, f"{' and '.join(row)} are given", "give one of them")
    ((name, value),) = row.items()
    return Input.model_validate({FIELDS[name]: _shown(name, value)})


def _shown(name: str, value: bytes) -> str:
    """A value as the messages have it."""
    if not value:
        raise _refused(400, f"{name} is empty")
    if FIELDS[name] != "text":
        return base64.b64encode(value).decode()
    try:
        text = value.decode()
    except UnicodeDecodeError as error:
        raise _refused(400, f"{name} is not UTF-8: {error}") from None
    return text


def _from_json(tensor: SentTensor) -> list[bytes]:
    values: list[Any] = tensor.data if tensor.data is not None else []
    while values and all(isinstance(one, list) for one in values):  # nested as the shape is
        values = [one for inner in values for one in inner]
    found: list[bytes] = []
    for value in values:
        if not isinstance(value, str):
            raise _refused(400, f"{tensor.name} holds {value!r}, which is no text")
        if FIELDS[tensor.name] == "text":
            found.append(value.encode("utf-8", "surrogatepass"))
            continue
        try:
            found.append(base64.b64decode(value, validate=True))
        except ValueError as error:
            raise _refused(400, f"{tensor.name} is no base64: {error}") from None
    return found


def _refused(status: int, message: str, remedy: str = "") -> RefusedError:
    code = "model-not-found" if status == 404 else "invalid-request"
    return RefusedError(refusal(status, code, message, remedy))
