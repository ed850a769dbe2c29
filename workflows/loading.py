"""Reading a workflow file: every problem is found before anything starts, each with its place."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from .errors import EaglerayError
from .graph import find_cycle
from .spec import StageSpec
from .stage import StageKind

Path_ = tuple[str | int, ...]
TOP_LEVEL = ("version", "name", "stages")
NAME = re.compile(r"[a-z][a-z0-9_-]*")
REFERENCE = re.compile(r"\$\{env:([A-Za-z_][A-Za-z0-9_]*)\}")


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


class SpecError(EaglerayError):
    """All problems of a workflow file, one line each."""

    def __init__(self, problems: Sequence[str], filename: str) -> None:
        many = f"{len(problems)} problems" if len(problems) > 1 else "a problem"
        super().__init__(f"{many} in {filename}:\n" + "\n".join(f"  {p}" for p in problems))
        self.problems = tuple(problems)
        self.filename = filename

    def __reduce__(self) -> tuple[type[SpecError], tuple[tuple[str, ...], str]]:
        """Pickle by what it was made from."""
        return SpecError, (self.problems, self.filename)


class _Header(BaseModel):
    model_config = ConfigDict(extra="ignore")

    version: Literal[1]
    name: str


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
    except (OSError, UnicodeDecodeError) as error:
        raise EaglerayError(f"the file can't be read: {error}", where=str(path)) from None
    return parse_workflow(text, str(path), overrides, kinds, environment)


def parse_workflow(
    text: str,
    filename: str,
    overrides: Sequence[str],
    kinds: Mapping[str, StageKind],
    environment: Mapping[str, str],
) -> Workflow:
    """Check a workflow's text; see `load_workflow`."""
    document = _Document(text, filename)
    document.override(overrides)
    if not document.problems:
        document.check_header()
    stages = document.check_stages(kinds)
    if not document.problems:
        document.check_inputs(stages, kinds)
    secrets = document.check_references(environment)
    if document.problems:
        raise SpecError(document.problems, filename)
    return Workflow(str(document.data["name"]), stages, text, filename, tuple(overrides), secrets)


def nearest(name: str, valid: Sequence[str]) -> str:
    """A hint at the valid name that is nearest, or at all of them."""
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"valid here: {', '.join(sorted(valid))}" if valid else "nothing is valid here"


