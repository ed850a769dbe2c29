"""Patches of slices show what the volume has there, and masks what is marked."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from eagleray.pipelines.media.volumes import Volume
from eagleray.pipelines.operator import check_chain
from eagleray.pipelines.operators.slices import SLICE, SliceVolumeSpec, slice_volume
from eagleray.pipelines.operators.volume import WINDOW, WindowVolumeSpec
from eagleray.pipelines.quarantine import Refused
from eagleray.pipelines.spec import Preparation

SHAPE = (10, 50, 60)
LABELS = ("nodule", "lesion", "lung")


def row(voxels: np.ndarray | None = None, marks: np.ndarray | None = None, **columns: Any) -> dict[str, Any]:
    """A record whose voxels tell their slice (HU 100 z), and the column (x)."""
    if voxels is None:
        z, _, x = np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij")
        voxels = (100 * z + x - 1000).astype(np.int16)
    volume = Volume(voxels, np.array([2.0, 1.0, 1.0]), np.array([5.0, 6.0, 7.0]), np.eye(3)[::-1])
    regions = marks is not None and {"labels": list(LABELS), "voxels": marks.astype(np.uint8).tobytes()}
    return {"id": "a", "group": "p", "volume": volume.row("CT"), "regions": regions or None, **columns}


def marked() -> np.ndarray:
    marks = np.zeros(SHAPE, np.uint8)
    marks[:, 5:45, 5:55] = 3
    marks[4:6, 20:24, 30:34] = 1
    marks[8, 10:14, 10:14] = 2
    return marks


def apply(given: dict[str, Any], side: int = 16, **fields: Any) -> list[dict[str, Any]]:
    spec = SliceVolumeSpec(**fields)
    found = slice_volume(spec, Preparation(image_size=8, stored_image_size=side))(given, None)  # pyright: ignore
    assert isinstance(found, list)
    return found


def pixels(patch: dict[str, Any], side: int = 16) -> np.ndarray:
    return np.frombuffer(patch["image"]["pixels"], np.uint8).reshape(side, side, 3)


def mask(patch: dict[str, Any]) -> np.ndarray:
    opened = Image.open(io.BytesIO(patch["mask"]["content"]))
    assert opened.mode == "L"
    return np.asarray(opened)


def place(patch: dict[str, Any]) -> tuple[int, ...]:
    address, _, where = patch["image"]["address"].partition("#")
    assert address == "CT"
    return tuple(int(one.partition("=")[2]) for one in where.split(","))


def test_colours_are_the_slices_around_windowed():
    for patch in apply(row(), keep="all", gap=2, low_hu=-1000, high_hu=20):
        depth, top, left = place(patch)
        assert (patch["image"]["width"], patch["image"]["height"]) == (16, 16)
        assert (top % 16, left % 16) in {(0, 0), (0, 12), (2, 0), (2, 12)}  # the last ones end at the edge
        for colour, shown in enumerate((max(depth - 2, 0), depth, min(depth + 2, 9))):
            values = (100 * shown + left + np.arange(16)) / 1020 * 255
            assert np.array_equal(pixels(patch)[3, :, colour], np.rint(np.clip(values, 0, 255)))


def test_all_patches_cover_the_volume_once_with_a_stride_of_their_side():
    for fields in ({}, {"stride": 7}, {"size_px": 30, "slice_step": 3}):
        patches = apply(row(), keep="all", **fields)
        size, step = fields.get("size_px", 16), fields.get("slice_step", 1)
        seen = np.zeros(SHAPE, int)
        for patch in patches:
            depth, top, left = place(patch)
            assert top >= 0
            assert left >= 0
            seen[depth, top : top + size, left : left + size] += 1
        assert len({place(patch) for patch in patches}) == len(patches)
        assert (seen[::step] > 0).all()
        assert not np.delete(seen, np.arange(0, 10, step), 0).any()


def test_masks_show_the_labels_asked_for_and_name_the_category():
    given = row(marks=marked())
    for patch in apply(given, keep="all", labels=("lesion", "nodule")):
        depth, top, left = place(patch)
        there = marked()[depth, top : top + 16, left : left + 16]
        assert np.array_equal(mask(patch), np.select([there == 2, there == 1], [1, 2]))
        assert patch["mask"]["labels"] == ["lesion", "nodule"]
        expected = "nodule" if (there == 1).any() else "lesion" if (there == 2).any() else "background"
        assert patch["category"] == expected
    plain = apply(given, keep="all")
    assert {patch["category"] for patch in plain} == {"nodule", "background"}


def test_patches_of_all_touch_the_region_they_are_to_be_within():
    marks = np.zeros(SHAPE, np.uint8)
    marks[2:4, :10, :10] = 3
    assert {place(patch) for patch in apply(row(marks=marks), keep="all")} == {(2, 0, 0), (3, 0, 0)}
    everywhere = apply(row(marks=marks), keep="all", within=None)
    assert len(everywhere) == len(apply(row(), keep="all"))


def test_every_piece_is_in_as_many_patches_as_asked_for_and_never_at_the_same_spot_only():
    given = row(marks=marked())
    patches = apply(given, patches_per_finding=12, background_patches=0)
    assert len(patches) == 12
    assert {place(patch)[0] for patch in patches} == {4, 5}
    assert all((mask(patch) == 1).any() for patch in patches)
    assert len({place(patch) for patch in patches}) > 8
    middles = np.array([place(patch)[1:] for patch in patches]) + 8
    assert (np.abs(middles - [21.5, 31.5]) <= 16 // 4 + 2).all()
    both = apply(given, patches_per_finding=3, background_patches=0, labels=("nodule", "lesion"))
    assert [patch["category"] for patch in both] == ["nodule"] * 3 + ["lesion"] * 3


def test_background_patches_lie_in_the_lung_without_anything_marked():
    marks = marked()
    voxels = np.full(SHAPE, -850, np.int16)
    voxels[:, 39:42, 5:55] = 0  # a vessel
    patches = apply(row(voxels, marks), patches_per_finding=0, background_patches=40, hard_share=0.25)
    assert len(patches) == 40
    for number, patch in enumerate(patches):
        depth, top, left = place(patch)
        assert marks[depth, top + 8, left + 8] == 3
        whole = marks[depth, max(top, 0) : top + 16, max(left, 0) : left + 16]
        assert not np.isin(whole, (1, 2)).any()
        assert (patch["category"], mask(patch).any()) == ("background", False)
        if number < 10:
            assert voxels[depth, top + 8, left + 8] == 0
    assert any(voxels[depth, top + 8, left + 8] < 0 for depth, top, left in map(place, patches[10:]))


def test_patches_depend_on_the_record_alone():
    first, again = apply(row(marks=marked())), apply(row(marks=marked()))
    assert first == again
    assert apply({**row(marks=marked()), "id": "b"}) != first


def test_what_lies_beyond_the_volume_is_black():
    given = row(np.full((4, 6, 6), 400, np.int16))
    for patch in apply(given, keep="all"):
        assert (pixels(patch)[:6, :6] == 255).all()
        assert pixels(patch).sum() == 6 * 6 * 3 * 255


def test_bytes_are_taken_as_they_are_and_sizes_are_fitted():
    voxels = np.random.default_rng(0).integers(0, 256, SHAPE).astype(np.uint8)
    patch = apply(row(voxels), keep="all")[0]
    assert np.array_equal(pixels(patch)[..., 1], voxels[0, :16, :16])
    marks = np.zeros(SHAPE, np.uint8)
    marks[:, 8:16, :32] = 1
    patch = apply(row(voxels, marks), size_px=32, keep="all", within=None)[0]
    assert (patch["image"]["width"], pixels(patch).shape) == (32, (16, 16, 3))
    assert np.array_equal(np.unique(mask(patch)), [0, 1])
    assert mask(patch)[4:8].all()


def test_without_regions_findings_are_balls_and_there_is_no_mask():
    # 2 mm slices from z = 7: the middle is in slice 4, and the ball reaches from 3 to 5.
    finding = {"label": "nodule", "x_mm": 35.0, "y_mm": 26.0, "z_mm": 15.0, "diameter_mm": 5.0}
    patches = apply(row(findings=[finding]), patches_per_finding=9, background_patches=0)
    assert {patch["category"] for patch in patches} == {"nodule"}
    assert {place(patch)[0] for patch in patches} == {3, 4, 5}
    assert all(patch["mask"] is None for patch in patches)
    categories = [patch["category"] for patch in apply(row(findings=[finding]), keep="all")]
    assert 3 <= categories.count("nodule") < len(categories)
    assert apply(row(), keep="all")[0]["category"] is None


def test_a_volume_without_anything_to_cut_is_refused():
    with pytest.raises(Refused) as caught:
        apply(row(marks=np.zeros(SHAPE)), background_patches=0)
    assert (caught.value.reason, caught.value.wanted) == ("no-patch", True)


def test_the_volume_is_gone_afterwards():
    given = ("category", "volume", "regions", "findings")
    there = check_chain(given, [(WINDOW, WindowVolumeSpec()), (SLICE, SliceVolumeSpec())], "x")
    assert set(there) == {"id", "category", "image", "mask"}


def test_wrong_options_are_refused():
    with pytest.raises(ValidationError, match="not below"):
        SliceVolumeSpec(low_hu=5, high_hu=5)
    with pytest.raises(ValidationError, match="differ"):
        SliceVolumeSpec(labels=("a", "a"))
    with pytest.raises(ValidationError, match="differ"):
        SliceVolumeSpec(labels=("lung",))
