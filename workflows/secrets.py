"""Values that a spec refers to as `${env:NAME}`: put in where they are used, blotted out elsewhere."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, TypeVar
from urllib.parse import quote

from .loading import REFERENCE
from .spec import StageSpec

SpecT = TypeVar("SpecT", bound=StageSpec)


def resolve(spec: SpecT, secrets: Mapping[str, str]) -> SpecT:
    """The spec with every `${env:NAME}` replaced by its value."""
    if not secrets:
        return spec

    def replace(value: Any) -> Any:  # noqa: ANN401 - any JSON value
        if isinstance(value, str):
            return REFERENCE.sub(lambda match: secrets[match[1]], value)
        if isinstance(value, dict):
            return {key: replace(item) for key, item in value.items()}
        return [replace(item) for item in value] if isinstance(value, list | tuple) else value

    return type(spec).model_validate(replace(spec.model_dump()))


def redact(value: Any, secrets: Mapping[str, str]) -> Any:  # noqa: ANN401 - any JSON value
    """The value with every secret's value replaced by its reference."""
    forms = secret_forms(secrets)
    if not forms:
        return value
    pattern = re.compile("|".join(map(re.escape, forms)))

    def blot(value: Any) -> Any:  # noqa: ANN401 - any JSON value
        if isinstance(value, str):
            return pattern.sub(lambda match: f"${{env:{forms[match[0]]}}}", value)
        if isinstance(value, Mapping):
            return {blot(key): blot(item) for key, item in value.items()}
        return [blot(item) for item in value] if isinstance(value, list | tuple) else value

    return blot(value)


def secret_forms(secrets: Mapping[str, str]) -> dict[str, str]:
    """What a secret looks like in text, JSON, messages and addresses → its variable; longest first."""
    found: dict[str, str] = {}
    for name, secret in secrets.items():
        escaped = json.dumps(secret), json.dumps(secret, ensure_ascii=False), repr(secret)
        for form in (
            secret,
            *(text[1:-1] for text in escaped),
            quote(secret, safe="", errors="surrogateescape"),
        ):
            if form:
                found[form] = name
    return dict(sorted(found.items(), key=lambda item: -len(item[0])))
