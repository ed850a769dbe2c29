"""Identity of what a stage would make: a sha256 over everything that decides it, and nothing else."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from enum import Enum
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from .stage import StageKind

FORMAT = 1


def is_runtime(field: FieldInfo) -> bool:
    """Whether a field was declared with `Runtime`."""
    extra = field.json_schema_extra
    return isinstance(extra, dict) and bool(extra.get("runtime"))


def identity(model: BaseModel) -> dict[str, Any]:
    """The part of a spec that is hashed: its fields but for `Runtime` ones, at every depth.

    Raises:
        TypeError: for a value that has no canonical encoding.
    """
    return {
        name: _encode(getattr(model, name), name)
        for name, field in type(model).model_fields.items()
        if not is_runtime(field)
    }


def fingerprint(
    kind: StageKind, spec: BaseModel, inputs: Mapping[str, str], outside: str | None = None
) -> str:
    """Hash what decides a stage's result.

    Args:
        kind: the stage kind.
        spec: its spec; secrets in it are references.
        inputs: input name → fingerprint.
        outside: digest of data that enters from outside.
    """
    spec_identity = {name: value for name, value in identity(spec).items() if name not in ("kind", "inputs")}
    return digest_of(
        {
            "format": FORMAT,
            "kind": kind.name,
            "spec": spec_identity,
            "inputs": dict(inputs),
            "outside": outside,
        }
    )


def digest_of(value: Any) -> str:  # noqa: ANN401 - any canonical value
    """sha256, hex, of a value's canonical JSON."""
    return hashlib.sha256(_canonical(value).encode()).hexdigest()


def changes(old: Any, new: Any, path: str = "") -> list[str]:  # noqa: ANN401 - any canonical value
    """Where two encoded values differ, one phrase each: `steps: 300 → 200`."""
    if isinstance(old, dict) and isinstance(new, dict):
        found: list[str] = []
        for key in sorted({*old, *new}):
            where = f"{path}.{key}" if path else str(key)
            if key not in old:
                found.append(f"{where}: nothing → {_short(new[key])}")
            elif key not in new:
                found.append(f"{where}: {_short(old[key])} → nothing")
            else:
                found += changes(old[key], new[key], where)
        return found
    return [] if _canonical(old) == _canonical(new) else [f"{path}: {_short(old)} → {_short(new)}"]


def _encode(value: Any, where: str) -> Any:  # noqa: ANN401 - any field value
    if isinstance(value, BaseModel):
        return identity(value)
    if isinstance(value, Enum):
        return _encode(value.value, where)
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise TypeError(f"{where}: {value} has no canonical encoding")
        return int(value) if value.is_integer() else value
    if isinstance(value, list | tuple):
        return [_encode(item, where) for item in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _encode(item, f"{where}.{key}") for key, item in value.items()}
    raise TypeError(f"{where}: a {type(value).__name__} has no canonical encoding")


def _canonical(value: Any) -> str:  # noqa: ANN401 - any canonical value
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _short(value: Any) -> str:  # noqa: ANN401 - any canonical value
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "…"
