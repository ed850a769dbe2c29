"""Pictures."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from contextlib import suppress
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from eagleray.pipelines.media import image
from eagleray.pipelines.quarantine import Refused


def encode(picture: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, file_format, **options)
    return buffer.getvalue()


def noise(size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], channels), np.uint8)
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)


def test_what_is_transparent_becomes_white():
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    clear.putpixel((4, 4), (255, 0, 0, 255))
    pixels = image.decode(encode(clear), 8)
    assert (pixels[0, 0] == 255).all()
    assert tuple(pixels[4, 4]) == (255, 0, 0)


def test_a_white_drawing_on_nothing_stays_visible():
    drawing = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    drawing.paste((255, 255, 255, 255), (2, 2, 6, 6))
    pixels = image.decode(encode(drawing), 8)
    assert pixels[4, 4].min() > pixels[0, 0].max()


@pytest.mark.parametrize(("size", "empty"), [((40, 10), "rows"), ((10, 40), "columns")])
def test_letterboxing_keeps_the_aspect_and_centres(size, empty):
    pixels = image.decode(encode(Image.new("RGB", size, (0, 0, 0))), 16)
    inked = (pixels < 128).all(axis=2)
    filled = inked.any(axis=1 if empty == "rows" else 0)
    assert np.flatnonzero(filled).tolist() == [6, 7, 8, 9]
    assert inked.any(axis=0 if empty == "rows" else 1).all()


@pytest.mark.parametrize("file_format", ["PNG", "JPEG"])
@pytest.mark.parametrize("size", [(400, 100), (100, 400), (100, 100)])
def test_cropping_takes_the_middle_at_full_size(size, file_format):
    whole = Image.new("RGB", size, (255, 0, 0))
    left, top = ((side - 100) // 2 for side in size)
    whole.paste((0, 0, 255), (left, top, left + 100, top + 100))
    found = image.read(encode(whole, file_format), 32, "crop")
    assert (found.width, found.height) == size
    assert np.abs(found.pixels[2:-2, 2:-2].astype(int) - (0, 0, 255)).max() < 12


def test_a_cropped_jpeg_is_shrunk_no_further_than_twice_its_shorter_side():
    stripes = np.zeros((128, 1024, 3), np.uint8)
    stripes[:, ::4] = 255
    stripes[:, 1::4] = 255
    found = image.decode(encode(Image.fromarray(stripes), "JPEG", quality=95), 128, "crop")
    assert found.std() > 100  # every stripe is there: nothing was shrunk


def test_a_cropped_vector_picture_has_no_bars():
    drawing = (
        b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 30 10"><rect width="30" height="10"/></svg>'
    )
    assert (image.decode(drawing, 16, "crop") < 10).all()


def svg(size: str, body: str = '<rect width="20" height="10" fill="#00f"/>') -> bytes:
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 20 10" {size}>{body}</svg>'.encode()


@pytest.mark.parametrize("size", ['width="20mm" height="10mm"', "width='2cm' height='1e1mm'"])
def test_a_vector_picture_is_rendered_at_a_scale_and_cut(size):
    tiles = list(image.read_tiles(svg(size), 50, 0, 50, pixels_per_mm=10))
    assert [(one.left, one.top) for one in tiles] == [(x, y) for y in (0, 50) for x in (0, 50, 100, 150)]
    assert all((one.pixels == (0, 0, 255)).all() for one in tiles)


def test_a_scale_is_that_of_every_unit():
    for size, expected in {
        'width="1in" height="1in"': (254, 254),
        'width="72pt" height="6pc"': (254, 254),
        'width="96px" height="48px"': (254, 127),
    }.items():
        square = svg(size, '<rect width="20" height="10"/>').replace(b"0 0 20 10", b"0 0 20 20")
        (tile,) = image.read_tiles(square, 500, 0, 16, pixels_per_mm=10)
        assert max(tile.width, tile.height) <= max(expected)


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        ("", "no-size"),
        ('width="100%" height="100%"', "no-size"),
        ('width="20" height="10"', "no-size"),
        ('width="9000mm" height="9000mm"', "image-too-large"),
        ('width="1e99mm" height="1mm"', "image-too-large"),
    ],
)
def test_a_vector_picture_without_a_usable_size_is_refused(size, reason):
    with pytest.raises(Refused) as caught:
        list(image.read_tiles(svg(size), 50, 0, 50, pixels_per_mm=10))
    assert caught.value.reason == reason


def test_svg_in_points_without_a_viewbox_fits_the_square():
    box = b'<rect width="40" height="80"/>'
    drawing = b'<svg xmlns="http://www.w3.org/2000/svg" width="30pt" height="60pt">' + box + b"</svg>"
    pixels = image.decode(drawing, 32)
    assert np.flatnonzero((pixels < 128).all(axis=2).any(axis=0)).tolist() == list(range(8, 24))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_every_mode_decodes_to_the_same_grey(mode):
    grey = Image.new("L", (8, 8), 255)
    grey.paste(0, (0, 0, 4, 8))
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    else:
        picture = grey.convert("RGB").convert(mode)
    pixels = image.decode(encode(picture, "TIFF" if mode == "CMYK" else "PNG"), 8)
    assert np.abs(pixels[:, :3].astype(int)).max() <= 40
    assert pixels[:, 5:].min() >= 215


def test_a_jpeg_is_turned_as_its_exif_says():
    picture = Image.new("RGB", (64, 32), (255, 255, 255))
    picture.paste((0, 0, 0), (0, 0, 32, 32))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90° clockwise
    pixels = image.decode(encode(picture, "JPEG", exif=exif), 32)
    assert pixels[4, 16].max() < 40
    assert pixels[28, 16].min() > 215


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF"])
def test_width_and_height_are_those_of_the_turned_picture(orientation, file_format):
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = image.read(encode(noise((64, 32)), file_format, exif=exif), 32)
    assert (found.width, found.height) == ((64, 32) if orientation < 5 else (32, 64))
    bars = (found.pixels == 255).all(axis=2)
    assert bars[0].all() == (orientation < 5)
    assert bars[:, 0].all() == (orientation >= 5)


@pytest.mark.parametrize("file_format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animated_picture_the_first_frame_is_taken(file_format):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    options = {"lossless": True} if file_format == "WEBP" else {}
    moving = encode(frames[0], file_format, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(moving)).n_frames == 3
    assert (image.decode(moving, 8) == (255, 0, 0)).all()


def test_a_cmyk_jpeg_keeps_its_colours():
    red = Image.new("RGB", (16, 16), (200, 30, 30)).convert("CMYK")
    assert np.abs(image.decode(encode(red, "JPEG"), 16).astype(int) - (200, 30, 30)).max() < 12


@pytest.mark.parametrize(
    ("dtype", "top"), [(np.uint16, 65535), (np.int32, 65535), (np.int32, 2**20), (np.float32, 1.0)]
)
def test_deep_pixels_are_scaled_not_cut(dtype, top):
    ramp = np.linspace(0, top, 16).astype(dtype).repeat(16).reshape(16, 16)
    pixels = image.decode(encode(Image.fromarray(ramp), "TIFF"), 16)
    assert np.abs(pixels[:, 0, 0] - np.linspace(0, 255, 16)).max() <= 1.5


def test_pixels_that_are_no_numbers_are_black():
    odd = np.full((8, 8), 2.0, np.float32)
    odd[:4], odd[4:6] = np.nan, -3
    pixels = image.decode(encode(Image.fromarray(odd), "TIFF"), 8)
    assert (pixels[:6] == 0).all()
    assert (pixels[6:] == 255).all()


def test_decoding_is_idempotent_on_a_square_of_the_right_size():
    pixels = image.decode(encode(noise((24, 24))), 24)
    assert np.array_equal(image.decode(encode(Image.fromarray(pixels)), 24), pixels)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty-image"),
        (b"just words, no picture", "not-an-image"),
        (encode(noise((64, 64)))[:2000], "truncated-image"),
        (encode(noise((64, 64)))[:12], "truncated-image"),
        (encode(noise((64, 64)), "JPEG")[:500], "truncated-image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'><rect", "undecodable-svg"),
        (b"<html><body>an error page</body></html>", "undecodable-svg"),
        (b"\x1f\x8b broken gzip", "undecodable-svg"),
        (b"<svg>\xff\xfe</svg>", "undecodable-svg"),
    ],
)
def test_a_broken_picture_is_refused_with_its_reason(data, reason):
    with pytest.raises(Refused) as refused:
        image.decode(data, 16)
    assert refused.value.reason == reason
    assert str(refused.value)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def huge_png(side: int) -> bytes:
    """A whole PNG of side×side black pixels, of which a thousandth of a byte each is in the file."""
    packer = zlib.compressobj(9)
    rows = bytes((1 + side // 8) * 1000)
    data = b"".join(packer.compress(rows) for _ in range(side // 1000)) + packer.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [9000, 40_000])
@pytest.mark.parametrize(
    "read", [image.decode, lambda data, size: list(image.read_tiles(data, 100, 0, size))]
)
def test_a_picture_of_huge_size_is_refused_from_its_header(side, read):
    whole = huge_png(side)
    assert len(whole) < 300_000
    for data in (whole, whole[:60]):  # of the second there is hardly more than the header
        with pytest.raises(Refused) as refused:
            read(data, 16)
        assert refused.value.reason == "image-too-large"


BOMB = zlib.compress(bytes(200 << 20), 9)


@pytest.mark.parametrize(
    "bomb",
    [
        chunk(b"zTXt", b"Comment\0\0" + BOMB),
        chunk(b"iTXt", b"Comment\0\1\0\0\0" + BOMB),
        chunk(b"iCCP", b"profile\0\0" + BOMB),
        chunk(b"iCCP", b"profile\0\0" + BOMB) * 20,
    ],
    ids=["zTXt", "iTXt", "iCCP", "iCCPs"],
)
def test_what_a_chunk_unpacks_to_never_fills_the_memory(bomb):
    whole = encode(noise((16, 16)))
    tracemalloc.start()
    outcome: object
    try:
        outcome = image.decode(whole[:33] + bomb + whole[33:], 16).shape
    except Refused as refused:
        outcome = refused.reason
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert outcome in ((16, 16, 3), "corrupt-image")
    assert peak_bytes < 16e6


@given(st.integers(1, 90), st.integers(1, 90), st.integers(8, 40), st.data())
@settings(deadline=None, max_examples=60)
def test_tiles_cover_a_picture_whole_and_have_their_overlap(width, height, tile, data):
    overlap = data.draw(st.integers(0, tile - 1))
    whole = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    tiles = list(image.read_tiles(encode(Image.fromarray(whole)), tile, overlap, 2 * tile))
    covered = np.zeros((height, width), np.bool_)
    for one in tiles:
        assert one.width == min(tile, width)
        assert one.height == min(tile, height)
        covered[one.top : one.top + one.height, one.left : one.left + one.width] = True
    assert covered.all()
    lefts = sorted({one.left for one in tiles})
    assert all(before + tile - after >= overlap for before, after in pairwise(lefts))
    assert len(lefts) <= -(-max(1, width - overlap) // (tile - overlap))


def test_a_tile_shows_its_part_of_the_picture():
    whole = noise((64, 48))
    for one in image.read_tiles(encode(whole), 32, 8, 32):
        part = whole.crop((one.left, one.top, one.left + 32, one.top + 32))
        assert np.array_equal(one.pixels, np.asarray(part))


def test_tiles_of_a_drawing_on_nothing_have_one_background():
    drawing = Image.new("RGBA", (32, 16), (0, 0, 0, 0))
    drawing.paste((255, 255, 255, 255), (2, 2, 10, 10))
    left, right = image.read_tiles(encode(drawing), 16, 0, 16)
    assert tuple(left.pixels[0, 0]) == tuple(right.pixels[0, 0]) == image.GREY


@given(st.integers(1, 300), st.integers(1, 300), st.integers(8, 64))
@settings(deadline=None, max_examples=60)
def test_without_its_bars_a_picture_has_its_own_shape(width, height, size):
    black = image.read(encode(Image.new("L", (width, height), 0)), size)
    inside = image.without_bars(black.pixels, black.width, black.height)
    assert (inside == 0).all()
    assert inside.size == (black.pixels == 0).sum()


@given(
    data=st.binary(max_size=200),
    magic=st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"<svg ", b"\xff\xd8\xff"]),
)
@settings(max_examples=200, deadline=None)
def test_no_bytes_raise_anything_but_refused(data, magic):
    with suppress(Refused):
        image.decode(magic + data, 8)


@given(position=st.integers(8, 700), value=st.integers(0, 255))
@settings(max_examples=100, deadline=None)
def test_a_flipped_byte_raises_nothing_but_refused(position, value):
    data = bytearray(encode(noise((16, 16))))
    data[position % len(data)] = value
    with suppress(Refused):
        image.decode(bytes(data), 8)


def test_normalise_maps_bytes_onto_minus_one_to_one_channels_first():
    pixels = np.zeros((1, 2, 2, 3), np.uint8)
    pixels[0, 0, 1] = (255, 51, 0)
    normal = image.normalise(pixels)
    assert normal.shape == (1, 3, 2, 2)
    assert normal[0, :, 0, 1] == pytest.approx([1.0, -0.6, -1.0], abs=1e-6)


def test_augmentation_of_a_row_is_a_function_of_its_seed_alone():
    images = np.stack([np.asarray(noise((20, 20)))] * 3)
    seeds = np.array([1, 2, 1], np.uint64)
    together = image.augment(images, seeds, 16)
    alone = np.concatenate([image.augment(images[i : i + 1], seeds[i : i + 1], 16) for i in range(3)])
    assert np.array_equal(together, alone)
    assert np.array_equal(together[0], together[2])
    assert not np.array_equal(together[0], together[1])


def test_augmentation_keeps_the_picture_in_place_on_average():
    square = np.full((1, 40, 40, 3), 255, np.uint8)
    square[:, 12:28, 12:28] = 0
    seeds = np.arange(400, dtype=np.uint64)
    ink = 255.0 - image.augment(np.repeat(square, 400, 0), seeds, 32).mean(axis=(0, 3))
    rows, columns = np.indices(ink.shape)
    assert (rows * ink).sum() / ink.sum() == pytest.approx(15.5, abs=0.3)
    assert (columns * ink).sum() / ink.sum() == pytest.approx(15.5, abs=0.3)


def test_augmentation_does_not_mirror():
    flag = np.full((1, 40, 40, 3), 255, np.uint8)
    flag[:, 5:35, 5:15] = 0  # all ink on the left
    augmented = image.augment(np.repeat(flag, 200, 0), np.arange(200, dtype=np.uint64), 32).astype(float)
    left, right = (255 - augmented[:, :, :16]).mean((1, 2, 3)), (255 - augmented[:, :, 16:]).mean((1, 2, 3))
    assert (left > right).all()


def test_center_keeps_the_whole_picture():
    framed = np.zeros((1, 36, 36, 3), np.uint8)
    framed[:, 3:-3, 3:-3] = 255
    shrunk = image.center(framed, 24)[0]
    assert shrunk.shape == (24, 24, 3)
    assert shrunk[[0, -1]].max() < 60
    assert shrunk[:, [0, -1]].max() < 60
    assert shrunk[12, 12].min() == 255


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("size", [(48, 48), (300, 200), (1001, 777), (7, 3)])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("fit", ["letterbox", "crop"])
def test_a_plain_jpeg_is_decoded_as_pillow_does(size, subsampling, progressive, fit, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (size[1] // 3 + 1, size[0] // 3 + 1, 3), np.uint8)
    buffer = io.BytesIO()
    picture = Image.fromarray(noise).resize(size)
    picture.save(buffer, "JPEG", quality=80, subsampling=subsampling, progressive=progressive)
    ours = image.read(buffer.getvalue(), 48, fit)
    monkeypatch.setattr(image, "_read_plain_jpeg", lambda data, size, fit: None)
    pillow = image.read(buffer.getvalue(), 48, fit)
    assert np.array_equal(ours.pixels, pillow.pixels)
    assert (ours.width, ours.height) == (pillow.width, pillow.height) == size
