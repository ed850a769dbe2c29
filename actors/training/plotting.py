"""What each layer computed in while a model was trained, as one page; nothing in it is run or loaded."""

from __future__ import annotations

from html import escape
from itertools import pairwise

from .precision import PrecisionState

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --line: #d8dee4; --paper: #ffffff;
  --bf16: #2f6fb3; --fp16: #b3712f; --fp32: #3f8f5f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9198a1; --line: #30363d;
  --paper: #0d1117; --bf16: #6cb0f5; --fp16: #f0a860; --fp32: #7fd39c; } }
body { margin: 0 auto; padding: 2rem 1.25rem; max-width: 68rem; color: var(--ink); background: var(--paper);
  font: 15px/1.55 system-ui, sans-serif; }
svg { width: 100%; height: auto; } text { fill: var(--ink); font-size: 11px; } .soft { color: var(--soft); }
.bf16 { fill: var(--bf16); } .fp16 { fill: var(--fp16); } .fp32 { fill: var(--fp32); }
line { stroke: var(--line); } i { display: inline-block; width: .8em; height: .8em; margin: 0 .3em 0 1em; }
table { border-collapse: collapse; } td, th { padding: .2rem .9rem .2rem 0; text-align: left; }
td { border-top: 1px solid var(--line); }
"""
NAMES, WIDTH, ROW = 190, 900, 16
FORMATS = ("bf16", "fp16", "fp32")


def precision_page(state: PrecisionState, steps: int) -> str:
    """A page with a line for each layer, its number formats by step, and a table of what changed and why.

    Args:
        state: at the end of a training.
        steps: that it took.
    """
    legend = "".join(f'<i style="background: var(--{name})"></i>{name}' for name in FORMATS)
    rows = "".join(
        f"<tr><td>{change.step}</td><td>{escape(change.layer)}</td><td>{change.before} → {change.after}</td>"
        f"<td>{escape(change.why)}</td></tr>"
        for change in state.changes
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Number formats</title>'
        f"<style>{STYLE}</style><h1>What each layer computed in</h1>"
        f'<p class="soft">{steps:,} steps, {len(state.changes)} changes.{legend}</p>{_lines(state, steps)}'
        "<h2>Changes</h2><table><tr><th>after step</th><th>layer</th><th>format</th><th>why</th></tr>"
        f"{rows}</table></html>\n"
    )


def _lines(state: PrecisionState, steps: int) -> str:
    shapes: list[str] = []
    scale = (WIDTH - NAMES) / steps
    for number, (layer, last) in enumerate(state.formats.items()):
        top = number * ROW
        shapes.append(f'<text x="0" y="{top + ROW - 5}">{escape(layer)}</text>')
        changes = [change for change in state.changes if change.layer == layer]
        formats = [*(change.before for change in changes), last]
        edges = [0, *(change.step for change in changes), steps]
        for name, (start, stop) in zip(formats, pairwise(edges), strict=True):
            shapes.append(
                f'<rect class="{name}" x="{NAMES + start * scale:.1f}" y="{top + 2}" height="{ROW - 4}" '
                f'width="{max(0.0, (stop - start) * scale - 1):.1f}"><title>{escape(layer)}: {name}, steps '
                f"{start} to {stop}</title></rect>"
            )
    height = len(state.formats) * ROW
    shapes.append(f'<line x1="{NAMES}" x2="{WIDTH}" y1="{height}" y2="{height}"></line>')
    shapes.append(f'<text x="{NAMES}" y="{height + 14}">0</text>')
    shapes.append(f'<text x="{WIDTH}" y="{height + 14}" text-anchor="end">{steps:,} steps</text>')
    label = f"number formats of {len(state.formats)} layers by step"
    return f'<svg viewBox="0 0 {WIDTH} {height + 18}" role="img" aria-label="{label}">{"".join(shapes)}</svg>'
