"""What a run looks like in the terminal: a live table, or plain lines where no one watches."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .workflows.fingerprint import is_runtime
from .workflows.plan import Plan
from .workflows.runs import Event, RunStatus, StageStatus

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


def print_table(console: Console, rows: Sequence[Mapping[str, Any]], as_json: bool, empty: str) -> None:
    """Print rows as a table, or as a JSON list; `empty` is said when there are none."""
    if as_json:
        console.print_json(json.dumps(list(rows), default=str))
        return
    if not rows:
        console.print(empty)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in rows[0]:
        table.add_column(name.replace("_", " "))
    for row in rows:
        table.add_row(*(_cell(name, value) for name, value in row.items()))
    console.print(table)


def _cell(name: str, value: Any) -> Text:  # noqa: ANN401 - any JSON value
    text = "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
    return Text(text, style=COLOURS.get(text.lower(), "") if name == "state" else "")


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
    """Where a run's stages stand, as rows for `print_table`."""
    rows: list[dict[str, Any]] = []
    for name, stage in status.stages.items():
        ended_s = stage.ended_s or time.time()
        rows.append(
            {
                "stage": name,
                "kind": stage.kind,
                "state": stage.state.value,
                "attempt": stage.attempt or None,
                "took": seconds(ended_s - stage.started_s) if stage.started_s else None,
                "progress": _progress(stage.progress) if stage.progress else None,
                "reason": stage.reason,
            }
        )
    return rows


def field_rows(model: type[BaseModel], prefix: str = "") -> list[dict[str, Any]]:
    """A spec's fields with types, defaults and help, nested ones by dotted path."""
    rows: list[dict[str, Any]] = []
    for name, field in model.model_fields.items():
        if name in ("kind", "inputs"):
            continue
        path = f"{prefix}{name}"
        nested = field.annotation if isinstance(field.annotation, type) else None
        if nested is not None and issubclass(nested, BaseModel):
            rows += field_rows(nested, f"{path}.")
            continue
        default = "required" if field.is_required() else field.get_default(call_default_factory=True)
        changes = "how it runs" if is_runtime(field) else "what is made"
        rows.append(
            {
                "field": path,
                "default": str(default),
                "decides": changes,
                "help": (field.description or "").replace("\n", " "),
            }
        )
    return rows


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
    parts += [f"{name} {metrics[name]:.4g}" for name in ("loss", "samples_per_s") if name in metrics]
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
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("stage", "state", "time", "", "progress"):
            table.add_column(column)
        for name, stage in self._status.stages.items():
            state, done = stage.state.value, stage.progress
            took = seconds((stage.ended_s or time.time()) - stage.started_s) if stage.started_s else ""
            bar = ProgressBar(total=done["total"], completed=done["step"], width=24) if done else ""
            detail = _progress(done) if done else stage.reason
            table.add_row(name, Text(state, style=COLOURS.get(state, "dim")), took, bar, detail)
        return table
