"""Refusals as HTTP responses, in the shape that the clients of each interface expect."""

from __future__ import annotations

from dataclasses import replace
from http import HTTPStatus
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from .messages import Problem, Refusal, refusal

OPENAI = ("/v1/chat/", "/v1/embeddings", "/v1/audio/", "/v1/models", "/v1/moderations")
"""Beginnings of the paths whose clients expect OpenAI's shape."""
BLOCKED = "blocked-content"
"""Code of what moderation refuses. Its status is 400, as it is where others serve OpenAI's API: 403 tells
clients to send other credentials, and 422 that the request is malformed."""
_OPENAI_CODES = {BLOCKED: "content_filter"}
INFERENCE = "/v2"
"""Beginning of those of the Open Inference Protocol."""
REFUSAL_HEADER = "x-eagleray-refusal"
"""The code of a refusal, which not every interface's shape has room for."""
_T = TypeVar("_T")
_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class OpenAIError(BaseModel):
    """What OpenAI's clients read of an error."""

    message: str
    type: str
    param: str | None
    code: str


class OpenAIProblem(BaseModel):
    """An error as OpenAI's API has it."""

    error: OpenAIError


class InferenceProblem(BaseModel):
    """An error as the Open Inference Protocol has it."""

    error: str


class RefusedError(Exception):
    """Ends a request with a refusal."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.problem.message)
        self.refusal = refusal


def accept(answer: _T | Refusal, where: str = "") -> _T:
    """The answer, if it is one; else end the request, saying where in it the problem is."""
    if isinstance(answer, Refusal):
        problem = answer.problem
        named = problem.model_copy(update={"message": where + problem.message})
        raise RefusedError(replace(answer, problem=named))
    return answer


def respond(refusal: Refusal, path: str) -> JSONResponse:
    """A refusal as a response to a request of `path`."""
    headers = {REFUSAL_HEADER: refusal.problem.code}
    if refusal.retry_after_s is not None:
        headers["retry-after"] = str(refusal.retry_after_s)
    if refusal.status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(_shaped(refusal, path), refusal.status, headers)


def add_handlers(api: FastAPI) -> None:
    """Let whatever ends a request have the one shape."""
    api.add_exception_handler(RefusedError, _refused)
    api.add_exception_handler(RequestValidationError, _invalid)
    api.add_exception_handler(HTTPException, _http_error)


def path_of(scope: Any) -> str:  # noqa: ANN401 - ASGI's
    """The path below where the application stands."""
    return str(scope["path"]).removeprefix(scope.get("root_path", ""))


def _shaped(refusal: Refusal, path: str) -> dict[str, Any]:
    problem = refusal.problem
    whole = f"{problem.message} ({problem.remedy})" if problem.remedy else problem.message
    if path.startswith(OPENAI):
        kind = _KINDS.get(
            refusal.status, "server_error" if refusal.status >= 500 else "invalid_request_error"
        )
        code = _OPENAI_CODES.get(problem.code, problem.code)
        error = OpenAIError(message=whole, type=kind, param=None, code=code)
        return OpenAIProblem(error=error).model_dump()
    if path.startswith(INFERENCE):
        return InferenceProblem(error=whole).model_dump()
    return problem.model_dump()


async def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RefusedError)
    return respond(error.refusal, path_of(request.scope))


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return respond(invalid(error.errors()), path_of(request.scope))


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "-")
    refused = refusal(error.status_code, code, str(error.detail), "see /docs for what is served")
    return respond(refused, path_of(request.scope))


def invalid(problems: Any) -> Refusal:  # noqa: ANN401 - pydantic's
    """A request that can't be read, by pydantic's list of what is wrong with it."""
    if problems[0]["type"] == "json_invalid":
        reason = problems[0].get("ctx", {}).get("error", problems[0]["msg"])
        return refusal(400, "invalid-json", f"the body is no JSON: {reason}", "send a JSON object")
    lines: list[str] = []
    for one in problems:
        place = ".".join(str(part) for part in one["loc"][1:])
        lines.append(": ".join(filter(None, (place, one["msg"].removeprefix("Value error, ")))))
    return refusal(422, "invalid-request", "; ".join(lines), "see /docs for the request's shape")


def described(shape: type[BaseModel] = Problem) -> dict[int | str, dict[str, Any]]:
    """The errors of a route, for the OpenAPI pages."""
    statuses = (400, 401, 403, 404, 408, 413, 415, 422, 429, 500, 503, 504)
    return {status: {"model": shape, "description": HTTPStatus(status).phrase} for status in statuses}
