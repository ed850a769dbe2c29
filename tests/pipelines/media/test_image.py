"""Pictures."""

from __future__ import annotations

import io
from contextlib import suppress

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


def test_a_picture_of_huge_size_is_refused_before_it_is_decoded():
    with pytest.raises(Refused) as refused:
        image.decode(encode(Image.new("1", (9000, 9000))), 16)
    assert refused.value.reason == "image-too-large"


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
def test_a_plain_jpeg_is_decoded_as_pillow_does(size, subsampling, progressive, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (size[1] // 3 + 1, size[0] // 3 + 1, 3), np.uint8)
    buffer = io.BytesIO()
    picture = Image.fromarray(noise).resize(size)
    picture.save(buffer, "JPEG", quality=80, subsampling=subsampling, progressive=progressive)
    ours = image.read(buffer.getvalue(), 48)
    monkeypatch.setattr(image, "_read_plain_jpeg", lambda data, size: None)
    pillow = image.read(buffer.getvalue(), 48)
    assert np.array_equal(ours.pixels, pillow.pixels)
    assert (ours.width, ours.height) == (pillow.width, pillow.height) == size
