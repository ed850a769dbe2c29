"""Pictures: decoding, augmentation and normalisation, the same in preprocessing, training and serving."""

from __future__ import annotations

import io
import math
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from ..quarantine import Refused

Pixels = NDArray[np.uint8]
Fit: TypeAlias = Literal["letterbox", "crop"]
"""How a picture becomes a square; see `Preparation.fit`."""

WHITE = (255, 255, 255)
GREY = (128, 128, 128)
MAX_PIXELS = 64_000_000
MAX_SVG_BYTES = 16_000_000
CSS_DPI = 96.0
VECTOR_ROOM = 4
"""A vector picture that is cropped is rendered this much larger, for one side is cut off."""
MM_PER_UNIT = {"mm": 1.0, "cm": 10.0, "in": 25.4, "pt": 25.4 / 72, "pc": 25.4 / 6, "px": 25.4 / CSS_DPI}
_SVG_ROOT = re.compile(r"<svg\b[^>]*>")
_SVG_LENGTH = re.compile(r"""\s(width|height)\s*=\s*["']\s*([^"']*?)\s*["']""")
_LENGTH = re.compile(r"\+?((?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,2})?)(mm|cm|in|pt|pc|px)?")
GZIP_MAGIC = b"\x1f\x8b"
JPEG_MAGIC = b"\xff\xd8\xff"
EXIF = b"Exif\0"
EXIF_BYTES = 1 << 17
"""Where a JPEG's orientation would stand: its segments before the picture's have at most 64 KiB each."""
SIDEWAYS = (5, 6, 7, 8)
"""EXIF orientations in which rows are columns."""
# How far augmentation goes; a mirrored letter is another letter, so nothing is flipped.
MAX_ROTATION_RAD = math.radians(12)
ZOOM = (0.85, 1.15)
MAX_SHIFT = 0.08
MAX_SHEAR = 0.08
MAX_COLOUR = 0.25
# Of pictures with marks, whose way up means nothing.
MAX_TURN_RAD = math.radians(15)
MAX_BEND, BENDS = 0.01, 5
"""Deviation of a bend, as a share of the side, and how many there are along a side."""


@dataclass(frozen=True)
class Picture:
    """A decoded picture.

    Attributes:
        pixels: (size, size, 3) uint8, letterboxed on white, or cropped.
        width, height: the original's, in pixels, turned as its EXIF says; of a vector picture, as rendered.
    """

    pixels: Pixels
    width: int
    height: int


@dataclass(frozen=True)
class Tile(Picture):
    """A part of a picture.

    Attributes:
        left, top: where it lies in the picture, in pixels.
    """

    left: int
    top: int


def decode(data: bytes, size: int, fit: Fit = "letterbox") -> Pixels:
    """Decode PNG, JPEG, WebP, GIF or SVG bytes to (size, size, 3) uint8.

    Transparency is composited on white; the picture is fitted into the square and centred, or its middle is
    cropped.

    Raises:
        Refused: when it is no picture, or a broken one.
    """
    return read(data, size, fit).pixels


def read(data: bytes, size: int, fit: Fit = "letterbox") -> Picture:
    """Decode as `decode` does, and keep the original's size.

    Raises:
        Refused: when it is no picture, or a broken one.
    """
    if not data:
        raise Refused("empty-image", "the picture has 0 bytes")
    plain = _read_plain_jpeg(data, size, fit)
    if plain is not None:
        return plain
    if is_vector(data):
        picture = _rasterise(data, size if fit == "letterbox" else VECTOR_ROOM * size)
        width, height = picture.size
    else:
        picture, (width, height) = _open(data, size, fit)
    return Picture(_square(picture, size, fit), width, height)


def decode_twice(data: bytes, size: int, fit: Fit, other: int) -> tuple[Pixels, Pixels]:
    """Decode as `decode` does, and also letterboxed to (other, other, 3), which mostly takes little more: it
    is resampled by triangles (500x500 in 1.3 ms; Lanczos's window takes 3.2).

    Raises:
        Refused: when it is no picture, or a broken one.
    """
    if data.startswith(JPEG_MAGIC) or is_vector(data):  # made at the size that is asked for
        return decode(data, size, fit), decode(data, other)
    if not data:
        raise Refused("empty-image", "the picture has 0 bytes")
    flat, background = _flatten(_open(data, None)[0])
    return _squared(flat, background, size, fit), _fit(flat, background, other, Image.Resampling.BILINEAR)


