"""A YAML file as plain values, each with its place, so that an error can name file, line and column.

Only PyYAML's parser is used. Its types are those of YAML 1.1, where `1e-3` is text, `no` (Norwegian,
say) is false and a date is an object; here scalars mean what YAML 1.2's core schema says, as in editors.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import yaml

from .errors import EaglerayError

Location = tuple[str | int, ...]
MAX_DEPTH = 64
MAX_VALUES = 100_000
MAX_DIGITS = 1000  # of a whole number; Python writes at most 4,300 decimal ones
_BOOLEANS = {"true": True, "false": False}


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


class Document:
    """A mapping read from YAML, the places of its parts, and the problems found so far.

    Attributes:
        data: mappings with text as keys, lists, text, numbers, booleans and None.
        problems: one line each, place first.

    Raises:
        SpecError: when the text is not a YAML mapping.
    """

    def __init__(self, text: str, filename: str) -> None:
        self.filename = filename
        self.problems: list[str] = []
        self._places: dict[Location, str] = {}
        try:
            self.data: Any = self._read(text, ())
        except yaml.YAMLError as error:
            raise SpecError([self._explain(text, error)], filename) from None
        if not isinstance(self.data, dict):
            raise SpecError([f"{filename}:1:1: expected a mapping, as in `version: 1`"], filename)

    def problem(self, location: Location, message: str) -> None:
        """Note a problem with what stands, or should stand, at a location."""
        dotted = ".".join(str(part) for part in location)
        standing = location
        while standing and standing not in self._places:
            standing = standing[:-1]
        line = f"{self._places[standing]}: {dotted}: {message}"
        if line not in self.problems:
            self.problems.append(line)

    def override(self, location: Location, text: str, where: str) -> None:
        """Put a value, as YAML, at a location; mappings on the way are made when they are missing."""
        parent: Any = self.data
        for depth, part in enumerate(location[:-1], start=1):
            parent = parent.setdefault(part, {})
            self._places.setdefault(location[:depth], where)
            if not isinstance(parent, dict):
                dotted = ".".join(str(part) for part in location[:depth])
                self.problems.append(f"{where}: {dotted}: is not a mapping, so nothing can be set in it")
                return
        self._places = {k: v for k, v in self._places.items() if k[: len(location)] != location}
        try:
            parent[location[-1]] = self._read(text, location, where)
        except yaml.YAMLError:  # a text such as `@daily` needs no quotes here
            parent[location[-1]] = text
        self._places[location] = where

    def _read(self, text: str, location: Location, where: str = "") -> Any:  # noqa: ANN401 - any YAML value
        try:
            node: yaml.Node | None = yaml.compose(text, Loader=_CoreLoader)
            self._count = 0
            return None if node is None else self._build(node, location, (), where)
        except RecursionError:
            raise yaml.YAMLError("is nested too deeply") from None
        except (ValueError, OverflowError) as error:  # PyYAML on "\UFFFFFFFF"
            raise yaml.YAMLError(str(error)) from None

    def _build(self, node: yaml.Node, location: Location, parents: tuple[yaml.Node, ...], where: str) -> Any:  # noqa: ANN401
        self._count += 1
        if node in parents:
            raise _error(node, "an alias stands inside the value that it names")
        if len(parents) > MAX_DEPTH or self._count > MAX_VALUES:  # a few aliases can stand for billions
            raise _error(node, f"more than {MAX_VALUES:,} values or {MAX_DEPTH} levels")
        self._places.setdefault(location, self._place(node, where))
        inside = (*parents, node)
        if isinstance(node, yaml.MappingNode) and node.tag == _tag("map"):
            built: dict[str, Any] = {}
            for key_node, value_node in node.value:
                key = self._key(key_node)
                self._places[*location, key] = self._place(key_node, where)
                if key in built:
                    self.problem((*location, key), "stands here a second time")
                built[key] = self._build(value_node, (*location, key), inside, where)
            return built
        if isinstance(node, yaml.SequenceNode) and node.tag == _tag("seq"):
            return [self._build(item, (*location, i), inside, where) for i, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode) and node.tag in _SCALARS:
            return _scalar(node)
        raise _error(node, f"the tag {node.tag!r} is not supported")

    @staticmethod
    def _key(node: yaml.Node) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise _error(node, "a key must be text")
        if node.value == "<<":
            raise _error(node, "merge keys (<<) are not supported; write the fields out")
        return _text(node)

    def _place(self, node: yaml.Node, where: str) -> str:
        return where or f"{self.filename}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"

    def _explain(self, text: str, error: yaml.YAMLError) -> str:
        line = column = 1
        problem = str(error)
        if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
            line, column = error.problem_mark.line + 1, error.problem_mark.column + 1
            problem = error.problem or problem
        elif isinstance(error, yaml.reader.ReaderError):
            before = text[: error.position]
            line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
            problem = f"the character {error.character:#06x} is not allowed"
        return f"{self.filename}:{line}:{column}: not YAML that can be read: {problem}"


def nearest(name: str, valid: Sequence[str]) -> str:
    """A hint at the valid name that is nearest, or at all of them."""
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"valid here: {', '.join(sorted(valid))}" if valid else "nothing is valid here"


class _CoreLoader(yaml.SafeLoader):
    """Resolves plain scalars as YAML 1.2's core schema (yaml.org/spec/1.2.2, section 10.3.2)."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 - as PyYAML declares it


def _tag(name: str) -> str:
    return f"tag:yaml.org,2002:{name}"


def _int(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(text)
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


_SCALARS: dict[str, Callable[[str], Any]] = {
    _tag("null"): lambda text: None,
    _tag("bool"): lambda text: _BOOLEANS[text.lower()],
    _tag("int"): _int,
    _tag("float"): _float,
    _tag("str"): str,
}
for _name, _pattern in (
    ("null", r"|~|null|Null|NULL"),
    ("bool", r"true|True|TRUE|false|False|FALSE"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"),
):
    _CoreLoader.add_implicit_resolver(_tag(_name), re.compile(rf"({_pattern})\Z"), None)


def _scalar(node: yaml.ScalarNode) -> Any:  # noqa: ANN401 - any scalar
    """Its value; what no finite number can hold stays text, for the models to refuse."""
    try:
        return _SCALARS[node.tag](_text(node))
    except (ValueError, KeyError):
        return node.value


def _text(node: yaml.ScalarNode) -> str:
    try:
        node.value.encode()
    except UnicodeEncodeError:  # "\ud800" is half a character
        raise _error(node, "half a character: use \\U and eight digits") from None
    return node.value


def _error(node: yaml.Node, message: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=message, problem_mark=node.start_mark)
