"""Rendering the layers of boards, and composing photographs of them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from eagleray.pipelines.media import boards
from eagleray.pipelines.media.boards import MARGIN_MM, render
from eagleray.pipelines.quarantine import Refused

from .. import board_files
from ..board_files import HEIGHT_MM, HOLE_MM, PADS_MM, PLANE_MM, TRACES_MM, WIDTH_MM

SCALE = 10


def files(**changed: list[bytes]) -> dict:
    given = {
        "outline": [board_files.outline()],
        "copper": [board_files.copper()],
        "silkscreen": [board_files.silkscreen()],
        "drill": [board_files.drill()],
    }
    return given | changed


def pixel(x_mm: float, y_mm: float) -> tuple[int, int]:
    """Row and column of a point."""
    return round((HEIGHT_MM + MARGIN_MM - y_mm) * SCALE), round((x_mm + MARGIN_MM) * SCALE)


def test_layers_lie_where_their_files_say():
    found = render(files(), False, SCALE)
    assert found.board.shape == pytest.approx(
        [(HEIGHT_MM + 2 * MARGIN_MM) * SCALE, (WIDTH_MM + 2 * MARGIN_MM) * SCALE], abs=2
    )
    assert found.board.sum() / SCALE**2 == pytest.approx(WIDTH_MM * HEIGHT_MM, rel=0.02)
    assert ndimage.label(found.copper)[1] == len(TRACES_MM) + 1
    for y in TRACES_MM:
        assert found.copper[pixel(8, y)]
        assert found.copper[pixel(8, y)[0] - 6 : pixel(8, y)[0], pixel(8, y)[1]].sum() <= 3  # 0.3 mm wide
    left, bottom, right, top = PLANE_MM
    (plane_top, plane_left), (plane_bottom, plane_right) = pixel(left, top), pixel(right, bottom)
    assert found.copper[plane_top + 1 : plane_bottom - 1, plane_left + 1 : plane_right - 1].all()
    assert found.holes[pixel(*HOLE_MM)]
    assert found.holes.sum() / SCALE**2 == pytest.approx(np.pi / 4, rel=0.1)
    assert found.silkscreen[pixel(11, 7.5)]
    assert not found.openings.any()


def test_from_below_a_board_is_mirrored():
    above, below = render(files(), False, SCALE), render(files(), True, SCALE)
    for one, other in zip(above, below, strict=True):
        assert np.array_equal(one, other[:, ::-1])


def test_slots_are_no_board_and_boards_in_slots_are():
    slot, island = board_files.rectangle(4, 3, 12, 9), board_files.rectangle(6, 5, 8, 7)
    found = render(files(outline=[board_files.outline(slot, island)]), False, SCALE)
    assert [bool(found.board[pixel(x, 6)]) for x in (2, 5, 7, 10, 14)] == [True, False, True, False, True]
    assert not found.copper[pixel(10, 4.4)]  # no copper hangs in a slot


def test_a_line_of_no_width_is_an_outline_too():
    thin = board_files.outline().replace(b"C,0.1", b"C,0")
    assert render(files(outline=[thin]), False, SCALE).board.sum() > WIDTH_MM * HEIGHT_MM * SCALE**2 * 0.95


def test_without_an_outline_the_board_is_a_rectangle_around_its_copper():
    found = render(files(outline=[]), False, SCALE)
    rows, columns = (np.flatnonzero(found.board.any(axis=axis)) for axis in (1, 0))
    assert found.board[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    assert len(columns) / SCALE == pytest.approx(PADS_MM[1] - PADS_MM[0] + 0.6 + 0.6, abs=0.2)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [({"copper": [b"G99 nonsense*\nX1Y1D01*"]}, "corrupt-layer"), ({"drill": [b"what"]}, "corrupt-layer"),
     ({"outline": [], "copper": []}, "empty-board")],
)  # fmt: skip
def test_what_is_no_layer_is_refused(changed, reason):
    with pytest.raises(Refused) as refused:
        render(files(**changed), False, SCALE)
    assert refused.value.reason == reason


def test_a_board_of_too_many_pixels_is_refused():
    with pytest.raises(Refused, match="pixels are over"):
        render(files(), False, 1000)


def test_misalignment_moves_what_lies_on_the_copper_only():
    layers = render(files(soldermask=[board_files.copper()]), False, SCALE)
    moved = layers.misaligned((2, -3), (0, 4))
    assert np.array_equal(moved.openings[2:, :-3], layers.openings[:-2, 3:])
    assert np.array_equal(moved.silkscreen[:, 4:], layers.silkscreen[:, :-4])
    assert moved.copper is layers.copper
    assert moved.board is layers.board


def test_a_pixel_shows_what_lies_on_top():
    bits = np.array([[bool(n & 1 << bit) for n in range(64)] for bit in range(6)]).reshape(6, 1, 64)
    board, copper, openings, silkscreen, holes, bare = bits
    layers = boards.Layers(board, copper, openings, silkscreen, holes)
    shown = boards.materials(layers, copper, bare)[0]
    for n, material in enumerate(shown):
        on, metal, opened, printed, drilled, scratched = (bool(n & 1 << bit) for bit in range(6))
        if drilled or not on:
            expected = boards.BESIDE
        elif opened:
            expected = boards.FINISH if metal else boards.SUBSTRATE
        elif scratched:
            expected = boards.COPPER if metal else boards.SUBSTRATE
        elif printed:
            expected = boards.SILKSCREEN
        else:
            expected = boards.MASKED_COPPER if metal else boards.MASKED_SUBSTRATE
        assert material == expected


def test_every_material_of_a_board_can_be_told_from_the_others_in_every_colour():
    for mask in boards.SOLDER_MASKS:
        for finish in boards.FINISHES:
            colours = boards.palette(mask, finish, np.random.default_rng(0), 0)
            colours = np.delete(colours, boards.BESIDE, 0)
            away = np.abs(colours[:, None] - colours[None]).max(-1) + 255 * np.eye(6)
            assert away.min() > 12


def test_without_light_and_blur_a_picture_has_the_materials_colours():
    random = np.random.default_rng(0)
    shown = random.integers(0, 7, (30, 40)).astype(np.uint8)
    colours = boards.palette("green", "gold", random, 0)
    flat = np.zeros((30, 40), np.bool_)
    picture = boards.photograph(shown, flat, colours, random, 0, 0, SCALE)
    assert np.abs(picture - colours[shown]).max() <= 1
