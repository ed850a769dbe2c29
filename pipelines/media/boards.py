"""Bare circuit boards: their layers rendered from Gerber and Excellon, and photographs composed of them.

A layer is bool (height, width), as seen from the side that is shown; what lies below is mirrored.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from ..quarantine import Refused
from .board_kinds import LAYER_KINDS, Finish, LayerKind, SolderMask
from .morphology import Layer, Window, dilated, nearest, parts, shifted, smoothed

Pixels: TypeAlias = NDArray[np.uint8]
Colour: TypeAlias = tuple[int, int, int]

MAX_PIXELS = 24_000_000
"""Of a side: while it is worked on, each takes some 40 bytes."""
MARGIN_MM = 1.0
"""Of what lies beside the board."""
RIM_MM = 0.3
"""Of a board without an outline around its copper."""
STROKE_MM = 0.25
"""Width an outline is drawn with; smaller gaps in it are closed."""
MAX_NESTING = 6
"""Of outlines in outlines: slots in boards, and boards in the slots of a panel."""

# What a pixel shows. Values of `materials`, and rows of a palette.
BESIDE, SUBSTRATE, COPPER, FINISH, MASKED_SUBSTRATE, MASKED_COPPER, SILKSCREEN = range(7)

SOLDER_MASKS: Mapping[SolderMask, tuple[Colour, Colour]] = {
    "green": ((17, 84, 50), (40, 130, 76)),
    "blue": ((16, 46, 112), (36, 84, 166)),
    "red": ((122, 22, 26), (176, 50, 48)),
    "black": ((26, 27, 30), (58, 59, 63)),
}
"""Colours of solder mask on substrate and on copper, which shines through."""
FINISHES: Mapping[Finish, Colour] = {"gold": (218, 184, 104), "tin": (196, 198, 196)}
"""Of copper that the solder mask leaves open."""
_PLAIN: tuple[Colour, ...] = ((22, 22, 24), (176, 160, 112), (205, 132, 92))
_SILKSCREEN: Colour = (228, 228, 220)
LAMP = 1.25 * np.pi
"""Where light comes from: above on the left, or near it."""
RELIEF_MM = 0.06
"""How far solder mask slopes at an edge of copper."""


@dataclass(frozen=True)
class Layers:
    """A side of a board; each is (height, width), and the last four lie in `board` but for the holes.

    Attributes:
        board: where there is board, holes included.
        copper: where there is copper.
        openings: where solder mask leaves it open.
        silkscreen: where something is printed.
        holes: where it is drilled through.
    """

    board: Layer
    copper: Layer
    openings: Layer
    silkscreen: Layer
    holes: Layer

    def part(self, window: Window) -> Layers:
        """A part of it."""
        return Layers(*(one[window] for one in self))

    def __iter__(self) -> Iterator[Layer]:
        yield from (self.board, self.copper, self.openings, self.silkscreen, self.holes)

    def misaligned(self, openings: tuple[int, int], silkscreen: tuple[int, int]) -> Layers:
        """The same board with openings and silkscreen shifted by so many rows and columns."""
        return replace(
            self,
            openings=shifted(self.openings, *openings) & self.board,
            silkscreen=shifted(self.silkscreen, *silkscreen) & self.board,
        )


def render(files: Mapping[LayerKind, Sequence[bytes]], is_bottom: bool, pixels_per_mm: float) -> Layers:
    """Render the layers of a board's side.

    Args:
        files: kind → contents of its files: Excellon for `drill`, else Gerber. Kinds may be missing, but not
            `copper`.
        is_bottom: whether it is seen from below.
        pixels_per_mm: scale.

    Raises:
        Refused: when a file can't be read, or the board is too large.
    """
    parsed = {kind: [_parse(content, kind) for content in files.get(kind, ())] for kind in LAYER_KINDS}
    bounds = _bounds(parsed["outline"]) or _bounds(parsed["copper"])
    if bounds is None:
        raise Refused("empty-board", "the board has neither an outline nor copper")
    left, bottom, right, top = bounds
    size = [round((length + 2 * MARGIN_MM) * pixels_per_mm) for length in (right - left, top - bottom)]
    if size[0] * size[1] > MAX_PIXELS:
        raise Refused("image-too-large", f"at this scale {size[0]}x{size[1]} pixels are over {MAX_PIXELS:,}")
    canvas = _Canvas(left - MARGIN_MM, top + MARGIN_MM, size[0], size[1], pixels_per_mm)
    if parsed["outline"]:
        stroke = canvas.draw(parsed["outline"], STROKE_MM)
        board = _inside(stroke)
        # Some programs plot the outline into every layer; no copper runs along a real edge.
        drawn_on = board & ~stroke
    else:
        board = canvas.rectangle(left - RIM_MM, bottom - RIM_MM, right + RIM_MM, top + RIM_MM)
        drawn_on = board
    layers = [
        board,
        *(canvas.draw(parsed[kind]) & drawn_on for kind in ("copper", "soldermask", "silkscreen")),
        canvas.draw(parsed["drill"]),
    ]
    return Layers(*(np.ascontiguousarray(one[:, ::-1] if is_bottom else one) for one in layers))


def materials(layers: Layers, copper: Layer, bare: Layer) -> Pixels:
    """What each pixel shows.

    Args:
        layers: a board's, or a part of it.
        copper: (height, width), instead of its own.
        bare: (height, width), where solder mask and silkscreen are scratched off.
    """
    shown = np.where(copper, np.uint8(MASKED_COPPER), np.uint8(MASKED_SUBSTRATE))
    shown[layers.silkscreen] = SILKSCREEN
    shown[bare | layers.openings] = SUBSTRATE
    shown[bare & copper] = COPPER
    shown[layers.openings & copper] = FINISH
    shown[layers.holes | ~layers.board] = BESIDE
    return shown


def palette(
    mask: SolderMask, finish: Finish, random: np.random.Generator, variation: float
) -> NDArray[np.float32]:
    """Colours (7, 3) of what a pixel may show, each a little off, with a gamma common to them all."""
    colours = np.array([*_PLAIN, FINISHES[finish], *SOLDER_MASKS[mask], _SILKSCREEN], np.float32) / 255
    colours *= 1 + random.uniform(-0.25, 0.25, colours.shape) * variation
    gamma = np.exp(random.uniform(-0.6, 0.6) * variation)
    return (np.clip(colours, 0, 1) ** gamma * 255).astype(np.float32)


def photograph(
    shown: Pixels,
    copper: Layer,
    colours: NDArray[np.float32],
    random: np.random.Generator,
    lighting: float,
    blur_px: float,
    pixels_per_mm: float,
) -> Pixels:
    """Compose a picture (height, width, 3): colour, light that falls off to a side, blur, noise.

    Args:
        shown: `materials`.
        copper: what solder mask lies over.
        colours: `palette`.
        random: what is drawn from; as often for any board of this size.
        lighting: strength of gradients and noise; 0 for none.
        blur_px: standard deviation of the blur; 0 for none.
        pixels_per_mm: scale.
    """
    height, width = shown.shape
    angle = LAMP + random.uniform(-np.pi, np.pi) * min(1.0, 2 * lighting)
    fall, centre = random.uniform(0, 1) * lighting, random.uniform(-0.5, 0.5, 2)
    exposure = 1 + random.uniform(-0.5, 0.5) * lighting
    rows = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    columns = np.linspace(-1, 1, width, dtype=np.float32)[None]
    light = np.float32(exposure) * (1 + np.float32(fall) * (rows * np.sin(angle) + columns * np.cos(angle)))
    light -= np.float32(0.4 * lighting) * ((rows - centre[0]) ** 2 + (columns - centre[1]) ** 2)
    # Solder mask is raised over copper: edges that face the lamp are lighter.
    relief = smoothed(copper.astype(np.float32), RELIEF_MM * pixels_per_mm)
    slope = np.gradient(relief)
    light -= np.float32(0.35) * (slope[0] * np.float32(np.sin(angle)) + slope[1] * np.float32(np.cos(angle)))
    picture = smoothed(colours[shown] * light[..., None], blur_px)
    if lighting > 0:
        grain = random.standard_normal((height, width), np.float32)
        picture += (np.float32(16 * lighting) * grain)[..., None]
    return np.clip(picture, 0, 255).astype(np.uint8)


def moved(picture: Pixels, rows: float, columns: float) -> Pixels:
    """A picture (height, width, 3), shifted by parts of a pixel; what comes in is its edge."""
    return np.rint(ndimage.shift(picture, (rows, columns, 0), np.float32, order=1, mode="nearest")).astype(
        np.uint8
    )


@dataclass(frozen=True)
class _Canvas:
    """Where pixels lie: `left` and `top` in mm, with y upwards as in Gerber, and how many there are."""

    left: float
    top: float
    width: int
    height: int
    pixels_per_mm: float

    def draw(self, files: Sequence[Any], stroke_mm: float | None = None) -> Layer:
        """Where more than half of a pixel is drawn; strokes with their own widths, or all with one."""
        import resvg_py
        from gerbonara.utils import MM

        drawn = np.zeros((self.height, self.width), np.bool_)
        style = f"<style>path{{stroke-width:{stroke_mm}px}}</style>" if stroke_mm else ""
        move = f"scale({self.pixels_per_mm} {-self.pixels_per_mm}) translate({-self.left} {-self.top})"
        for file in files:
            body = "".join(str(one) for one in file.svg_objects(svg_unit=MM, fg="black", bg="white"))
            svg = (
                f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width}" height="{self.height}">{style}'
                '<rect width="100%" height="100%" fill="white"/>'
                f'<g stroke-linecap="round" stroke-linejoin="round" transform="{move}">{body}</g></svg>'
            )
            content = resvg_py.svg_to_bytes(
                svg_string=svg, width=self.width, height=self.height, skip_system_fonts=True
            )
            with Image.open(io.BytesIO(bytes(content))) as picture:
                drawn |= np.asarray(picture.convert("L")) < 128
        return drawn

    def rectangle(self, left: float, bottom: float, right: float, top: float) -> Layer:
        """A filled rectangle, in mm."""
        drawn = np.zeros((self.height, self.width), np.bool_)
        rows = [round((self.top - edge) * self.pixels_per_mm) for edge in (top, bottom)]
        columns = [round((edge - self.left) * self.pixels_per_mm) for edge in (left, right)]
        drawn[max(0, rows[0]) : rows[1], max(0, columns[0]) : columns[1]] = True
        return drawn


def _parse(content: bytes, kind: LayerKind) -> Any:  # noqa: ANN401 - a file of gerbonara, which has no types
    from gerbonara.excellon import ExcellonFile
    from gerbonara.rs274x import GerberFile

    text = content.decode("utf-8", "replace")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old-fashioned statements, which these files are full of
            if kind == "drill":
                return ExcellonFile.from_string(text)
            return GerberFile.from_string(text)
    except Exception as error:  # gerbonara raises anything on hostile bytes
        raise Refused("corrupt-layer", f"a file of {kind} can't be read: {error}") from error


def _bounds(files: Sequence[Any]) -> tuple[float, float, float, float] | None:
    """Left, bottom, right and top of all that is drawn, in mm."""
    boxes = [box for file in files if (box := file.bounding_box("mm", default=None)) is not None]
    if not boxes:
        return None
    low = [min(float(box[0][axis]) for box in boxes) for axis in range(2)]
    high = [max(float(box[1][axis]) for box in boxes) for axis in range(2)]
    return low[0], low[1], high[0], high[1]


def _inside(stroke: Layer) -> Layer:
    """What outlines enclose: what lies inside one of them is board, what lies inside two a slot, inside three
    board again. Half of a stroke belongs to either side.
    """
    numbered, count = parts(~stroke, corners=False)
    numbered = numbered[tuple(nearest(~stroke))]  # strokes are shared out, so that neighbours touch
    is_board, known = np.zeros(count + 1, np.bool_), np.zeros(count + 1, np.bool_)
    current = np.unique(np.concatenate([numbered[0], numbered[-1], numbered[:, 0], numbered[:, -1]]))
    for level in range(MAX_NESTING):
        known[current] = True
        is_board[current] = level % 2 == 1
        around = np.unique(numbered[dilated(np.isin(numbered, current), 2)])
        current = around[~known[around]]
        if not len(current):
            break
    return is_board[numbered]
