"""What each layer computed in while a model was trained, as one page; nothing in it is run or loaded."""

from __future__ import annotations

from html import escape
from itertools import pairwise

from ...pipelines.layout import document, table
from .precision import PrecisionState

STYLE = """
svg { width: 100%; height: auto; } text { fill: var(--ink); font-size: 11px; }
.bf16 { fill: var(--first); background: var(--first); }
.fp16 { fill: var(--second); background: var(--second); }
.fp32 { fill: var(--third); background: var(--third); }
i { display: inline-block; width: .8em; height: .8em; margin: 0 .3em 0 1em; }
"""
NAMES, WIDTH, ROW = 190, 900, 16
FORMATS = ("bf16", "fp16", "fp32")


def precision_page(state: PrecisionState, steps: int) -> str:
    """A page with a line for each layer, its number formats by step, and a table of what changed and why.

    Args:
        state: at the end of a training.
        steps: that it took.
    """
    legend = "".join(f'<i class="{name}"></i>{name}' for name in FORMATS)
    rows = [
        (str(change.step), escape(change.layer), f"{change.before} → {change.after}", escape(change.why))
        for change in state.changes
    ]
    body = (
        "<h1>What each layer computed in</h1>"
        f'<p class="soft">{steps:,} steps, {len(rows)} changes.{legend}</p>{_lines(state, steps)}'
        f"<h2>Changes</h2>{table(('after step', 'layer', 'format', 'why'), rows, wide=3)}"
    )
    return document("Number formats", body, STYLE)


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
