"""FiQA 2018, task 1: headlines and posts with the sentiment about a company (Maia et al. 2018)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from ..files import Files
from ..quarantine import Refusal, Refuse, Refused
from ..source import Row, Source, SourceSpec, Unit
from ..spec import Preparation


class FiqaSpec(SourceSpec):
    """FiQA's sentiment task, in a folder of your own: its files can't be had from a package."""

    kind: Literal["fiqa"] = "fiqa"
    neutral: float = Field(default=0.0, ge=0, lt=1)
    """Greatest size of a score, from -1 to 1, that is neutral."""


def list_units(spec: FiqaSpec, files: Files) -> Iterator[Unit | Refusal]:
    """One unit for each JSON file, such as `task1_headline_ABSA_train.json`."""
    for path in files.entries:
        if path.endswith(".json"):
            yield Unit(path, (path,))


def read(spec: FiqaSpec, files: Files, unit: Unit, preparation: Preparation, refuse: Refuse) -> Iterator[Row]:
    """A record for each company that a text is about; a company stands in one split only."""
    (path,) = unit.files
    try:
        texts = json.loads(files.read(path))
        items = list(texts.items())
    except (ValueError, AttributeError) as error:
        raise Refused("not-fiqa", f"it is no JSON object of texts: {error}") from error
    for name, one in items:
        for number, about in enumerate(_abouts(one)):
            try:
                score = float(about["sentiment_score"])
                target, text = str(about["target"]).strip(), str(one["sentence"]).strip()
            except (KeyError, TypeError, ValueError) as error:
                message = f"it lacks a sentence, target or sentiment_score: {error!r}"
                refuse(Refused("bad-record", message), f"{path}#{name}", whole=True)
                continue
            category = "neutral" if abs(score) <= spec.neutral else "positive" if score > 0 else "negative"
            yield {
                "id": f"{path}#{name}-{number}",
                "group": target.casefold(),
                "category": category,
                "text": text,
                "language": "en",
            }


def _abouts(one: Any) -> list[Any]:  # noqa: ANN401 - whatever the file has
    found = one.get("info") if isinstance(one, dict) else None
    return found if isinstance(found, list) else [None]


SOURCE = Source(
    spec=FiqaSpec,
    summary="FiQA's sentiment task: headlines and posts about companies",
    columns=lambda spec: ("category", "text", "language"),
    list_units=list_units,
    read=read,
    licence="for research, by the task's organisers",
)