class _Document:
    """A YAML document with the places of its parts, and the problems found so far."""

    def __init__(self, text: str, filename: str) -> None:
        self.filename = filename
        self.problems: list[str] = []
        self.data: Any = {}
        self._places: dict[Path_, str] = {}
        try:
            node = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark
            place = f"{filename}:{mark.line + 1}:{mark.column + 1}" if mark else filename
            self.problems.append(f"{place}: not YAML: {error.problem or error}")
            return
        if not isinstance(node, yaml.MappingNode):
            self.problems.append(f"{filename}:1:1: expected a mapping with the keys {', '.join(TOP_LEVEL)}")
            return
        self.data = self._build(node, ())

    def place(self, path: Path_) -> str:
        """Where the deepest part of `path` that exists stands."""
        while path and path not in self._places:
            path = path[:-1]
        return self._places.get(path, f"{self.filename}:1:1")

    def problem(self, path: Path_, message: str) -> None:
        dotted = ".".join(str(part) for part in path)
        self.problems.append(f"{self.place(path)}: {dotted}: {message}")

    def override(self, overrides: Sequence[str]) -> None:
        stages = self.data.get("stages") if isinstance(self.data, dict) else None
        for text in overrides:
            target, sign, value = text.partition("=")
            path = tuple(target.split("."))
            where = f"--set {text}"
            if not sign or len(path) < 2:
                self.problems.append(f"{where}: expected STAGE.FIELD=VALUE")
                continue
            if not isinstance(stages, dict) or path[0] not in stages:
                known = list(stages) if isinstance(stages, dict) else []
                self.problems.append(f"{where}: no stage {path[0]!r}; {nearest(path[0], known)}")
                continue
            try:
                parsed = yaml.safe_load(value)
            except yaml.YAMLError:
                parsed = value
            parent: Any = self.data["stages"]
            for part in path[:-1]:
                if not isinstance(parent.get(part), dict):
                    parent[part] = {}
                parent = parent[part]
            parent[path[-1]] = parsed
            for depth in range(2, len(path) + 1):  # the whole way, unless the file has it
                if depth == len(path) or ("stages", *path[:depth]) not in self._places:
                    self._places["stages", *path[:depth]] = where

    def check_header(self) -> None:
        for key in self.data:
            if key not in TOP_LEVEL:
                self.problem((str(key),), f"unknown key; {nearest(str(key), TOP_LEVEL)}")
        try:
            _Header.model_validate(self.data)
        except ValidationError as error:
            for item in error.errors():
                self.problem(tuple(item["loc"]), _explain(item, _Header))

    def check_stages(self, kinds: Mapping[str, StageKind]) -> dict[str, StageSpec]:
        stages = self.data.get("stages") if isinstance(self.data, dict) else None
        if not isinstance(stages, dict) or not stages:
            if not self.problems or isinstance(self.data, dict):
                self.problem(("stages",), "expected a mapping of at least one stage: name → its spec")
            return {}
        specs: dict[str, StageSpec] = {}
        for name, raw in stages.items():
            path = ("stages", name)
            if not isinstance(name, str) or not NAME.fullmatch(name):
                self.problem(path, "a stage's name is lower-case letters, digits, - and _, a letter first")
            elif not isinstance(raw, dict):
                self.problem(path, "expected a mapping with `kind` and the fields of that kind")
            elif "kind" not in raw:
                self.problem(path, f"has no `kind`; valid kinds: {', '.join(sorted(kinds))}")
            elif raw["kind"] not in kinds:
                hint = nearest(str(raw["kind"]), list(kinds))
                self.problem((*path, "kind"), f"unknown kind {raw['kind']!r}; {hint}")
            else:
                model = kinds[raw["kind"]].spec
                try:
                    specs[name] = model.model_validate(raw)
                except ValidationError as error:
                    for item in error.errors():
                        location = _without_tags(tuple(item["loc"]), raw)
                        self.problem((*path, *location), _explain(item, model))
        return specs

    def check_inputs(self, stages: Mapping[str, StageSpec], kinds: Mapping[str, StageKind]) -> None:
        for name, spec in stages.items():
            path, takes = ("stages", name), kinds[spec.kind].takes
            for key, source in spec.inputs.items():
                where = (*path, "inputs", key)
                if key not in takes:
                    self.problem(where, f"`{spec.kind}` takes no such input; {nearest(key, list(takes))}")
                elif source not in stages:
                    self.problem(where, f"there is no stage {source!r}; {nearest(source, list(stages))}")
                else:
                    given, wanted = kinds[stages[source].kind].gives, takes[key]
                    if not issubclass(given, wanted):
                        fitting = [s for s, other in stages.items() if kinds[other.kind].gives is wanted]
                        hint = f"stages that give one: {', '.join(fitting)}" if fitting else "no stage does"
                        message = f"expected a {wanted.__name__}, but {source!r} gives a {given.__name__}"
                        self.problem(where, f"{message}; {hint}")
            for key in takes:
                if key not in spec.inputs:
                    fitting = [s for s, other in stages.items() if kinds[other.kind].gives is takes[key]]
                    hint = f"add `inputs: {{{key}: {fitting[0]}}}`" if fitting else "no stage gives one"
                    self.problem(path, f"input {key!r} (a {takes[key].__name__}) is missing; {hint}")
        cycle = find_cycle(stages)
        if cycle:
            self.problem(("stages", cycle[0], "inputs"), f"a cycle: {' → '.join(cycle)}")

    def check_references(self, environment: Mapping[str, str]) -> dict[str, str]:
        found: dict[str, str] = {}
        for path, text in _strings(self.data, ()):
            for name in REFERENCE.findall(text):
                if name in environment:
                    found[name] = environment[name]
                else:
                    self.problem(path, f"the environment has no variable {name}; set it before the run")
        return found

    def _build(self, node: yaml.Node, path: Path_) -> Any:  # noqa: ANN401 - any YAML value
        mark = node.start_mark
        self._places.setdefault(path, f"{self.filename}:{mark.line + 1}:{mark.column + 1}")
        if isinstance(node, yaml.MappingNode):
            built: dict[Any, Any] = {}
            for key_node, value_node in node.value:
                key = self._build_scalar(key_node)
                mark = key_node.start_mark
                self._places[*path, key] = f"{self.filename}:{mark.line + 1}:{mark.column + 1}"
                if key in built:
                    self.problem((*path, key), "stands here a second time")
                built[key] = self._build(value_node, (*path, key))
            return built
        if isinstance(node, yaml.SequenceNode):
            return [self._build(item, (*path, i)) for i, item in enumerate(node.value)]
        return self._build_scalar(node)

    @staticmethod
    def _build_scalar(node: yaml.Node) -> Any:  # noqa: ANN401 - any YAML value
        loader = yaml.SafeLoader("")
        try:
            return loader.construct_object(node, deep=True)
        finally:
            loader.dispose()


