"""JSON Schema of a workflow file, so that editors complete and check it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .loading import NAME, TITLE
from .stage import StageKind


def schema(kinds: Mapping[str, StageKind]) -> dict[str, Any]:
    """The schema (draft 2020-12) of a workflow of these kinds."""
    from pydantic.json_schema import models_json_schema

    models = [(kind.spec, "validation") for kind in kinds.values()]
    references, definitions = models_json_schema(models, ref_template="#/$defs/{model}")  # pyright: ignore[reportArgumentType]
    options: list[dict[str, Any]] = []
    for (model, _), kind in zip(models, kinds.values(), strict=True):
        reference = references[model, "validation"]
        body = definitions["$defs"][reference["$ref"].rpartition("/")[2]]
        body["required"] = sorted({*body.get("required", []), "kind", *(["inputs"] if kind.takes else [])})
        body["properties"]["kind"] = {"const": kind.name}
        body["properties"]["inputs"] = {
            "type": "object",
            "description": "Input name → the stage whose output it is.",
            "properties": {
                name: {"type": "string", "description": f"A stage that gives a {artifact.__name__}."}
                for name, artifact in kind.inputs.items()
            },
            "required": sorted(kind.takes),
            "additionalProperties": False,
        }
        body["description"] = kind.summary
        options.append({"$ref": reference["$ref"]})
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Eagleray workflow",
        "type": "object",
        "additionalProperties": False,
        "required": ["version", "name", "stages"],
        "properties": {
            "version": {"const": 1, "description": "Version of this format."},
            "name": {
                "type": "string",
                "minLength": 1,
                "maxLength": 200,
                "pattern": TITLE,
                "description": "Name of the workflow.",
            },
            "stages": {
                "type": "object",
                "minProperties": 1,
                "description": "Stage name → its spec.",
                "propertyNames": {"pattern": f"^{NAME.pattern}$"},
                "additionalProperties": {"oneOf": options, "discriminator": {"propertyName": "kind"}},
            },
        },
        "$defs": definitions["$defs"],
    }
