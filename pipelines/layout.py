"""What HTML pages have in common: nothing is loaded from elsewhere, and nothing in them is run."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --line: #d8dee4; --paper: #ffffff;
  --wash: #f6f8fa; --first: #2f6fb3; --second: #b3712f; --third: #3f8f5f; --bad: #b3261e; --good: #1a7f37; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9198a1; --line: #30363d;
  --paper: #0d1117; --wash: #161b22; --first: #6cb0f5; --second: #f0a860; --third: #7fd39c; --bad: #ff8b82;
  --good: #6fdd8b; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 68rem; color: var(--ink);
  background: var(--paper); font: 15px/1.55 system-ui, sans-serif; font-variant-numeric: tabular-nums; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; letter-spacing: -.01em; }
h2 { font-size: 1.15rem; margin: 3rem 0 .75rem; padding-top: .75rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.75rem 0 .5rem; }
p { margin: .25rem 0 .75rem; max-width: 46rem; }
.soft, figcaption, th, small { color: var(--soft); font-weight: 400; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: .5rem 0 1rem; }
caption { text-align: left; color: var(--soft); padding-bottom: .35rem; }
th, td { padding: .3rem 1.25rem .3rem 0; text-align: left; border-bottom: 1px solid var(--line);
  vertical-align: top; white-space: nowrap; }
td.wide { white-space: normal; min-width: 14rem; overflow-wrap: anywhere; }
th.n, td.n { text-align: right; }
line { stroke: var(--line); }
"""


def document(title: str, body: str, style: str) -> str:
    """A page.

    Args:
        title: of it.
        body: as HTML.
        style: of what only this page has; colours `--first`, `--second`, `--third` tell things apart.
    """
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{STYLE}{style}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def table(names: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "", wide: int = 0) -> str:
    """A table; numbers stand to the right.

    Args:
        names: of the columns.
        rows: cells as HTML.
        caption: a line above it.
        wide: column that may break lines; 0 for none.
    """
    broad = wide % len(names) if wide else 0
    numbers = {i for i in range(1, len(names)) if i != broad and any(row[i][:1].isdigit() for row in rows)}

    def cell(tag: str, place: int, content: str) -> str:
        kind = ' class="n"' if place in numbers else ' class="wide"' if broad and place == broad else ""
        return f"<{tag}{kind}>{content}</{tag.partition(' ')[0]}>"

    head = "".join(cell('th scope="col"', i, escape(name)) for i, name in enumerate(names))
    lines = "".join(f"<tr>{''.join(cell('td', i, one) for i, one in enumerate(row))}</tr>" for row in rows)
    told = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll"><table>{told}<thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'
    )
