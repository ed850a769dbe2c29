"""What is found in a scan, as one page: the slice of each finding with a circle around it.

The page is all there is to it: pictures are within, it has no scripts, and its policy lets it load nothing.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from hashlib import sha256
from html import escape
from string import Template

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ..media.resampling import to_bytes
from ..media.volumes import Volume
from .spec import VolumeAssessment, VolumeFinding

SIDE = 512
"""Of a picture's longer side, in pixels, at least."""
WINDOW_HU = (-1000.0, 400.0)
"""What is black and what is white, by default: lung and soft tissue."""
SHOWN = 30
"""Findings that are shown, at most: each takes some 200 kB."""
ROOM_MM = 3.0
"""Between a finding and the circle around it."""
CIRCLE = (255, 214, 0)
STYLE = """
body { margin: 2rem auto; max-width: 72rem; padding: 0 1rem; font: 16px/1.5 system-ui, sans-serif; }
.notice { border: 2px solid #b00020; border-radius: 4px; padding: .75rem 1rem; font-weight: 600; }
.findings { display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: 1.5rem; }
figure { margin: 0; }
img { width: 100%; height: auto; background: #000; }
dl { display: grid; grid-template-columns: auto 1fr; gap: 0 1rem; margin: .5rem 0; }
dd { margin: 0; font-variant-numeric: tabular-nums; }
"""
PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src '$digest'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Findings in a scan</title>
<style>$style</style>
</head>
<body>
<p class="notice" role="note">$notice</p>
<h1>$title</h1>
<p>$scan $sides</p>
<div class="findings">
$figures
</div>
</body>
</html>
""")
FIGURE = Template("""<figure>
<img src="data:image/png;base64,$content" width="$width" height="$height" alt="$alt">
<figcaption>$text</figcaption>
</figure>""")


def viewer(scan: Volume, assessment: VolumeAssessment, window_hu: tuple[float, float] = WINDOW_HU) -> str:
    """The page (HTML) of a scan in Hounsfield units and what is found in it.

    Args:
        scan: as it was assessed.
        assessment: what is said of it.
        window_hu: what is black, and what is white.
    """
    count = len(assessment.findings)
    title = "Nothing was found" if not count else f"{count} finding{'s' if count > 1 else ''}"
    title += f", the {SHOWN} likeliest of which are shown" if count > SHOWN else ""
    spacing = " x ".join(f"{one:.2f}" for one in assessment.spacing_mm)
    return PAGE.substitute(
        digest=f"sha256-{base64.b64encode(sha256(STYLE.encode()).digest()).decode()}",
        style=STYLE,
        notice=escape(assessment.notice),
        title=title,
        scan=f"{assessment.slices} slices; voxels of {spacing} mm (depth, height, width).",
        sides=_sides(scan),
        figures="\n".join(_figures(scan, assessment, window_hu)),
    )


def circled(scan: Volume, finding: VolumeFinding, window_hu: tuple[float, float] = WINDOW_HU) -> Image.Image:
    """A finding's slice with a circle around it, its pixels made square."""
    picture, scale = _slice(scan, finding.slice, window_hu)
    centre = np.array([finding.x_mm, finding.y_mm, finding.z_mm]) - scan.origin_mm
    # from the first voxel's centre in millimetres to pixels, of which the first begins half a voxel before
    down, across = (scan.direction[1:] @ centre + scan.spacing_mm[1:] / 2) * scale
    reach = (finding.diameter_mm / 2 + ROOM_MM) * scale
    box = (across - reach, down - reach, across + reach, down + reach)
    ImageDraw.Draw(picture).ellipse(box, outline=CIRCLE, width=2)
    return picture


def _figures(scan: Volume, assessment: VolumeAssessment, window_hu: tuple[float, float]) -> Iterator[str]:
    if not assessment.findings:
        middle = len(scan.voxels) // 2
        picture, _ = _slice(scan, middle, window_hu)
        yield _figure(picture, f"Slice {middle + 1}", f"<p>Slice {middle + 1}, the middle one.</p>")
    for number, one in enumerate(assessment.findings[:SHOWN], 1):
        rows = (
            ("Slice", f"{one.slice + 1} of {assessment.slices}"),
            ("Place", f"x {one.x_mm:.1f}, y {one.y_mm:.1f}, z {one.z_mm:.1f} mm (LPS)"),
            ("Diameter", f"{one.diameter_mm:.1f} mm"),
            ("Score", f"{one.score:.2f}"),
        )
        listed = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in rows)
        name = f"{number}. {one.label}"
        alt = f"{name}, circled in slice {one.slice + 1}"
        yield _figure(circled(scan, one, window_hu), alt, f"<h2>{escape(name)}</h2><dl>{listed}</dl>")


def _figure(picture: Image.Image, alt: str, text: str) -> str:
    content = io.BytesIO()
    picture.save(content, "PNG")
    return FIGURE.substitute(
        content=base64.b64encode(content.getvalue()).decode(),
        width=picture.width,
        height=picture.height,
        alt=escape(alt),
        text=text,
    )


def _slice(scan: Volume, number: int, window_hu: tuple[float, float]) -> tuple[Image.Image, float]:
    """A slice with square pixels, and how many of them are a millimetre."""
    grey: NDArray[np.uint8] = to_bytes(scan.voxels[number], *window_hu)
    height_mm, width_mm = np.array(grey.shape) * scan.spacing_mm[1:]
    scale = max(SIDE / max(height_mm, width_mm), 1 / float(scan.spacing_mm[1:].min()))
    size = (max(1, round(width_mm * scale)), max(1, round(height_mm * scale)))
    return Image.fromarray(grey).resize(size, Image.Resampling.BILINEAR).convert("RGB"), float(scale)


def _sides(scan: Volume) -> str:
    """Which of the patient's sides is where: x of patient space grows to the patient's left."""
    across = float(scan.direction[2, 0])
    return f"The patient's left is on the {'right' if across > 0 else 'left'} of each picture."
