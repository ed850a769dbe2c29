"""What a run looks like in the terminal: a live table, or plain lines where no one watches."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

COLOURS = {
    "hit": "cyan",
    "running": "yellow",
    "retrying": "yellow",
    "succeeded": "green",
    "failed": "red",
    "blocked": "red",
    "cancelled": "red",
    "interrupted": "red",
    "timed-out": "red",
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


class RunView:
    """Shows a run's events as they come; use as a context manager.

    Args:
        console: where to.
        stages: names, in order.
    """

    def __init__(self, console: Console, stages: Iterable[str]) -> None:
        self._console = console
        self._rows: dict[str, dict[str, Any]] = {name: {"state": "waiting"} for name in stages}
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
        row = self._rows.setdefault(stage, {"state": "waiting"})
        if event == "progress":
            row.update(fields)
            self._line(stage, self._progress(row), every_s=LINE_EVERY_S)
        elif event == "log":
            self._console.print(Text.assemble((f"{stage:>10} ", "dim"), str(fields.get("message", ""))))
        elif event == "state":
            row["state"] = fields["state"]
            row.setdefault("since", time.monotonic())
            if fields["state"] in ("running", "succeeded", "failed", "hit"):
                row["ended" if fields["state"] != "running" else "since"] = time.monotonic()
            self._line(stage, " ".join(x for x in (fields["state"], str(fields.get("reason") or "")) if x))

    def _line(self, stage: str, text: str, every_s: float = 0.0) -> None:
        if self._console.is_terminal or time.monotonic() - self._said.get(stage, -every_s) < every_s:
            return
        if every_s:
            self._said[stage] = time.monotonic()
        self._console.print(Text.assemble((f"{stage:>10} ", "dim"), text))

    @staticmethod
    def _progress(row: Mapping[str, Any]) -> str:
        metrics = dict(row.get("metrics") or {})
        left_s = metrics.pop("left_s", None)
        parts = [f"{row.get('step')}/{row.get('total')}"]
        parts += [f"{name} {metrics[name]:.4g}" for name in ("loss", "samples_per_s") if name in metrics]
        if left_s:
            parts.append(f"{seconds(left_s)} left")
        return "  ".join(parts)

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("stage", "state", "time", "progress", ""):
            table.add_column(column)
        for name, row in self._rows.items():
            state = str(row["state"])
            since = row.get("since")
            took = "" if since is None else seconds(row.get("ended", time.monotonic()) - since)
            bar = ProgressBar(total=row["total"], completed=row["step"], width=24) if row.get("total") else ""
            detail = self._progress(row) if row.get("total") else ""
            table.add_row(name, Text(state, style=COLOURS.get(state, "dim")), took, bar, detail)
        return table
