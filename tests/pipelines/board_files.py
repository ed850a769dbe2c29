"""A small board in Gerber and Excellon, as a folder with a manifest."""

from __future__ import annotations

import json
from pathlib import Path

GERBER = "%FSLAX34Y34*%\n%MOMM*%\n%LPD*%\n"
WIDTH_MM, HEIGHT_MM = 16.0, 12.0
TRACES_MM = (2.0, 2.8, 3.6, 4.4, 5.2)
"""Heights of five traces 0.3 mm wide, each with a pad at both ends."""
PADS_MM = (2.0, 14.0)
HOLE_MM = (8.0, 9.0)
PLANE_MM = (2.0, 7.0, 6.0, 10.0)
"""Left, bottom, right and top of a plane."""


def at(x: float, y: float) -> str:
    """A point in Gerber's numbers."""
    return f"X{round(x * 1e4)}Y{round(y * 1e4)}"


def polygon(*points: tuple[float, float]) -> str:
    """A closed line."""
    first, *rest = (at(*point) for point in (*points, points[0]))
    return f"{first}D02*\n" + "".join(f"{one}D01*\n" for one in rest)


def rectangle(left: float, bottom: float, right: float, top: float) -> str:
    """A closed line around a rectangle."""
    return polygon((left, bottom), (right, bottom), (right, top), (left, top))


def gerber(*statements: str) -> bytes:
    """A file with a round aperture of 0.3 mm (D10), one of 0.1 mm (D11) and a square of 0.6 mm (D12)."""
    apertures = "%ADD10C,0.3*%\n%ADD11C,0.1*%\n%ADD12R,0.6X0.6*%\n"
    return (GERBER + apertures + "".join(statements) + "M02*\n").encode()


def outline(*holes: str) -> bytes:
    """The board's edge, and edges in it."""
    return gerber("D11*\n", rectangle(0, 0, WIDTH_MM, HEIGHT_MM), *holes)


def copper() -> bytes:
    """Traces with pads, and a plane."""
    traces = "".join(f"{at(PADS_MM[0], y)}D02*\n{at(PADS_MM[1], y)}D01*\n" for y in TRACES_MM)
    return gerber("D10*\n", traces, "D12*\n", _pads(), "G36*\n", rectangle(*PLANE_MM), "G37*\n")


def _pads() -> str:
    return "".join(f"{at(x, y)}D03*\n" for x in PADS_MM for y in TRACES_MM[::2])


def silkscreen() -> bytes:
    """A line."""
    return gerber("D10*\n", f"{at(9, 7.5)}D02*\n{at(13, 7.5)}D01*\n")


def drill() -> bytes:
    """One hole of 1 mm."""
    return f"M48\nMETRIC,TZ\nT1C1.000\n%\nG90\nG05\nT1\nX{HOLE_MM[0]}Y{HOLE_MM[1]}\nM30\n".encode()


def write_board(folder: Path) -> Path:
    """A board with copper on both sides."""
    folder.mkdir(parents=True)
    layers = [
        ("outline", "all", outline()),
        ("copper", "top", copper()),
        ("soldermask", "top", gerber("D12*\n", _pads())),
        ("silkscreen", "top", silkscreen()),
        ("copper", "bottom", copper()),
        ("drill", "all", drill()),
    ]
    listed = []
    for kind, side, content in layers:
        name = f"{kind}-{side}.gbr"
        (folder / name).write_bytes(content)
        form = "drill" if kind == "drill" else "gerber"
        listed.append({"name": name, "format": form, "side": side, "type": kind})
    (folder / "manifest.json").write_text(json.dumps({"layers": listed}))
    return folder
