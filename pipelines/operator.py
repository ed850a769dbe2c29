"""What an operator on records is. Its modules lie in `operators/`; `catalog` finds them.

Most operators look at one record at a time, within the task that read it. Some must know all of them, to
find duplicates say: these leave a small column of their own and `decide` once every record has one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..workflows.errors import EaglerayError
from ..workflows.spec import Spec
from .packages import Package, fetch_package
from .quarantine import Refuse
from .source import Row
from .spec import Preparation

if TYPE_CHECKING:
    import pyarrow as pa

FILES = ("picture", "recordings")
"""Columns of encoded files, as a source gives them."""
Apply = Callable[[Row, Refuse], Row | list[Row] | None]
"""Gets a record and gives the columns it sets; a list of such for several records made of one; None for no
change. Raises `Refused` to leave the record out."""


class OperatorSpec(Spec):
    """Base of every operator's spec."""

    kind: str


@dataclass(frozen=True)
class LeftOut:
    """A record that `decide` leaves out.

    Attributes:
        position: of the record in the table.
        reason: the code it is counted under.
        message: one sentence for people.
    """

    position: int
    reason: str
    message: str


@dataclass(frozen=True)
class Operator:
    """A registered operator; a module in `operators/` declares one or more.

    Attributes:
        spec: the operator's spec model; the default of its `kind` names it.
        summary: one line.
        needs: spec → columns it reads.
        gives: spec → columns of `contracts.COLUMNS` that it sets.
        own: spec → columns that it declares itself, by alias of their Arrow type; they stay in the corpus.
        start: `(spec, preparation)` → what is called for every record; called once in each task.
        asks_model: `start` is given the folder of the stage's input `bundle` as well.
        package: `start` is given the folder of this package as well, which is fetched.
        decide: `(spec, table)` → the records left out, from the table of all records that are left: `id`,
            `split`, `group` and its own columns, in the corpus's order.
        consumes: columns that no record has after it.
        splits: it makes several records of one. What decides stands after it, for its column would be the
            same in all of them; and after it the source's files are no longer those of a record.
    """

    spec: type[OperatorSpec]
    summary: str
    needs: Callable[[Any], tuple[str, ...]]
    start: Callable[..., Apply]
    gives: Callable[[Any], tuple[str, ...]] = lambda spec: ()
    own: Callable[[Any], Mapping[str, str]] = lambda spec: {}
    decide: Callable[[Any, pa.Table], Iterable[LeftOut]] | None = None
    consumes: tuple[str, ...] = ()
    splits: bool = False
    asks_model: bool = False
    package: Package | None = None

    @property
    def name(self) -> str:
        """The operator's kind."""
        return self.spec.model_fields["kind"].default

    @property
    def module(self) -> str:
        """The module that declares it."""
        return self.spec.__module__

    def begin(
        self, spec: OperatorSpec, preparation: Preparation, bundle: Path | None, cache: Path | None = None
    ) -> Apply:
        """What is called for every record of a task; `cache` is where packages lie."""
        if self.package is not None:
            assert cache is not None
            return self.start(spec, preparation, fetch_package(self.package, cache, lambda message: None))
        return self.start(spec, preparation, bundle) if self.asks_model else self.start(spec, preparation)


def check_chain(
    given: Sequence[str], chain: Sequence[tuple[Operator, OperatorSpec]], source: str
) -> tuple[str, ...]:
    """Check that every operator finds the columns it needs; returns the columns there are in the end.

    Args:
        given: columns that the source gives.
        chain: operators in order.
        source: the source's kind, for the message.

    Raises:
        EaglerayError: for the first that lacks one, with what would give it.
    """
    there = dict.fromkeys(("id", *given))
    for number, (operator, spec) in enumerate(chain):
        missing = [name for name in operator.needs(spec) if name not in there]
        if missing:
            after = chain[number + 1 :]
            later = [
                one.name
                for one, own in after
                if missing[0] in (*one.gives(own), *one.own(own)) and missing[0] not in one.needs(own)
            ]
            remedy = f"put {later[0]} before it" if later else "leave it out, or take another source"
            raise EaglerayError(
                f"operator {operator.name} needs {' and '.join(missing)}, which no record has there: "
                f"{source} and what comes before give {', '.join(there)}",
                remedy,
                "operators",
            )
        again = [name for name in operator.own(spec) if name in there]
        if again:
            raise EaglerayError(
                f"operator {operator.name} stands twice with the same options: both set {again[0]}",
                "leave one of them out",
                "operators",
            )
        there |= dict.fromkeys((*operator.gives(spec), *operator.own(spec)))
        if operator.splits:
            too_early = [one.name for one, _ in chain[:number] if one.decide is not None]
            if too_early:
                raise EaglerayError(
                    f"operator {operator.name} makes several records of one that {too_early[0]} looked at",
                    f"put {too_early[0]} after it",
                    "operators",
                )
            there = {name: None for name in there if name not in FILES}
        there = {name: None for name in there if name not in operator.consumes}
    return tuple(there)
