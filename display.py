"""What a run looks like in the terminal: a live table, or plain lines where no one watches."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .workflows.events import Event, RunStatus, StageStatus
from .workflows.fingerprint import is_runtime
from .workflows.plan import Plan
from .workflows.state import State

COLOURS = {
    "hit": "cyan",
    "running": "yellow",
    "retrying": "yellow",
    "succeeded": "green",
    "failed": "red",
    "blocked": "red",
    "cancelled": "red",
    "interrupted": "red",
}
LINE_EVERY_S = 10.0
BAR_FROM_WIDTH = 100


def print_table(console: Console, rows: Sequence[Mapping[str, Any]], as_json: bool, empty: str) -> None:
    """Print rows as a table, or as a JSON list; `empty` is said when there are none."""
    if as_json:
        console.print(json.dumps(list(rows), default=str, indent=2, ensure_ascii=False))
        return
    if not rows:
        console.print(empty)
        return
    table = new_table()
    shown = [name for name in rows[0] if any(row[name] not in (None, "") for row in rows)]
    for name in shown:
        table.add_column(name.replace("_", " "))
    for row in rows:
        table.add_row(*(_cell(name, row[name]) for name in shown))
    console.print(table)


def new_table() -> Table:
    """A table without lines."""
    return Table(box=None, pad_edge=False, header_style="bold")


def _cell(name: str, value: Any) -> Text:  # noqa: ANN401 - any JSON value
    text = "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
    return Text(text, style=COLOURS.get(text.lower(), "") if name in ("state", "decision") else "")


def moment(time_s: float) -> str:
    """A time for people: `2026-11-25 14:05`."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(time_s))


def seconds(value: float) -> str:
    """A duration for people: `8 s`, `3 min 05 s`, `1 h 02 min`."""
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def plan_rows(plan: Plan) -> list[dict[str, Any]]:
    """A plan as rows for `print_table`."""
    return [
        {
            "stage": stage.name,
            "kind": stage.kind.name,
            "decision": stage.decision.value,
            "cpus": stage.cpus,
            "fingerprint": stage.fingerprint[:12],
            "reason": stage.reason,
        }
        for stage in plan.stages
    ]


def status_rows(status: RunStatus) -> list[dict[str, Any]]:
    """Where a run's stages stand, as JSON."""
    return [
        {
            "stage": name,
            "kind": stage.kind,
            "state": stage.state.value,
            "attempt": stage.attempt,
            "took_s": _took_s(stage),
            "progress": stage.progress or None,
            "reason": stage.reason,
            "facts": stage.facts,
        }
        for name, stage in status.stages.items()
    ]


def status_table(status: RunStatus, width: int) -> Table:
    """Where a run's stages stand, for people, on so many columns."""
    table = new_table()
    for column in ("stage", "state", "took"):
        table.add_column(column, no_wrap=True)
    bars = width >= BAR_FROM_WIDTH
    if bars:
        table.add_column("", no_wrap=True)
    table.add_column("progress")
    for name, stage in status.stages.items():
        took_s, done = _took_s(stage), stage.progress
        cells: list[Text | ProgressBar] = [
            Text(name),
            Text(stage.state.value, style=COLOURS.get(stage.state.value, "dim")),
            Text("" if took_s is None else seconds(took_s)),
        ]
        if bars:
            bar = ProgressBar(total=done["total"], completed=done["step"], width=24) if done else Text("")
            cells.append(bar)
        parts = [f"attempt {stage.attempt}" if stage.attempt > 1 else "", _progress(done) if done else ""]
        table.add_row(*cells, Text("  ".join(part for part in (*parts, stage.reason) if part)))
    return table


def _took_s(stage: StageStatus) -> float | None:
    """Seconds its last attempt took, or takes; what was interrupted has no known end."""
    if stage.started_s is None or stage.state is State.INTERRUPTED:
        return None
    return (stage.ended_s or time.time()) - stage.started_s


def field_rows(
    model: type[BaseModel], prefix: str = "", runtime: bool = False, given: BaseModel | None = None
) -> list[dict[str, Any]]:
    """A spec's fields with defaults and help, nested ones by dotted path; `given` is what a default holds."""
    rows: list[dict[str, Any]] = []
    for name, field in model.model_fields.items():
        if name in ("kind", "inputs"):
            continue
        path = f"{prefix}{name}"
        default = "required" if field.is_required() else field.get_default(call_default_factory=True)
        if given is not None:
            default = getattr(given, name)
        nested = _nested(field.annotation)
        held = default if isinstance(default, BaseModel) else None
        is_how = runtime or is_runtime(field)
        below = [] if nested is None else field_rows(nested, f"{path}.", is_how, held)
        if nested is not None and default is not None:
            rows += below
            continue
        rows.append(
            {
                "field": path,
                "default": str(default),
                "decides": "how it runs" if is_how else "what is made",
                "help": (field.description or "").replace("\n", " "),
            }
        )
        rows += below
    return rows


def _nested(annotation: Any) -> type[BaseModel] | None:  # noqa: ANN401 - any type at all
    """The spec that a field holds, or may hold beside nothing; None if there is none, or several."""
    options = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    held = [one for one in options if one is not NoneType]
    only = held[0] if len(held) == 1 else None
    return only if isinstance(only, type) and issubclass(only, BaseModel) else None


def describe_event(event: str, fields: Mapping[str, Any]) -> str:
    """One line for one event of a run's log."""
    if event == "progress":
        return _progress(fields)
    if event == "log":
        return str(fields.get("message", ""))
    if event == "plan":
        return "begins"
    return " ".join(x for x in (str(fields.get("state", event)), str(fields.get("reason") or "")) if x)


def _progress(fields: Mapping[str, Any]) -> str:
    metrics = dict(fields.get("metrics") or {})
    left_s = metrics.pop("left_s", None)
    parts = [f"{fields.get('step')}/{fields.get('total')}"]
    parts += [f"{name} {metrics[name]:.4g}" for name in ("loss", "samples_per_s", "fill") if name in metrics]
    if left_s:
        parts.append(f"{seconds(left_s)} left")
    return "  ".join(parts)


class RunView:
    """Shows a run's events as they come; use as a context manager.

    Args:
        console: where to.
        stages: names, in order.
    """

    def __init__(self, console: Console, stages: Iterable[str]) -> None:
        self._console = console
        self._status = RunStatus(stages={name: StageStatus("") for name in stages})
        self._live = Live(console=console, refresh_per_second=4, get_renderable=self._table)
        self._said: dict[str, float] = {}

    def __enter__(self) -> RunView:
        """Start the live table, on a terminal."""
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the last table standing."""
        if self._console.is_terminal:
            self._live.stop()

    def show(self, stage: str | None, event: str, fields: Mapping[str, Any]) -> None:
        """Take in one event of the run's log."""
        if stage is None:
            return
        self._status.stages[stage].apply(Event(0, time.time(), stage, event, fields))
        if event == "log" or not self._console.is_terminal:  # a terminal has the table for the rest
            self._line(stage, event, fields)

    def _line(self, stage: str, event: str, fields: Mapping[str, Any]) -> None:
        now = time.monotonic()
        if event == "progress":
            if now - self._said.get(stage, -LINE_EVERY_S) < LINE_EVERY_S:
                return
            self._said[stage] = now
        self._console.print(Text.assemble((f"{stage:>10} ", "dim"), describe_event(event, fields)))

    def _table(self) -> Table:
        return status_table(self._status, self._console.width)
