"""Reading a workflow file: every problem is found before anything starts, each with its place."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .artifacts import Artifact
from .document import Document, Location, SpecError, nearest
from .errors import EaglerayError
from .graph import find_cycle
from .spec import StageSpec
from .stage import StageKind

NAME = re.compile(r"[a-z][a-z0-9_-]{0,99}")
TITLE = r"^[^\x00-\x1f\x7f]+$"  # one line
REFERENCE = re.compile(r"\$\{env:([A-Za-z_][A-Za-z0-9_]*)\}")
SHOWN_CHARACTERS = 60
Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class Workflow:
    """A workflow whose every field was checked.

    Attributes:
        name: of the workflow.
        stages: name → spec, in the order of the file. Secrets are still references.
        text: the file as read, so that a run can be resumed without it.
        filename: where it was read from.
        overrides: `--set` values.
        secrets: environment variables that the spec refers to, with their values; never shown.
    """

    name: str
    stages: Mapping[str, StageSpec]
    text: str
    filename: str
    overrides: tuple[str, ...]
    secrets: Mapping[str, str] = field(repr=False, default_factory=dict)


class _TopLevel(BaseModel):
    model_config = ConfigDict(extra="forbid")

    version: Literal[1]
    name: str = Field(min_length=1, max_length=200, pattern=TITLE)
    stages: dict[str, Any] = Field(min_length=1)


def load_workflow(
    path: Path, overrides: Sequence[str], kinds: Mapping[str, StageKind], environment: Mapping[str, str]
) -> Workflow:
    """Read and check a workflow file.

    Args:
        path: the YAML file.
        overrides: `stage.field=value` each.
        kinds: the stage kinds there are.
        environment: where `${env:NAME}` is looked up.

    Raises:
        SpecError: with all problems at once.
        EaglerayError: when the file can't be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], 1)
        remedy = f"did you mean {path.parent / near[0]}?" if near else "name a workflow's YAML file"
        raise EaglerayError("there is no such file", remedy, str(path)) from None
    except (OSError, ValueError) as error:
        raise EaglerayError(f"the file can't be read: {error}", where=str(path)) from None
    filename = os.fsencode(path).decode(errors="backslashreplace")
    return parse_workflow(text, filename, overrides, kinds, environment)


def parse_workflow(
    text: str,
    filename: str,
    overrides: Sequence[str],
    kinds: Mapping[str, StageKind],
    environment: Mapping[str, str],
) -> Workflow:
    """Check a workflow's text; see `load_workflow`."""
    document = Document(text, filename)
    for override in overrides:
        _override(document, override)
    _validate(document, (), _TopLevel)
    specs = _check_stages(document, kinds) if isinstance(document.data.get("stages"), dict) else {}
    secrets = _look_up(document, environment)
    if document.problems:
        raise SpecError(document.problems, filename)
    return Workflow(document.data["name"], specs, text, filename, tuple(overrides), secrets)


def _override(document: Document, override: str) -> None:
    target, sign, value = override.partition("=")
    stage, *field_path = target.split(".")
    where = f"--set {override}".encode(errors="backslashreplace").decode()
    stages = document.data.get("stages")
    known = list(stages) if isinstance(stages, dict) else []
    if where != f"--set {override}":
        document.problems.append(f"{where}: is not UTF-8 text")
    elif not sign or not field_path or not all(field_path):
        document.problems.append(f"{where}: expected STAGE.FIELD=VALUE")
    elif stage not in known:
        document.problems.append(f"{where}: there is no stage {stage!r}; {nearest(stage, known)}")
    else:
        document.override(("stages", stage, *field_path), value, where)


def _check_stages(document: Document, kinds: Mapping[str, StageKind]) -> dict[str, StageSpec]:
    stages: dict[str, Any] = document.data["stages"]
    known: dict[str, StageKind] = {}
    specs: dict[str, StageSpec] = {}
    for name, raw in stages.items():
        location = ("stages", name)
        if not NAME.fullmatch(name):
            document.problem(location, "a stage's name is a letter, then at most 99 of a-z, 0-9, - and _")
        if not isinstance(raw, dict):
            document.problem(location, "expected a mapping with `kind` and the fields of that kind")
        elif "kind" not in raw:
            document.problem(location, f"has no `kind`; {nearest('', list(kinds))}")
        elif not isinstance(raw["kind"], str) or raw["kind"] not in kinds:
            hint = nearest(str(raw["kind"]), list(kinds))
            document.problem((*location, "kind"), f"unknown kind {raw['kind']!r}; {hint}")
        else:
            known[name] = kinds[raw["kind"]]
            spec = _validate(document, location, known[name].spec)
            if spec is not None:
                specs[name] = spec
    reads = {name: _references(stages[name]) for name in known}
    for name, sources in reads.items():
        _check_inputs(document, name, sources, known)
    inside = {
        name: [source for key, source in sources.items() if key in known[name].inputs and source in known]
        for name, sources in reads.items()
    }
    if cycle := find_cycle(inside):
        document.problem(("stages", cycle[0], "inputs"), f"a cycle: {' reads '.join(cycle)}")
    return specs


def _references(raw: dict[str, Any]) -> dict[str, str]:
    """A stage's inputs, as far as they have the right type."""
    inputs = raw.get("inputs")
    items: list[tuple[str, Any]] = list(inputs.items()) if isinstance(inputs, dict) else []
    return {key: source for key, source in items if isinstance(source, str)}


