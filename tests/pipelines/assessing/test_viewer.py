"""A page shows each finding where it lies, says what it is not, and loads nothing."""

from __future__ import annotations

import base64
import io
import re
from hashlib import sha256

import numpy as np
import pytest
from PIL import Image
from selectolax.lexbor import LexborHTMLParser as HTMLParser

from eagleray.pipelines.assessing.spec import NOTICE, VolumeAssessment, VolumeFinding
from eagleray.pipelines.assessing.viewer import CIRCLE, ROOM_MM, SHOWN, circled, viewer
from eagleray.pipelines.media.volumes import Volume

SPACING = np.array([2.5, 0.5, 1.0])
SHAPE = (8, 60, 40)
LPS = np.eye(3)[::-1]
MIRRORED = LPS * [[1], [1], [-1]]
MIDDLE = (5, 20, 30)
"""Of the finding: slice, row and column."""


def scan(direction: np.ndarray = LPS) -> Volume:
    voxels = np.full(SHAPE, -1000, np.int16)
    voxels[MIDDLE] = 400
    return Volume(voxels, SPACING, np.array([10.0, -20.0, 30.0]), direction)


def finding(volume: Volume, label: str = "nodule") -> VolumeFinding:
    x, y, z = (volume.origin_mm + (np.array(MIDDLE) * SPACING) @ volume.direction).tolist()
    return VolumeFinding(label=label, score=0.876, x_mm=x, y_mm=y, z_mm=z, diameter_mm=6.0, slice=MIDDLE[0])


def assessment(*findings: VolumeFinding) -> VolumeAssessment:
    return VolumeAssessment(findings=findings, spacing_mm=(2.5, 0.5, 1.0), slices=SHAPE[0])


@pytest.mark.parametrize("direction", [LPS, MIRRORED])
def test_a_circle_is_around_its_finding(direction):
    volume = scan(direction)
    pixels = np.asarray(circled(volume, finding(volume))).astype(int)
    spot = np.argwhere(pixels.min(axis=2) > 150).mean(axis=0)
    circle = np.argwhere((pixels == CIRCLE).all(axis=2))
    np.testing.assert_allclose((circle.min(axis=0) + circle.max(axis=0)) / 2, spot, atol=1.5)
    height, width, _ = pixels.shape
    assert height / width == pytest.approx(30 / 40, rel=0.01)  # pixels are square
    reach_mm = np.ptp(circle, axis=0) / 2 / (width / 40)
    np.testing.assert_allclose(reach_mm, 3 + ROOM_MM, atol=0.3)


def test_a_page_tells_what_is_found_after_saying_what_it_is_not():
    volume = scan()
    page = HTMLParser(viewer(volume, assessment(finding(volume), finding(volume, "a<b>&c"))))
    body = page.css_first("body")
    assert body is not None
    text = body.text(separator=" ")
    assert text.strip().startswith(NOTICE)
    assert len(page.css("figure img")) == 2
    place = "x 40.0, y -10.0, z 42.5 mm (LPS)"
    for said in ("2 findings", "1. nodule", "2. a<b>&c", "6 of 8", place, "6.0 mm", "0.88"):
        assert said in text


def test_of_many_findings_the_likeliest_are_shown_and_the_others_counted():
    volume = scan()
    html = viewer(volume, assessment(*[finding(volume)] * (SHOWN + 4)))
    assert len(HTMLParser(html).css("img")) == SHOWN
    assert f"{SHOWN + 4} findings, the {SHOWN} likeliest of which are shown" in html


def test_pictures_are_within_and_nothing_is_loaded():
    volume = scan()
    html = viewer(volume, assessment(finding(volume)))
    page = HTMLParser(html)
    assert not page.css("script, link, iframe, object, embed, [onload], [onclick], [style], [href]")
    sources = [one.attributes["src"] or "" for one in page.css("[src]")]
    assert len(sources) == 1
    kind, _, content = sources[0].partition(",")
    assert kind == "data:image/png;base64"
    shown = Image.open(io.BytesIO(base64.b64decode(content)))
    np.testing.assert_array_equal(np.asarray(shown), np.asarray(circled(volume, finding(volume))))
    assert not re.search(r"https?:|url\(|@import", html)


def test_the_policy_allows_its_own_style_and_no_other():
    html = viewer(scan(), assessment())
    found = re.search(r"<style>(.*)</style>", html, re.DOTALL)
    assert found is not None
    digest = base64.b64encode(sha256(found[1].encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'" in html


def test_where_nothing_is_found_that_is_said_over_a_slice():
    page = HTMLParser(viewer(scan(), assessment()))
    heading = page.css_first("h1")
    assert heading is not None
    assert heading.text() == "Nothing was found"
    assert len(page.css("img")) == 1


@pytest.mark.parametrize(("direction", "side"), [(LPS, "right"), (MIRRORED, "left")])
def test_it_says_where_the_patients_left_is(direction, side):
    assert f"left is on the {side}" in viewer(scan(direction), assessment())
