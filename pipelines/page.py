"""An inspected corpus as one HTML page: nothing is loaded from elsewhere, and nothing in it is run."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .inspecting import Distribution, Inspection
from .layout import document, table
from .quarantine import Refused
from .spec import Preparation

THUMBNAIL = 128
WAVE_BARS = 64
SHOWN_TEXT = 300
SHOWN_BYTES = 64
TOP = 30
SHOWN_CAPTIONS = 3

STYLE = """
.verdict { margin: 1.25rem 0; padding: .75rem 1rem; background: var(--wash); border-radius: .4rem;
  border-left: 4px solid var(--good); }
.verdict.bad { border-color: var(--bad); }
.verdict ul { margin: .35rem 0 0; padding-left: 1.2rem; }
.cards { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); }
.card { background: var(--wash); border-radius: .4rem; padding: .6rem; font-size: .85rem;
  overflow-wrap: anywhere; }
.card img { display: block; width: 100%; max-width: 128px; height: auto; margin: 0 0 .4rem;
  border-radius: .2rem; background: #fff; }
.card pre { margin: 0 0 .4rem; white-space: pre-wrap; font-size: .72rem; color: var(--soft); }
.card p { margin: 0 0 .2rem; }
.charts { display: grid; gap: 1.5rem 2rem; grid-template-columns: repeat(auto-fill, minmax(18rem, 1fr)); }
figure { margin: 0; }
figure svg { width: 100%; height: auto; display: block; }
figcaption { font-size: .85rem; }
figcaption b { color: var(--ink); font-weight: 600; }
.train { color: var(--first); } .val { color: var(--second); } .test { color: var(--third); }
rect.train { fill: var(--first); } rect.val { fill: var(--second); }
rect.test { fill: var(--third); }
text { fill: var(--soft); font-size: 10px; }
@media print { .cards { grid-template-columns: repeat(5, 1fr); } h2 { break-after: avoid; } }"""


def render(
    found: Inspection,
    title: str,
    about: Sequence[str] = (),
    budget: float | None = None,
    budgets: Mapping[str, float] | None = None,
) -> str:
    """The page.

    Args:
        found: what is shown.
        title: its heading.
        about: lines below the heading: the run, the time.
        budget: that all broken inputs had, if it is known.
        budgets: those of single reasons.
    """
    parts = [
        _head(found, title, about),
        _verdict(found),
        _holdings(found),
        _charts(found.distributions),
        _counts("Languages", found.languages),
        _counts("Categories", {"records": found.categories} if any(found.categories.values()) else {}),
        _duplicates(found),
        _refused(found, budget, budgets or {}),
        _records(found),
    ]
    body = "\n".join(part for part in parts if part)
    return document(title, body, STYLE)


def _head(found: Inspection, title: str, about: Sequence[str]) -> str:
    source = f"source {found.info.source}, its content {found.info.source_digest[:16]}"
    lines = "<br>".join(escape(line) for line in (*about, source))
    return f'<header><h1>{escape(title)}</h1><p class="soft">{lines}</p></header>'


def _verdict(found: Inspection) -> str:
    """What a reader should know first: whether something that is evaluated on may have been trained on."""
    if not found.leaks:
        kinds = [one.kind for one in found.shared]
        named = f"{', '.join(kinds[:-1])} or {kinds[-1]}" if len(kinds) > 1 else kinds[0]
        near = ", and no picture looks like one of another" if found.near_compared else ""
        return f'<div class="verdict" role="note">No {named} stands in two splits{near}.</div>'
    items = "".join(f"<li>{escape(leak)}</li>" for leak in found.leaks)
    return (
        '<div class="verdict bad" role="note">What is evaluated on may have been trained on: '
        f"<ul>{items}</ul></div>"
    )


def _holdings(found: Inspection) -> str:
    counts = {name: split.model_dump() for name, split in found.info.splits.items()}
    shown = [name for name in next(iter(counts.values())) if any(one[name] for one in counts.values())]
    total = sum(one["records"] for one in counts.values())
    rows = [
        [_split(name), *(f"{one[key]:,}" for key in shown), f"{one['records'] / max(1, total):.1%}"]
        for name, one in counts.items()
    ]
    rows.append(["all", *(f"{sum(one[key] for one in counts.values()):,}" for key in shown), ""])
    sums = found.intake
    account = (
        f"{sums['units']:,} units held {sums['records']:,} records: {sums['kept']:,} are kept, "
        f"{sums['refused']:,} were refused, {sums['left_out']:,} left out beside others."
    )
    return (
        f"<section><h2>What it holds</h2>{table(['split', *shown, 'share'], rows)}<p>{account}</p></section>"
    )


def _refused(found: Inspection, budget: float | None, budgets: Mapping[str, float]) -> str:
    if not found.refusals:
        return "<section><h2>What was refused</h2><p>Nothing.</p></section>"
    rows = [
        [
            escape(one.reason),
            f"{one.count:,}",
            f"{one.broken:,}",
            escape(", ".join(one.operators)),
            *([_allowed(budgets.get(one.reason))] if budgets else []),
        ]
        for one in found.refusals
    ]
    names = ["reason", "refused", "of them broken", "by", *(["own budget"] if budgets else [])]
    samples = "".join(
        f"<h3>{escape(one.reason)}</h3>{_cards(_refusal(row) for row in one.samples)}"
        for one in found.refusals
        if one.samples
    )
    caption = "What isn't broken is what filters were asked to leave out."
    if budget is not None:
        caption += f" Broken may be {_allowed(budget)}."
    return f"<section><h2>What was refused</h2>{table(names, rows, caption)}{samples}</section>"


def _allowed(budget: float | None) -> str:
    """A budget for people: a number of inputs, or a share of all records."""
    if budget is None:
        return ""
    return f"at most {budget:g}" if budget >= 1 else f"at most {budget:.1%} of all records"


def _refusal(row: Mapping[str, Any]) -> str:
    size = f", {row['size_bytes']:,} bytes" if row["size_bytes"] >= 0 else ""
    shown = _content(row["content"], row["address"]) if row["content"] else ""
    return (
        f"{shown}<p>{escape(_short(row['message']))}</p>"
        f'<p class="soft">{escape(row["address"])}{size}, by {escape(row["operator"])}</p>'
    )


def _content(content: bytes, address: str) -> str:
    """A refused file as it can be seen: a picture, a wave, text, or its first bytes."""
    from .media import audio, image

    try:
        return _picture(image.read(content, THUMBNAIL).pixels, f"refused: {address}")
    except Refused:
        pass
    try:
        return _wave(audio.read(content, Preparation().sample_rate).wave)
    except Exception:  # whatever a decoder says of broken bytes: they are shown as they are
        pass
    try:
        text = content.decode("utf-8")
        if text.isprintable() or "\n" in text:
            return f"<pre>{escape(_short(text))}</pre>"
    except UnicodeDecodeError:
        pass
    lines = [content[i : i + 8].hex(" ") for i in range(0, min(SHOWN_BYTES, len(content)), 8)]
    return f"<pre>{'<br>'.join(lines)}</pre>"


def _charts(distributions: Sequence[Distribution]) -> str:
    if not distributions:
        return ""
    figures = "".join(_chart(one) for one in distributions)
    return (
        "<section><h2>How it is distributed</h2><p class='soft'>Bars show shares of each split; the last one "
        f"takes what is over the 99th percentile.</p><div class='charts'>{figures}</div></section>"
    )


def _chart(one: Distribution) -> str:
    """Small bars for each split, one below the other, over the same values."""
    width, height, gap = 300.0, 34.0, 8.0
    shapes: list[str] = []
    lines: list[str] = []
    shown = {split: found for split, found in one.splits.items() if found.count}
    step = width / max(1, len(one.edges) - 1)
    for number, (split, found) in enumerate(shown.items()):
        base = (number + 1) * height + number * gap
        tallest = max(found.bars)
        for place, count in enumerate(found.bars):
            tall = height * count / tallest
            if count:
                shapes.append(
                    f'<rect class="{split}" x="{place * step:.1f}" y="{base - tall:.1f}" '
                    f'width="{max(step - 1, 0.5):.1f}" height="{max(tall, 0.7):.1f}"></rect>'
                )
        shapes.append(f'<line x1="0" x2="{width:.0f}" y1="{base}" y2="{base}"></line>')
        values = f"{_number(found.median)} ({_number(found.p5)} to {_number(found.p95)})"
        lines.append(f"{_split(split)} {values}, at most {_number(found.largest)}")
    end = len(shown) * (height + gap) + 6
    shapes.append(f'<text x="0" y="{end:.0f}">{_number(one.edges[0])}</text>')
    shapes.append(f'<text x="{width:.0f}" y="{end:.0f}" text-anchor="end">{_number(one.edges[-1])}</text>')
    unit = f" <small>{escape(one.unit)}</small>" if one.unit else ""
    return (
        f"<figure><figcaption><b>{escape(one.name)}</b>{unit}</figcaption>"
        f'<svg viewBox="0 0 {width:.0f} {end + 4:.0f}" role="img" '
        f'aria-label="{escape(one.name)}: bars for {", ".join(shown)}">{"".join(shapes)}</svg>'
        f"<figcaption>median (5 % to 95 %): {'; '.join(lines)}</figcaption></figure>"
    )


def _counts(heading: str, found: Mapping[str, Mapping[str, Mapping[str, int]]]) -> str:
    """A table for each kind of thing: what there is, and its share of each split."""
    tables: list[str] = []
    for what, splits in found.items():
        totals = {split: sum(counts.values()) for split, counts in splits.items()}
        names = sorted(
            {name for counts in splits.values() for name in counts},
            key=lambda name: (-sum(counts.get(name, 0) for counts in splits.values()), name),
        )
        rows = [
            [escape(name)]
            + [
                f"{counts.get(name, 0):,} <small>{counts.get(name, 0) / max(1, totals[split]):.1%}</small>"
                for split, counts in splits.items()
            ]
            for name in names[:TOP]
        ]
        if len(names) > TOP:
            rest = [sum(counts.get(name, 0) for name in names[TOP:]) for counts in splits.values()]
            rows.append([f"{len(names) - TOP:,} more", *(f"{count:,}" for count in rest)])
        tables.append(table([what, *splits], rows))
    return f"<section><h2>{heading}</h2>{''.join(tables)}</section>" if tables else ""


def _duplicates(found: Inspection) -> str:
    splits = list(found.info.splits)
    rows = [
        [
            escape(one.kind),
            *(f"{one.different[split]:,} <small>+ {one.repeated[split]:,} again</small>" for split in splits),
            f"{one.across:,}",
            "<br>".join(escape(" = ".join(pair)) for pair in one.examples),
        ]
        for one in found.shared
    ]
    names = ["different …", *splits, "in several splits", "for instance"]
    near = ""
    if found.near_compared:
        pairs = "; ".join(" ≈ ".join(group) for group in found.near[:5])
        near = (
            f"<p>Of {found.near_compared:,} pictures compared by how they look, {len(found.near):,} "
            f"groups stand in several splits{': ' + escape(pairs) if pairs else ''}.</p>"
        )
    caption = "Records that are kept; captions are compared without case and spacing."
    return f"<section><h2>Duplicates and leakage</h2>{table(names, rows, caption, wide=-1)}{near}</section>"


def _records(found: Inspection) -> str:
    sections = "".join(
        f"<h3>{_split(split)}</h3>{_cards(_record(row, found.info.preparation) for row in rows)}"
        for split, rows in found.samples.items()
        if rows
    )
    return f"<section><h2>Records, spread evenly over each split</h2>{sections}</section>" if sections else ""


def _record(row: Mapping[str, Any], preparation: Preparation) -> str:
    parts: list[str] = []
    if row.get("image"):
        side = preparation.stored_image_size
        pixels = np.frombuffer(row["image"]["pixels"], np.uint8).reshape(side, side, 3)
        parts.append(_picture(pixels, f"record {row['id']}"))
    if row.get("volume"):
        parts.append(_slice(row["volume"], f"middle slice of {row['id']}"))
    for clip in (row.get("speech") or [])[:1]:
        mel = np.frombuffer(clip["mel"], np.float16).reshape(-1, preparation.n_mels).astype(np.float32)
        parts.append(_picture(_grey(mel.T[::-1]), f"spectrogram in {clip['language']}"))
    for caption in (row.get("captions") or [])[:SHOWN_CAPTIONS]:
        text = escape(_short(caption["text"]))
        parts.append(f"<p><small>{escape(caption['language'])}</small> {text}</p>")
    if row.get("text"):
        parts.append(f"<p>{escape(_short(row['text']))}</p>")
    category = f", {escape(row['category'])}" if row.get("category") else ""
    parts.append(f'<p class="soft">{escape(row["id"])}{category}</p>')
    return "".join(parts)


def _slice(volume: Mapping[str, Any], alt: str) -> str:
    from .media.volumes import of_row

    voxels = of_row(volume).voxels
    return _picture(_grey(voxels[len(voxels) // 2].astype(np.float32)), alt)


def _grey(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Values (H, W) as a grey picture (H, W, 3), from the lowest to the highest."""
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    scaled = (values - low) / (high - low if high > low else 1.0) * 255
    return np.repeat(scaled.astype(np.uint8)[..., None], 3, axis=-1)


def _picture(pixels: NDArray[np.uint8], alt: str) -> str:
    """(H, W, 3) as an image of its own bytes, newly encoded."""
    if not pixels.size:
        return ""
    picture = Image.fromarray(pixels)
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    size = f'width="{picture.width}" height="{picture.height}"'
    return f'<img src="data:image/png;base64,{data}" alt="{escape(alt)}" {size} loading="lazy">'


def _wave(wave: NDArray[np.float32]) -> str:
    """The outline of a recording."""
    edges = np.linspace(0, len(wave), WAVE_BARS + 1).astype(int)
    peaks = [float(np.abs(wave[a:b]).max(initial=0)) for a, b in pairwise(edges)]
    tallest = max(peaks) or 1
    bars = "".join(
        f'<rect class="train" x="{2 * i}" y="{20 - 20 * peak / tallest:.1f}" width="1.4" '
        f'height="{max(0.5, 40 * peak / tallest):.1f}"></rect>'
        for i, peak in enumerate(peaks)
    )
    return f'<svg viewBox="0 0 128 40" width="128" role="img" aria-label="a recording">{bars}</svg>'


def _cards(contents: Iterable[str]) -> str:
    cards = "".join(f'<div class="card">{one}</div>' for one in contents)
    return f'<div class="cards">{cards}</div>'


def _split(name: str) -> str:
    return f'<span class="{escape(name)}">{escape(name)}</span>'


def _short(text: str) -> str:
    return text if len(text) <= SHOWN_TEXT else f"{text[:SHOWN_TEXT]} …"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 or value == round(value) else f"{value:.3g}"