def _check_inputs(
    document: Document, name: str, sources: Mapping[str, str], known: Mapping[str, StageKind]
) -> None:
    kind = known[name]
    stages: dict[str, Any] = document.data["stages"]
    for key, source in sources.items():
        location = ("stages", name, "inputs", key)
        if key not in kind.inputs:
            document.problem(
                location, f"`{kind.name}` takes no such input; {nearest(key, list(kind.inputs))}"
            )
        elif source not in stages:
            document.problem(location, f"there is no stage {source!r}; {nearest(source, list(stages))}")
        elif source in known and not issubclass(known[source].gives, kind.inputs[key]):
            gives, wanted = known[source].gives, kind.inputs[key]
            message = f"expected a {wanted.__name__}, but {source!r} gives a {gives.__name__}"
            fitting = ", ".join(_givers(wanted, known))
            document.problem(location, f"{message}; stages that give one: {fitting or 'none'}")
    given = stages[name].get("inputs", {})
    for key, wanted in kind.takes.items():
        if isinstance(given, dict) and key not in given:
            fitting = _givers(wanted, known)
            hint = f"add `inputs: {{{key}: {fitting[0]}}}`" if fitting else "no stage gives one"
            document.problem(("stages", name), f"input {key!r} (a {wanted.__name__}) is missing; {hint}")


def _givers(wanted: type[Artifact], known: Mapping[str, StageKind]) -> list[str]:
    return [name for name, kind in known.items() if issubclass(kind.gives, wanted)]


def _look_up(document: Document, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that the document refers to, with their values."""
    found: dict[str, str] = {}
    for location, text in _texts(document.data, ()):
        names = REFERENCE.findall(text)
        if len(names) != text.count("${"):
            document.problem(location, f"expected ${{env:NAME}} in {_show(text)}")
        for name in names:
            if name in environment:
                found[name] = environment[name]
            else:
                document.problem(location, f"the environment has no variable {name}; set it before the run")
    return found


def _texts(value: Any, location: Location) -> Iterator[tuple[Location, str]]:  # noqa: ANN401 - any YAML value
    if isinstance(value, str):
        yield location, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _texts(item, (*location, key))
    elif isinstance(value, list):
        for place, item in enumerate(value):
            yield from _texts(item, (*location, place))


def _validate(document: Document, location: Location, model: type[Model]) -> Model | None:
    """What stands at a location, as a model; None if that has problems.

    A text isn't taken for a number, nor a number for a boolean. Pydantic's strict mode would also refuse
    a list for a tuple wherever a validator ran before, so only what it says about scalars is heeded.
    """
    raw = document.data
    for part in location:
        raw = raw[part]
    found: dict[tuple[int | str, ...], Any] = {}
    spec = None
    try:
        spec = model.model_validate(raw)
    except ValidationError as error:
        found |= {item["loc"]: item for item in error.errors()}
    except Exception as error:  # a validator's own mistake must not hide the other problems
        document.problem(location, f"can't be checked: {type(error).__name__}: {error}")
        return None
    try:
        model.model_validate_json(json.dumps(raw), strict=True)
    except ValidationError as error:
        scalars = ("int_type", "float_type", "bool_type")
        found |= {item["loc"]: item for item in error.errors() if item["type"] in scalars}
    for item in found.values():
        path = _without_tags(item, raw)
        document.problem((*location, *path), _explain(item, _names(model, raw, path[:-1])))
    return None if found else spec


def _explain(item: Any, valid: Sequence[str]) -> str:  # noqa: ANN401 - pydantic's ErrorDetails
    """A pydantic error in words: what was expected, what was given, the nearest valid name."""
    kind, given, context = item["type"], item.get("input"), item.get("ctx", {})
    if kind == "extra_forbidden":
        return f"unknown key; {nearest(str(item['loc'][-1]), valid)}"
    if kind == "missing":
        return "is required"
    if kind in ("literal_error", "union_tag_invalid"):
        expected = str(context.get("expected") or context.get("expected_tags"))
        tag = context.get("tag", given)
        valid = [one.strip("'") for one in re.split(", | or ", expected)]
        return f"unknown value {_show(tag)}; {nearest(str(tag), valid)}"
    message = str(item["msg"]).removeprefix("Value error, ").removeprefix("Input ")
    shown = f", got {_show(given)}" if isinstance(given, str | int | float | None) else ""
    return message[:1].lower() + message[1:] + shown


def _show(value: Any) -> str:  # noqa: ANN401 - any YAML value
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…"


def _without_tags(item: Any, raw: Any) -> Location:  # noqa: ANN401 - pydantic's ErrorDetails, any YAML value
    """Where an error is, without the parts of pydantic's location that name a member of a union."""
    kept: list[str | int] = []
    for part in item["loc"]:
        known = raw if isinstance(raw, dict) else range(len(raw)) if isinstance(raw, list) else ()
        if part in known:
            kept.append(part)
            raw = raw[part]
    return (*kept, item["loc"][-1]) if item["type"] == "missing" else tuple(kept)


def _names(annotation: Any, raw: Any, path: Location) -> list[str]:  # noqa: ANN401 - any annotation, any value
    """Field names of the models that an annotation allows for what stands at a path in `raw`."""
    kind = raw.get("kind") if isinstance(raw, dict) else None
    models = [m for m in _models(annotation) if "kind" not in m.model_fields or _kind(m) in (kind, None)]
    models = models or list(_models(annotation))
    if not path:
        return list(dict.fromkeys(name for model in models for name in model.model_fields))
    fields = [model.model_fields[path[0]] for model in models if path[0] in model.model_fields]
    inner = [field.annotation for field in fields] or [annotation]  # else an item of a list or mapping
    return [name for one in inner for name in _names(one, raw[path[0]], path[1:])]


def _kind(model: type[BaseModel]) -> Any:  # noqa: ANN401 - any default
    return model.model_fields["kind"].get_default()


def _models(annotation: Any) -> Iterator[type[BaseModel]]:  # noqa: ANN401 - any annotation
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)