def _explain(item: Any, model: type[BaseModel]) -> str:  # noqa: ANN401 - pydantic's ErrorDetails
    """A pydantic error in words: what was expected, what was given, the nearest valid name."""
    kind, given = item["type"], item.get("input")
    if kind == "extra_forbidden":
        return f"unknown key; {nearest(str(item['loc'][-1]), _fields_at(model, tuple(item['loc'][:-1])))}"
    if kind == "missing":
        return "is required"
    if kind in ("literal_error", "union_tag_invalid"):
        expected = str(item.get("ctx", {}).get("expected") or item.get("ctx", {}).get("expected_tags", ""))
        names = re.findall(r"'([^']*)'", expected)
        tag = item.get("ctx", {}).get("tag", given)
        return f"unknown value {tag!r}; {nearest(str(tag), names)}" if names else f"expected {expected}"
    message = str(item["msg"]).removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    shown = repr(given) if isinstance(given, str | int | float | bool | None) else ""
    return f"{message}, got {shown}" if shown else message


def _fields_at(model: type[BaseModel], location: Path_) -> list[str]:
    """Field names of the model that stands at a location inside `model`."""
    for part in location:
        options = (
            [m for m in _models(model.model_fields[str(part)].annotation)]
            if part in model.model_fields
            else []
        )
        tagged = [m for m in options if "kind" in m.model_fields and m.model_fields["kind"].default == part]
        if part in model.model_fields and options:
            following = location[location.index(part) + 1 :]
            tags = {m.model_fields["kind"].default: m for m in options if "kind" in m.model_fields}
            model = tags.get(following[0], options[0]) if following else options[0]
        elif tagged:
            model = tagged[0]
    return list(model.model_fields)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:  # noqa: ANN401 - any annotation
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


def _without_tags(location: Path_, raw: Any) -> Path_:  # noqa: ANN401 - any YAML value
    """Drop the parts of an error's location that name a member of a union, not a key."""
    kept: list[str | int] = []
    for place, part in enumerate(location):
        last = place == len(location) - 1
        if isinstance(raw, dict):
            if part in raw or last:
                kept.append(part)
                raw = raw.get(part)
        elif isinstance(raw, list) and isinstance(part, int) and part < len(raw):
            kept.append(part)
            raw = raw[part]
    return tuple(kept)


def _strings(value: Any, path: Path_) -> Iterator[tuple[Path_, str]]:  # noqa: ANN401 - any YAML value
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _strings(item, (*path, key))
    elif isinstance(value, list):
        for place, item in enumerate(value):
            yield from _strings(item, (*path, place))
