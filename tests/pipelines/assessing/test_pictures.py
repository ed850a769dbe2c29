"""Findings in pictures: what is marked comes out where it is, whatever the windows."""

from __future__ import annotations

import numpy as np
import pytest

from eagleray.pipelines.assessing.pictures import PictureAssessor, findings, told_of
from eagleray.pipelines.assessing.registration import moved
from eagleray.pipelines.assessing.spec import NotAssessable, PictureAssessment
from eagleray.pipelines.bundle import Marking

from .bundles import FakeBundle, bright

MARKING = Marking(size=32, findings=("scratch",), threshold=0.5, pixels_per_mm=10)


def picture() -> np.ndarray:
    """Dark, with a light rectangle, a fainter oblique line, and a speck."""
    pixels = np.full((70, 90, 3), 40, np.uint8)
    pixels[10:14, 60:80] = 250
    for step in range(20):
        pixels[30 + step, 5 + step : 7 + step] = 200
    pixels[60:62, 40:42] = 255
    return pixels


def assess(pixels: np.ndarray, **fields) -> PictureAssessment:
    found = PictureAssessor(FakeBundle(MARKING.model_copy(update=fields), bright), checks=()).assess(pixels)
    assert isinstance(found, PictureAssessment)
    return found


def test_what_is_marked_is_found_with_its_size_and_the_likeliest_first():
    found = assess(picture())
    assert (found.verdict, found.width, found.height) == ("defective", 90, 70)
    first, second = found.findings
    assert (first.left, first.top, first.width, first.height) == (60, 10, 20, 4)
    assert (first.label, first.area_px, first.area_mm2) == ("scratch", 80, pytest.approx(0.8))
    assert first.score == pytest.approx(250 / 255)
    assert first.length_mm == pytest.approx(np.hypot(20, 4) / 10)
    assert (second.left, second.top, second.width, second.height) == (5, 30, 21, 20)
    assert second.score == pytest.approx(200 / 255)
    assert second.length_mm == pytest.approx(np.hypot(20, 21) / 10)


@pytest.mark.parametrize(("size", "share", "batch"), [(16, 0.75, 1), (48, 0.0, 7), (128, 0.5, 3)])
def test_windows_change_nothing_of_what_pixels_say(size, share, batch):
    marking = MARKING.model_copy(update={"size": size})
    bundle = FakeBundle(marking, bright)
    found = PictureAssessor(bundle, (), share, batch).assess(picture())
    assert found == assess(picture())
    assert max(bundle.batches) <= batch


def layout(seed: int) -> np.ndarray:
    random, pixels = np.random.default_rng(seed), np.full((120, 160, 3), 40, np.uint8)
    for _ in range(40):
        row, column = random.integers(90), random.integers(130)
        pixels[row : row + 4, column : column + int(random.integers(8, 30))] = random.integers(90, 250)
    return pixels


def compared(pixels: np.ndarray, reference: np.ndarray | None):
    marking = MARKING.model_copy(update={"compares": True})
    bundle = FakeBundle(marking, lambda differs: np.abs(differs[:, 1:2]) / 2)
    return PictureAssessor(bundle, checks=()).assess(pixels, reference)


def test_what_differs_from_the_reference_is_found_wherever_that_lies():
    broken = layout(1)
    broken[50:58, 60:64] = 255 - broken[50:58, 60:64]
    broken[50:58, 60:64][broken[50:58, 60:64] < 200] = 255
    for shift in ((0, 0), (3, -5)):
        found = compared(broken, moved(layout(1), *shift))
        assert isinstance(found, PictureAssessment)
        inner = [one for one in found.findings if 8 < one.left < 140 and 8 < one.top < 100]
        assert [(one.left, one.top, one.width, one.height) for one in inner] == [(60, 50, 4, 8)]
    assert compared(layout(1), layout(1)).verdict == "normal"


@pytest.mark.parametrize(
    ("reference", "reason"),
    [(None, "no-reference"), (layout(1)[:100], "other-size"), (layout(2), "unknown-board")],
)
def test_nothing_is_said_of_a_picture_that_can_not_be_compared(reference, reason):
    found = compared(layout(1), reference)
    assert isinstance(found, NotAssessable)
    assert found.reason == reason


def test_a_picture_in_which_nothing_is_marked_is_normal():
    found = assess(picture() // 4)
    assert (found.verdict, found.findings) == ("normal", ())


def test_without_a_scale_nothing_is_said_in_millimetres():
    first = assess(picture(), pixels_per_mm=None).findings[0]
    assert (first.length_mm, first.area_mm2, first.area_px) == (None, None, 80)


def test_a_piece_is_of_what_is_likely_to_be_anything_and_called_what_most_of_it_is():
    likely = np.zeros((2, 20, 20), np.float32)
    likely[0, 2:5, 2:5], likely[1, 9:13, 9:13] = 0.6, 0.9
    likely[:, 15:18, 2:5] = [[[0.3]], [[0.25]]]  # neither alone, but anything
    found = findings(likely, ("open", "short"), 0.5)
    assert [(one.label, one.area_px) for one in found] == [("short", 16), ("open", 9), ("open", 9)]
    assert found[2].score == pytest.approx(0.55)
    told = told_of(likely, 0.5)
    assert [told[3, 3], told[10, 10], told[16, 3], told[0, 0]] == [1, 2, 1, 0]


def test_what_is_smaller_is_no_finding():
    likely = np.zeros((1, 9, 9), np.float32)
    likely[0, 2:4, 2:4], likely[0, 7, 7] = 0.6, 0.7
    assert [one.area_px for one in findings(likely, ("open",), 0.5, None, 5)] == []
    told = findings(likely, ("anomaly",), 0.5, 10, 1)
    assert [(one.area_px, one.length_mm) for one in told] == [
        (1, pytest.approx(0.1 * 2**0.5)),
        (4, pytest.approx(0.2 * 2**0.5)),
    ]


def test_the_model_is_not_asked_about_a_picture_that_fails_a_check():
    bundle = FakeBundle(MARKING, bright)
    found = PictureAssessor(bundle).assess(np.zeros((70, 90, 3), np.uint8))
    assert isinstance(found, NotAssessable)
    assert found.reason == "too-dark"
    assert bundle.batches == []