def whole(data: bytes) -> Pixels:
    """Decode a raster picture at its own size, upright and without transparency: (H, W, 3).

    Raises:
        Refused: when it is no raster picture, or a broken one.
    """
    if not data:
        raise Refused("empty-image", "the picture has 0 bytes")
    if is_vector(data):
        raise Refused("not-an-image", "a drawing has no pixels of its own")
    return np.asarray(_flatten(_open(data, None)[0])[0])


def size_of(data: bytes) -> tuple[int, int] | None:
    """Width and height in pixels by what stands at the beginning; None where that tells no size."""
    try:
        with Image.open(io.BytesIO(data)) as picture:
            return picture.size
    except Exception:  # Pillow's format plugins raise anything on hostile bytes; `read` says what is wrong
        return None


def read_tiles(
    data: bytes, tile: int, overlap: int, size: int, pixels_per_mm: float | None = None
) -> Iterator[Tile]:
    """Cut a picture into tiles, row by row, each fitted into (size, size, 3).

    The last tile of a row or column ends with the picture. A picture that is smaller than a tile is one tile,
    and so is a vector picture, which has no size in pixels, unless it is rendered at a scale.

    Args:
        data: encoded picture; decoded whole, so up to `MAX_PIXELS`.
        tile: side of a tile, in the picture's pixels.
        overlap: pixels that neighbours have in common, or more; less than `tile`.
        size: side of the result.
        pixels_per_mm: scale at which a vector picture is rendered; None to render it as one tile.

    Raises:
        Refused: when it is no picture, or a broken one.
    """
    if not data:
        raise Refused("empty-image", "the picture has 0 bytes")
    if not is_vector(data):
        whole, background = _flatten(_open(data, None)[0])
    elif pixels_per_mm is None:
        whole, background = _flatten(_rasterise(data, tile))
    else:
        whole, background = _flatten(_render(*_at_scale(_svg_text(data), pixels_per_mm)))
    for top in _starts(whole.height, tile, overlap):
        for left in _starts(whole.width, tile, overlap):
            part = whole.crop((left, top, min(left + tile, whole.width), min(top + tile, whole.height)))
            yield Tile(_fit(part, background, size), part.width, part.height, left, top)


def encode(pixels: Pixels) -> bytes:
    """A PNG of a picture (H, W, 3).

    Grain compresses badly, so little time is spent on it (0.1 s a megapixel; at level 6 0.6 s).
    """
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG", compress_level=1)
    return content.getvalue()


def check_alike(width: int, height: int, picture_width: int, picture_height: int) -> None:
    """Refuse a reference that isn't of the picture's size."""
    if (width, height) != (picture_width, picture_height):
        message = f"the reference is {width}x{height}, the picture {picture_width}x{picture_height} pixels"
        raise Refused("bad-reference", message)


def _starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles of a side begin."""
    if length <= tile:
        return [0]
    return [*range(0, length - tile, tile - overlap), length - tile]


def without_bars(pixels: Pixels, width: int, height: int) -> Pixels:
    """The part of a square picture (S, S, 3) that isn't the bars beside a `width`×`height` original."""
    size = len(pixels)
    inner_width, inner_height = fitted(width, height, size)
    left, top = (size - inner_width) // 2, (size - inner_height) // 2
    return pixels[top : top + inner_height, left : left + inner_width]


def normalise(images: Pixels) -> NDArray[np.float32]:
    """(B, H, W, 3) uint8 → (B, 3, H, W) float32 in [-1, 1]."""
    channels_first = np.ascontiguousarray(images.transpose(0, 3, 1, 2), dtype=np.float32)
    channels_first /= np.float32(127.5)
    channels_first -= np.float32(1)
    return channels_first


def denormalise(picture: NDArray[np.float32]) -> Pixels:
    """(3, H, W) in [-1, 1] → (H, W, 3) uint8: what `normalise` was given."""
    return np.rint((picture.transpose(1, 2, 0) + 1) * 127.5).astype(np.uint8)


def center(images: Pixels, size: int) -> Pixels:
    """(B, S, S, 3N) → (B, size, size, 3N): N whole pictures a row, without augmentation."""
    if images.shape[1] == size:
        return images
    resized = np.empty((len(images), size, size, images.shape[-1]), np.uint8)
    for row, first in product(range(len(images)), range(0, images.shape[-1], 3)):
        one = Image.fromarray(np.ascontiguousarray(images[row, ..., first : first + 3]))
        resized[row, ..., first : first + 3] = np.asarray(one.resize((size, size), Image.Resampling.BICUBIC))
    return resized


