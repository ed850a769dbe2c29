"""`/v1/moderations` as OpenAI's API has it (platform.openai.com/docs/api-reference/moderations).

Its categories are all answered, and `category_applied_input_types` says which of them anything here looks at:
`harassment` is how offensive a text is, `sexual` how pornographic a picture. Ours stand beside them.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from ..messages import Input, Judged, Judgement, Verdict, refusal
from ..model import Model
from ..problems import OpenAIProblem, RefusedError, described
from .policy import ORDER

NAMES = (
    *("harassment", "harassment/threatening", "hate", "hate/threatening", "illicit", "illicit/violent"),
    *("self-harm", "self-harm/instructions", "self-harm/intent", "sexual", "sexual/minors"),
    *("violence", "violence/graphic"),
)
"""OpenAI's categories."""
THEIRS: Mapping[tuple[Judged, str], str] = {
    ("text", "offensive"): "harassment",
    ("image", "sexual"): "sexual",
}
"""What of ours is one of OpenAI's."""


class _Sent(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class SentText(_Sent):
    """A text."""

    type: Literal["text"]
    text: str = Field(min_length=1)


class SentURL(_Sent):
    """A picture as a data URI."""

    url: str = Field(min_length=1)


class SentPicture(_Sent):
    """A picture."""

    type: Literal["image_url"]
    image_url: SentURL


Part = Annotated[SentText | SentPicture, Field(discriminator="type")]


class ModerationsRequest(_Sent):
    """Texts, each judged by itself, or a text and a picture, judged together."""

    input: (
        Annotated[str, Field(min_length=1)]
        | Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]
        | Annotated[list[Part], Field(min_length=1)]
    )
    model: str | None = None
    """Says nothing: there is one."""


def router(model: Model) -> APIRouter:
    """The route.

    Args:
        model: what judges.
    """
    routes = APIRouter(prefix="/v1", tags=["openai"], responses=described(OpenAIProblem))

    @routes.post("/moderations")
    async def moderations(request: ModerationsRequest) -> dict[str, Any]:
        """Judge texts, or a text with a picture."""
        given = _read(request)
        model.bound(sum(map(len, given)))
        results = [_result(await model.moderate(inputs)) for inputs in given]
        return {
            "id": f"modr-{uuid.uuid4().hex}",
            "model": model.health.application,
            "results": results,
        }

    return routes


def _read(request: ModerationsRequest) -> list[list[Input]]:
    """What is judged together, for each result."""
    if isinstance(request.input, str):
        return [[Input(text=request.input, image=None, speech=None)]]
    texts: list[str] = []
    pictures: list[str] = []
    alone: list[list[Input]] = []
    for one in request.input:
        if isinstance(one, str):
            alone.append([Input(text=one, image=None, speech=None)])
        elif isinstance(one, SentText):
            texts.append(one.text)
        elif one.image_url.url.startswith("data:"):
            pictures.append(one.image_url.url)
        else:
            raise _unsupported("no address is fetched", "send the picture as a data URI")
    if alone:
        return alone
    if len(pictures) > 1:
        raise _unsupported(
            f"{len(pictures)} pictures are given", "send one, with the texts that belong to it"
        )
    inputs = [Input(text=None, image=one, speech=None) for one in pictures]
    if texts:
        inputs.append(Input(text="\n".join(texts), image=None, speech=None))
    return [inputs]


def _result(found: Verdict) -> dict[str, Any]:
    scores = dict.fromkeys(NAMES, 0.0)
    actions: dict[str, bool] = dict.fromkeys(NAMES, False)
    applied: dict[str, list[str]] = {name: [] for name in NAMES}

    def add(name: str, one: Judgement) -> None:
        scores[name] = max(scores.get(name, 0.0), one.score)
        actions[name] = actions.get(name, False) or ORDER[one.action] > ORDER["allow"]
        kinds = ["image", "text"] if one.of == "pair" else [one.of]
        applied[name] = sorted({*applied.get(name, ()), *kinds})

    for one in found.judgements:
        for name in dict.fromkeys((THEIRS.get((one.of, one.category), one.category), one.category)):
            add(name, one)
    return {
        "flagged": found.action != "allow",
        "categories": actions,
        "category_scores": scores,
        "category_applied_input_types": applied,
    }


def _unsupported(message: str, remedy: str) -> RefusedError:
    return RefusedError(refusal(400, "unsupported", f"input: {message}", remedy))