def augment(images: Pixels, seeds: NDArray[np.uint64], size: int) -> Pixels:
    """(B, S, S, 3) → (B, size, size, 3): each row turned, zoomed, shifted and recoloured by its seed.

    A row's result depends on its pixels and its seed only, not on the rows beside it.
    """
    augmented = np.empty((len(images), size, size, 3), np.uint8)
    for row, (one, seed) in enumerate(zip(images, seeds.tolist(), strict=True)):
        augmented[row] = _augment_one(one, seed, size)
    return augmented


def augment_marked(
    images: Pixels, masks: NDArray[np.uint8], seeds: NDArray[np.uint64], size: int
) -> tuple[Pixels, NDArray[np.uint8]]:
    """(B, S, S, 3N) and what is marked there (B, S, S) → (B, size, size, 3N) and (B, size, size): each row
    mirrored, turned, zoomed, shifted, bent (Simard et al. 2003) and recoloured by its seed.

    A row is N pictures of one thing, which stay in register and are each recoloured by themselves. What is
    beyond the edge is its mirror image: a bar of one colour would be told from what is marked.
    """
    from scipy.ndimage import map_coordinates  # only training augments

    pictures = np.empty((len(images), size, size, images.shape[-1]), np.uint8)
    marks = np.empty((len(images), size, size), np.uint8)
    for row, seed in enumerate(seeds.tolist()):
        random = np.random.default_rng(seed)
        places = _bent(random, images.shape[1], size)
        channels = [
            map_coordinates(one, places, order=1, mode="mirror") for one in images[row].transpose(2, 0, 1)
        ]
        for first in range(0, len(channels), 3):
            one = np.stack(channels[first : first + 3], axis=-1)
            changed = _recolour(one, *random.uniform(1 - MAX_COLOUR, 1 + MAX_COLOUR, 3))
            pictures[row, ..., first : first + 3] = changed
        marks[row] = map_coordinates(masks[row], places, order=0, mode="mirror")
    return pictures, marks


def _bent(random: np.random.Generator, stored: int, size: int) -> NDArray[np.float32]:
    """For each pixel of a picture of `size`, its place (row, column) in the one of `stored`: (2, H, W)."""
    angle = random.uniform(-MAX_TURN_RAD, MAX_TURN_RAD)
    zoom = math.exp(random.uniform(math.log(ZOOM[0]), math.log(ZOOM[1])))
    shift = random.uniform(-MAX_SHIFT, MAX_SHIFT, 2) * stored
    mirrored = random.choice((-1.0, 1.0), 2)
    coarse = random.normal(0, MAX_BEND * stored, (2, BENDS, BENDS)).astype(np.float32)
    bends = [Image.fromarray(one).resize((size, size), Image.Resampling.BICUBIC) for one in coarse]
    scale = stored / size / zoom
    turned = np.array(((math.cos(angle), -math.sin(angle)), (math.sin(angle), math.cos(angle)))) * scale
    grid = np.indices((size, size), np.float32) - (size - 1) / 2
    placed = np.einsum("ij,jhw->ihw", turned * mirrored, grid) + ((stored - 1) / 2 + shift)[:, None, None]
    return (placed + np.stack([np.asarray(one) for one in bends])).astype(np.float32)


def _augment_one(pixels: Pixels, seed: int, size: int) -> Pixels:
    random = np.random.default_rng(seed)
    angle = random.uniform(-MAX_ROTATION_RAD, MAX_ROTATION_RAD)
    shear = random.uniform(-MAX_SHEAR, MAX_SHEAR)
    zoom = math.exp(random.uniform(math.log(ZOOM[0]), math.log(ZOOM[1])))
    shift = random.uniform(-MAX_SHIFT, MAX_SHIFT, 2) * size
    brightness, contrast, saturation = random.uniform(1 - MAX_COLOUR, 1 + MAX_COLOUR, 3)

    # Pillow maps output to input: x_in = scale · R · (x_out - middle_out - shift) + middle_in.
    scale = len(pixels) / size / zoom
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    rows = ((cos, cos * shear - sin), (sin, sin * shear + cos))
    middle_out, middle_in = size / 2, len(pixels) / 2
    matrix: list[float] = []
    for a, b in rows:
        matrix += [a, b, middle_in - a * (middle_out + shift[0]) - b * (middle_out + shift[1])]
    turned = Image.fromarray(pixels).transform(
        (size, size),
        Image.Transform.AFFINE,
        matrix,
        Image.Resampling.BILINEAR,
        fillcolor=WHITE,
    )
    return _recolour(np.asarray(turned), brightness, contrast, saturation)


def _recolour(pixels: NDArray[Any], brightness: float, contrast: float, saturation: float) -> Pixels:
    """Scale saturation around grey, contrast around the mean, then brightness."""
    colour = pixels.astype(np.float32)
    grey = colour @ np.array([0.299, 0.587, 0.114], np.float32)  # Rec. 601 luma
    colour = grey[..., None] + (colour - grey[..., None]) * np.float32(saturation)
    colour = (colour - grey.mean()) * np.float32(contrast) + grey.mean()
    return np.clip(colour * np.float32(brightness), 0, 255).astype(np.uint8)


def _read_plain_jpeg(data: bytes, size: int, fit: Fit) -> Picture | None:
    """Decode a whole, upright YCbCr JPEG as Pillow would, to the last bit, but without its overhead.

    None for any other picture, and for one that is broken: Pillow finds out how.
    """
    import simplejpeg

    if not data.startswith(JPEG_MAGIC) or EXIF in data[:EXIF_BYTES]:  # it might have to be turned
        return None
    try:
        found_height, found_width, colours, _ = simplejpeg.decode_jpeg_header(data)
        height, width = int(found_height), int(found_width)
        if colours != "YCbCr" or height * width > MAX_PIXELS:
            return None
        # Pillow shrinks by 8, 4 or 2, to no less than asked for.
        reach = _reach(width, height, fit)
        factor = min(side // math.ceil(side * 2 * size / reach) for side in (height, width))
        shrink = next(step for step in (8, 4, 2, 1) if step <= max(1, factor))
        least_height, least_width = math.ceil(height / shrink), math.ceil(width / shrink)
        pixels = simplejpeg.decode_jpeg(data, min_height=least_height, min_width=least_width, min_factor=1)
    except ValueError:
        return None
    if pixels.shape != (size, size, 3):
        pixels = _square(Image.fromarray(pixels), size, fit)
    return Picture(pixels, width, height)


def is_vector(data: bytes) -> bool:
    """Whether it can only be an SVG, which has no size in pixels."""
    return data[:2] == GZIP_MAGIC or data[:256].lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"<"


def _open(data: bytes, size: int | None, fit: Fit = "letterbox") -> tuple[Image.Image, tuple[int, int]]:
    """Open and fully decode a raster picture; also gives its size before any shrinking.

    Args:
        data: encoded picture.
        size: side of the square that it will become; None to shrink nothing.
        fit: how.
    """
    try:
        picture = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise Refused("image-too-large", str(error)) from error
    except UnidentifiedImageError as error:
        if data.startswith((b"\x89PNG", b"\xff\xd8\xff", b"GIF8")):
            raise Refused("truncated-image", f"the picture ends after {len(data)} bytes") from error
        raise Refused(
            "not-an-image", f"the content is no known picture: it starts with {data[:12]!r}"
        ) from error
    except Exception as error:  # Pillow's format plugins raise anything on hostile bytes
        raise _broken(error) from error
    original = picture.size
    if original[0] * original[1] > MAX_PIXELS:
        raise Refused("image-too-large", f"{original[0]}x{original[1]} pixels are over {MAX_PIXELS:,}")
    try:
        if size is not None:
            # A JPEG shrinks while it is decoded, to no less than twice what it will become.
            reach = _reach(*original, fit)
            width, height = (math.ceil(side * 2 * size / reach) for side in original)
            picture.draft("RGB", (width, height))
        picture.load()
        if picture.getexif().get(ExifTags.Base.Orientation) in SIDEWAYS:
            original = (original[1], original[0])
        return ImageOps.exif_transpose(picture), original
    except Exception as error:
        raise _broken(error) from error


def _broken(error: Exception) -> Refused:
    """Cut short or garbled; Pillow says which in words only."""
    if "truncated" in str(error).lower():
        return Refused("truncated-image", f"the picture is cut short: {error}")
    return Refused("corrupt-image", f"the picture can't be decoded: {error}")


def _svg_text(data: bytes) -> str:
    try:
        if data[:2] == GZIP_MAGIC:
            data = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(data, MAX_SVG_BYTES + 1)
        if len(data) > MAX_SVG_BYTES:
            raise Refused("image-too-large", f"the SVG is over {MAX_SVG_BYTES:,} bytes")
        return data.decode("utf-8-sig")
    except (UnicodeDecodeError, zlib.error) as error:
        raise Refused("undecodable-svg", f"the SVG can't be read: {error}") from error


def _at_scale(svg: str, pixels_per_mm: float) -> tuple[str, int, int]:
    """An SVG with the size in pixels that the lengths of its root ask for (SVG 2, section 8.2), and that
    size. Its viewBox does the rest; without one it is stretched, which rounds its own size to pixels first.
    """
    root = _SVG_ROOT.search(svg)
    lengths = dict(_SVG_LENGTH.findall(root[0])) if root else {}
    sides: list[float] = []
    for name in ("width", "height"):
        found = _LENGTH.fullmatch(lengths.get(name, ""))
        if found is None or not found[2]:
            raise Refused("no-size", f"the SVG's {name} is in no unit of length, such as 80mm")
        sides.append(float(found[1]) * MM_PER_UNIT[found[2]] * pixels_per_mm)
    width, height = (max(1, round(side)) for side in sides)
    if width * height > MAX_PIXELS:
        raise Refused("image-too-large", f"at this scale {width}x{height} pixels are over {MAX_PIXELS:,}")
    if root and "viewBox" in root[0]:
        sized = _SVG_LENGTH.sub("", root[0])
        svg = svg.replace(root[0], sized.replace("<svg", f'<svg width="{width}" height="{height}"', 1), 1)
    return svg, width, height


def _rasterise(data: bytes, size: int) -> Image.Image:
    """Render an SVG so that it fits into a square."""
    return _render(_svg_text(data), size, size)


def _render(svg: str, width: int, height: int) -> Image.Image:
    """Render an SVG so that it fits into a rectangle. Without system fonts: they differ between machines."""
    import resvg_py

    try:
        rendered = resvg_py.svg_to_bytes(
            svg_string=svg, width=width, height=height, dpi=CSS_DPI, skip_system_fonts=True
        )
        picture = Image.open(io.BytesIO(bytes(rendered)))
        picture.load()
    except Refused:
        raise
    except (ValueError, OSError, Image.DecompressionBombError) as error:
        raise Refused("undecodable-svg", f"the SVG can't be rendered: {error}") from error
    return picture


def _square(picture: Image.Image, size: int, fit: Fit) -> Pixels:
    """Composite on a background; fit into the square and centre, or crop."""
    return _squared(*_flatten(picture), size, fit)


def _squared(flat: Image.Image, background: tuple[int, int, int], size: int, fit: Fit) -> Pixels:
    """Fit into the square and centre, or crop."""
    if fit == "letterbox":
        return _fit(flat, background, size)
    side = min(flat.size)
    left, top = ((length - side) / 2 for length in flat.size)
    box = (left, top, left + side, top + side)
    return np.asarray(flat.resize((size, size), Image.Resampling.LANCZOS, box, reducing_gap=3.0))


def _reach(width: int, height: int, fit: Fit) -> int:
    """The side that becomes the square's."""
    return max(width, height) if fit == "letterbox" else min(width, height)


def _flatten(picture: Image.Image) -> tuple[Image.Image, tuple[int, int, int]]:
    """Composite on white, or on grey what is drawn in white and would vanish; also gives that colour."""
    if picture.mode.startswith("I") or picture.mode == "F":
        # Integers are taken as 16 bits unless there are larger ones; real numbers have a scale of their own.
        deep = np.maximum(np.nan_to_num(np.asarray(picture, np.float32)), 0)
        least = np.finfo(np.float32).tiny if picture.mode == "F" else 65535.0
        picture = Image.fromarray((deep / max(float(deep.max()), least) * 255).astype(np.uint8))
    if picture.mode == "RGB":
        return picture, WHITE
    layered = picture.convert("RGBA")
    on_white = _lay(layered, WHITE)
    if on_white.getcolors(1) is None or layered.getchannel("A").getbbox() is None:
        return on_white, WHITE
    return _lay(layered, GREY), GREY


def _fit(
    picture: Image.Image,
    background: tuple[int, int, int],
    size: int,
    resampling: Image.Resampling = Image.Resampling.LANCZOS,
) -> Pixels:
    """Fit into the square and centre."""
    width, height = fitted(*picture.size, size)
    square = Image.new("RGB", (size, size), background)
    resized = picture.resize((width, height), resampling, reducing_gap=3.0)
    square.paste(resized, ((size - width) // 2, (size - height) // 2))
    return np.asarray(square)


def fitted(width: int, height: int, size: int) -> tuple[int, int]:
    """What fits into the square: its longer side is `size`."""
    scale = size / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _lay(layered: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    below = Image.new("RGBA", layered.size, (*background, 255))
    return Image.alpha_composite(below, layered).convert("RGB")
